"""The lock of here and now: what a spec means and reads at this moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.source import open_source
from mlxpipe.errors import MlxpipeError
from mlxpipe.locking import table
from mlxpipe.locking.contents import (
    belongs_to_tokenizer,
    chat_template,
    shard_names,
    source_files,
)
from mlxpipe.locking.digests import Digests, FileDigest, canonical_digest, tree_digest
from mlxpipe.locking.lock import DataEntry, FileEntry, Lock, Pieces, SourceEntry, Table
from mlxpipe.locking.versions import locked_versions
from mlxpipe.plan.plan import Plan
from mlxpipe.plan.planner import plan_checkpoint
from mlxpipe.spec import (
    LoadedSpec,
    Naming,
    PathUse,
    PathValue,
    Quantization,
    Section,
    Source,
    Task,
    path_values,
    resolved,
)

#: Sections of the resolved spec that the files or the table stand for, or that change no result.
#: Whatever else a spec has is part of what it means.
ELSEWHERE = frozenset(
    {"version", "name", "source", "naming", "quantization", "quantize", "outputs"}
)

#: A file of no more tensors needs no pieces: its name says where the change is.
FEW_TENSORS = 4


#: `<task>.<key>` -> the spec of another model that the task reads.
Others = Mapping[str, LoadedSpec]


def take_lock(
    loaded: LoadedSpec,
    checkpoint: Checkpoint,
    plan: Plan | None,
    digests: Digests,
    others: Others | None = None,
) -> Lock:
    """Digest everything that a spec reads.

    Args:
        loaded: The spec.
        checkpoint: Its checkpoint, open.
        plan: Its plan; None where none can be made leaves the table empty.
        digests: Reads the files.
        others: The other models that tasks read, where the spec says more of one than its source.

    Raises:
        SourceError: a file cannot be read.
    """
    found = digests.of_files(source_files(checkpoint))
    data = _data(loaded, digests, others or {})
    tokenizer = {name: found[name] for name in found if belongs_to_tokenizer(name)}
    return Lock(
        versions=locked_versions(vision=plan is not None and plan.vision),
        source=_source(loaded, checkpoint),
        files=_entries({name: found[name] for name in found if name not in tokenizer}),
        tokenizer=_entries(tokenizer),
        chat_template=chat_template(checkpoint.files),
        data={key: entry for key, (entry, _) in data.items()},
        spec=meaning(loaded),
        table=_table(plan),
        pieces={
            **_pieces(found, _telling_names(checkpoint)),
            **_pieces({key: whole for key, (_, whole) in data.items() if whole}),
        },
    )


def with_files(lock: Lock, found: Mapping[str, FileDigest]) -> Lock:
    """A lock with the files, and the tokenizer's, as they are found."""
    tokenizer = {name: found[name] for name in found if belongs_to_tokenizer(name)}
    return lock.model_copy(
        update={
            "files": _entries({name: found[name] for name in found if name not in tokenizer}),
            "tokenizer": _entries(tokenizer),
            "pieces": _pieces(found),
        }
    )


def meaning(loaded: LoadedSpec) -> dict[str, Any]:
    """What a spec means beyond its files and table; tasks by id, without the paths they name."""
    data = {key: value for key, value in resolved(loaded).items() if key not in ELSEWHERE}
    data["tasks"] = {
        task.id: _without_paths(task, settings)
        for task, settings in zip(loaded.spec.tasks, data["tasks"], strict=True)
    }
    return data


#: An entry, and the digest with its pieces where it is one file.
_Data = tuple[DataEntry, FileDigest | None]


def _data(loaded: LoadedSpec, digests: Digests, others: Others) -> dict[str, _Data]:
    """What the tasks read: `<task>.<key>` -> its digest; what is missing is left out."""
    return {
        key: entry
        for task in loaded.spec.tasks
        for key, entry in _task_data(loaded, task, digests, others)
    }


