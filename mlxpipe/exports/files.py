"""The tensors of an export as files: laid out, judged by mlxpipe itself, then filled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxpipe.architecture.lineage import NAMES
from mlxpipe.checkpoint import Checkpoint, Shard
from mlxpipe.checkpoint.header import read_header
from mlxpipe.checkpoint.inventory import Kind, gather
from mlxpipe.errors import Diagnostic, ExecutionError, PlanError
from mlxpipe.exports.forms import Form
from mlxpipe.exports.request import Progress
from mlxpipe.exports.safetensors import Entry, Sink, fill, lay_out
from mlxpipe.plan.plan import Parameter, Plan
from mlxpipe.plan.planner import plan_checkpoint
from mlxpipe.spec import spec_for_source

#: What a `sanitize` may do to a tensor that it gives back in its own shape: the order of the
#: elements stays.
HARMLESS = frozenset(
    {"Contiguous", "Copy", "ExpandDims", "Flatten", "Reshape", "Squeeze", "Unflatten"}
)


@dataclass(frozen=True, slots=True, eq=False)
class File:
    """One safetensors file to be written.

    Attributes:
        path: Where.
        entries: Its tensors in file order.
        metadata: The header's `__metadata__`.
        name: What a store's layer calls it, "" elsewhere.
    """

    path: Path
    entries: tuple[Entry, ...]
    metadata: Mapping[str, str]
    name: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(entry.nbytes for entry in self.entries)


def entries_of(arrays: Mapping[str, mx.array]) -> tuple[Entry, ...]:
    """What a header says of lazy arrays, in their order."""
    return tuple(
        Entry(name, NAMES[array.dtype], tuple(array.shape)) for name, array in arrays.items()
    )


def judge(
    files: tuple[File, ...],
    kind: Kind,
    root: Path,
    documents: Mapping[str, Path],
    plan: Plan,
    forms: Mapping[str, Form],
) -> None:
    """Lay the files out and plan them as any checkpoint: what is read must be what is written.

    mlx-lm's `sanitize` runs over an export again when it is loaded. For nearly every architecture
    it leaves alone what it has made; one that would change a tensor again is found here, from
    headers, before a byte of weights is computed.

    Raises:
        ExecutionError: `unfaithful-export`.
    """
    for file in files:
        lay_out(file.path, file.entries, file.metadata)
    headers = [read_header(file.path, file.path.name, at) for at, file in enumerate(files)]
    checkpoint = Checkpoint(
        kind=kind,
        label="the export",
        root=root,
        shards=tuple(
            Shard(file.path, file.path.name, header.metadata, header.size, file.name)
            for file, header in zip(files, headers, strict=True)
        ),
        tensors=gather([file.path.name for file in files], (each.tensors for each in headers)),
        files=documents,
    )
    try:
        again = plan_checkpoint(spec_for_source(root), checkpoint).require_sound()
    except PlanError as error:
        raise _unfaithful(plan, error.diagnostics[0]) from error
    found = next(_differences(again, forms, checkpoint), None)
    if found is not None:
        raise _unfaithful(plan, found)


def _differences(
    again: Plan, forms: Mapping[str, Form], checkpoint: Checkpoint
) -> Iterator[Diagnostic]:
    yield from again.conflicts
    yield from again.stale
    for parameter in again.parameters.values():
        if not _is_untouched(parameter, checkpoint):
            yield Diagnostic(
                "changed-again",
                f"mlx-lm's renaming would change '{parameter.name}' again",
                found=", ".join((*parameter.tensors, *parameter.operations)),
            )
    for path, form in forms.items():
        module = again.modules.get(path)
        landing = module.landing if module else None
        if module is None or landing != form.scheme:
            found = f"{landing or 'dense'} instead of {form.scheme or 'dense'}"
            yield Diagnostic("changed-scheme", f"'{path}' would be read as another", found=found)


def _is_untouched(parameter: Parameter, checkpoint: Checkpoint) -> bool:
    return (
        len(parameter.tensors) == 1
        and parameter.tensors[0] in checkpoint.tensors
        and set(parameter.operations) <= HARMLESS
    )


def _unfaithful(plan: Plan, found: Diagnostic) -> ExecutionError:
    return ExecutionError(
        "unfaithful-export",
        f"an export of '{plan.architecture}' would not be read as it is written",
        found="\n".join(text for text in (found.message, found.found) if text),
        help="mlx-lm's class does not read what it makes; nothing was written",
    )


def fill_all(
    files: tuple[File, ...],
    arrays: MutableMapping[str, mx.array],
    progress: Progress,
    sinks: Mapping[File, Sink] | None = None,
) -> None:
    """Write every file's data, one array in memory at a time.

    Args:
        files: Files that are laid out.
        arrays: Name -> lazy array; emptied.
        progress: Told of every piece.
        sinks: Given the bytes of each file, its header included.

    Raises:
        ExecutionError: `export-failed`.
    """
    total = sum(file.path.stat().st_size for file in files)
    done = 0

    def advance(piece: memoryview | bytes) -> None:
        nonlocal done
        done += len(piece)
        progress(done, total)

    with _without_cache():
        for file in files:
            both = [advance] if sinks is None else [sinks[file], advance]
            try:
                fill(file.path, file.entries, arrays, both)
            except RuntimeError as error:
                raise ExecutionError(
                    "export-failed", "the weights could not be read", found=str(error)
                ) from error


@contextmanager
def _without_cache() -> Iterator[Any]:
    """Give every buffer back at once, for none is needed twice."""
    before = mx.set_cache_limit(0)
    try:
        yield
    finally:
        mx.set_cache_limit(before)
