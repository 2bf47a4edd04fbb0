"""From a spec's `source` to the checkpoint it names."""

from __future__ import annotations

from mlxpipe.checkpoint.inventory import Checkpoint
from mlxpipe.spec import LoadedSpec


def open_source(loaded: LoadedSpec, *, progress: bool = False) -> Checkpoint:
    """Open the checkpoint that a spec names: headers and JSON, no weights.

    Args:
        loaded: The spec.
        progress: Show a bar while the hub's files are fetched.

    Raises:
        SourceError: as the three kinds of source do.
    """
    source = loaded.spec.source
    if source.path is not None:
        from mlxpipe.checkpoint.directory import open_directory

        return open_directory(loaded.resolve(source.path), label=source.path)
    if source.hub is not None:
        from mlxpipe.checkpoint.hub import open_hub

        return open_hub(source.hub, source.revision, progress=progress)
    from mlxpipe.checkpoint.ollama import open_ollama

    assert source.ollama is not None
    store = loaded.resolve(source.store) if source.store else None
    return open_ollama(source.ollama, store)