def _task_data(
    loaded: LoadedSpec, task: Task, digests: Digests, others: Others
) -> Iterator[tuple[str, _Data]]:
    for name, source in _sources(task):
        key = f"{task.id}.{name}"
        yield from _other_model(key, others.get(key) or _bare(loaded, source), digests)
    for value in read_paths(task):
        key = ".".join(map(str, (task.id, *value.keys)))
        path = loaded.resolve(value.text)
        if path.exists():
            yield key, _path_data(path, key, digests)


def read_paths(task: Task) -> Iterator[PathValue]:
    """The files and directories that a task reads, but for other models."""
    models = {name for name, _ in _sources(task)}
    for value in path_values(task):
        places = {".".join(map(str, value.keys[:end])) for end in range(len(value.keys))}
        if value.use is PathUse.READ and not places & models:
            yield value


def _path_data(path: Path, key: str, digests: Digests) -> _Data:
    if path.is_dir():
        return _entry(path.name, 0, tree_digest(path, key, digests)), None
    found = digests.of(path, key)
    return _entry(path.name, found.size, found.sha256), found


def _entry(name: str, size: int, sha256: str) -> DataEntry:
    return DataEntry(bytes=size, sha256=sha256, file=name)


def _sources(section: Section, keys: tuple[str, ...] = ()) -> Iterator[tuple[str, Source]]:
    """The models that a task names beside the spec's own."""
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Source):
            yield ".".join((*keys, name)), value
        elif isinstance(value, Section):
            yield from _sources(value, (*keys, name))


def _bare(loaded: LoadedSpec, source: Source) -> LoadedSpec:
    """The spec of another checkpoint by its own declarations."""
    own = {"source": source, "naming": Naming(), "quantization": Quantization(), "quantize": ()}
    return replace(loaded, spec=loaded.spec.model_copy(update=own))


def _other_model(key: str, spec: LoadedSpec, digests: Digests) -> Iterator[tuple[str, _Data]]:
    """The files and the table of another model, as far as it can be opened."""
    try:
        checkpoint = open_source(spec)
        plan = plan_checkpoint(spec, checkpoint)
    except MlxpipeError:
        return  # the task that wants it says what is wrong with it
    for name, found in digests.of_files(source_files(checkpoint)).items():
        yield f"{key}/{name}", (_entry(name, found.size, found.sha256), found)
    yield f"{key}/table", (_entry("table", 0, _table(plan).sha256), None)


def _without_paths(task: Section, settings: dict[str, Any]) -> dict[str, Any]:
    """A task's settings but for its id and the paths: contents bind, not places."""
    left = {key: value for key, value in settings.items() if key != "id"}
    for value in path_values(task):
        place: Any = left
        for key in value.keys[:-1]:
            place = place[key]
        if isinstance(place, dict):
            place.pop(value.keys[-1], None)
        else:
            place[value.keys[-1]] = None
    return left


def _source(loaded: LoadedSpec, checkpoint: Checkpoint) -> SourceEntry:
    source = loaded.spec.source
    name = source.hub or source.ollama
    return SourceEntry(kind=checkpoint.kind, name=name, revision=checkpoint.revision)


def _entries(found: Mapping[str, FileDigest]) -> dict[str, FileEntry]:
    return {name: FileEntry(bytes=each.size, sha256=each.sha256) for name, each in found.items()}


def _table(plan: Plan | None) -> Table:
    if plan is None:
        return Table(sha256=canonical_digest(None), modules={})
    rows = table.rows(plan)
    shown = {path: str(row) for path, row in rows.items()}
    return Table(sha256=table.table_digest(plan, rows), modules=shown)


def _telling_names(checkpoint: Checkpoint) -> frozenset[str]:
    """Files of so few tensors that their names say where a change is."""
    names = shard_names(checkpoint)
    tensors = Counter(names[tensor.shard] for tensor in checkpoint.tensors.values())
    return frozenset(name for name in names if tensors[name] <= FEW_TENSORS)


def _pieces(found: Mapping[str, FileDigest], without: Collection[str] = ()) -> dict[str, Pieces]:
    return {
        name: Pieces(bytes=each.piece, crc32=" ".join(f"{value:08x}" for value in each.crc32))
        for name, each in found.items()
        if len(each.crc32) > 1 and name not in without
    }
