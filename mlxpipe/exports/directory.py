"""A directory as mlx-lm writes it: shards, an index, config.json and the documents."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxpipe.architecture.skeleton import Skeleton
from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.index import INDEX
from mlxpipe.exports.config import CONFIG, documents, exported_config
from mlxpipe.exports.draft import (
    PRODUCER,
    check_outside,
    check_space,
    check_target,
    copy_file,
    draft,
    write_json,
)
from mlxpipe.exports.files import File, entries_of, fill_all, judge
from mlxpipe.exports.forms import FACTOR, ORDER, Arrays, Contents, Holder, amax_of
from mlxpipe.exports.request import Exported, Progress, Request
from mlxpipe.exports.safetensors import Entry
from mlxpipe.graph.arrays import AMAX
from mlxpipe.plan.plan import Plan, PlannedModule

#: The one metadata that mlx-lm and transformers look for.
METADATA = {"format": "mlx"}


def holder(skeleton: Skeleton) -> Holder:
    """What mlx-lm's own layers hold: no permutation, and a factor per expert in nvfp4 alone."""
    layers = dict(skeleton.model.named_modules())

    def hold(module: PlannedModule, own: Arrays) -> Arrays | None:
        if ORDER in own:
            return None
        if FACTOR not in own:
            return own
        plain = {leaf: array for leaf, array in own.items() if leaf not in (FACTOR, AMAX)}
        if not _takes_amax(module, layers[module.path]) or own[FACTOR].ndim != 1:
            return None
        amax = own[AMAX] if AMAX in own else amax_of(own[FACTOR])
        return None if amax is None else {**plain, AMAX: amax}

    return hold


def _takes_amax(module: PlannedModule, layer: Any) -> bool:
    nvfp4 = module.landing is not None and module.landing.mode == "nvfp4"
    return nvfp4 and AMAX in inspect.signature(layer.to_quantized).parameters


def check(request: Request, checkpoint: Checkpoint) -> None:
    """Refuse a target that exists or lies in the source.

    Raises:
        UsageError: `target-exists`, `target-in-source`.
    """
    check_outside(request.target, checkpoint.root, request.origin)
    check_target(request.target, overwrite=request.overwrite, origin=request.origin)


def write(
    plan: Plan, checkpoint: Checkpoint, contents: Contents, request: Request, progress: Progress
) -> Exported:
    """Write the directory, whole or not at all.

    Raises:
        ExecutionError: `no-space`, `cannot-write`, `unfaithful-export`, `export-failed`.
    """
    shards = tuple(_shards(entries_of(contents.arrays), request.max_shard_bytes))
    copied = documents(checkpoint)
    total = sum(entry.nbytes for shard in shards for entry in shard)
    extra = sum(path.stat().st_size for path in copied.values())
    check_space(request.target.parent, total + extra, request.origin)
    with draft(request.target, origin=request.origin) as folder:
        files = tuple(
            File(folder / _shard_name(number, len(shards)), entries, METADATA)
            for number, entries in enumerate(shards, 1)
        )
        write_json(folder / CONFIG, exported_config(checkpoint.config.data, plan, contents.forms))
        for name, path in copied.items():
            copy_file(path, folder / name)
        write_json(folder / INDEX, _index(files, copied))
        placed = {name: folder / name for name in (*copied, CONFIG)}
        judge(files, "directory", folder, placed, plan, contents.forms)
        fill_all(files, contents.arrays, progress)
    return Exported(
        request.target, total, sum(len(shard) for shard in shards), len(shards), contents.forms
    )


def _shards(entries: tuple[Entry, ...], limit: int) -> Iterator[tuple[Entry, ...]]:
    """Tensors in their order, in files of at most `limit` bytes; a larger one has its own."""
    shard: list[Entry] = []
    size = 0
    for entry in entries:
        if shard and size + entry.nbytes > limit:
            yield tuple(shard)
            shard, size = [], 0
        shard.append(entry)
        size += entry.nbytes
    yield tuple(shard)


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"


def _index(files: tuple[File, ...], copied: dict[str, Path]) -> dict[str, Any]:
    """The index; its metadata also says what an export consists of, so that it can be replaced."""
    return {
        "metadata": {
            "total_size": sum(file.nbytes for file in files),
            "producer": PRODUCER,
            "files": sorted([*copied, CONFIG]),
        },
        "weight_map": {entry.name: file.path.name for file in files for entry in file.entries},
    }
