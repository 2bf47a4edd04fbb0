"""Every claim about a checkpoint, from all sources."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlxpipe.checkpoint import Checkpoint, JsonDocument, json_pointer
from mlxpipe.checkpoint.json_reader import read_json
from mlxpipe.errors import Diagnostic, Origin, UsageError
from mlxpipe.naming.groups import Group
from mlxpipe.naming.names import is_pattern
from mlxpipe.quant import dialects, mlx_dialect, ollama_dialect
from mlxpipe.quant.claims import Block, Claim, Reach, Reading, join
from mlxpipe.quant.modes import complete
from mlxpipe.spec import LoadedSpec
from mlxpipe.spec.reader import read_yaml


def gather(loaded: LoadedSpec, checkpoint: Checkpoint, groups: Mapping[str, Group]) -> Reading:
    """Read every source that the spec and the checkpoint have.

    Args:
        loaded: The spec, for its overrides and file sources.
        checkpoint: The checkpoint, for config.json and the headers' metadata.
        groups: The checkpoint's tensors by path.

    Raises:
        UsageError: a file source that cannot be read.
        SourceError: malformed JSON in the checkpoint.
    """
    config = checkpoint.document("config.json")
    return join(
        (
            _spec_rules(loaded),
            *(_file(loaded, name) for name in loaded.spec.quantization.sources),
            *_config(config),
            *_sidecars(checkpoint),
            ollama_dialect.read_metadata(_blobs(checkpoint, groups.values())),
        )
    )


#: Where config.json may hold another producer's block.
FOREIGN_PLACES = (
    ("text_config", "compression_config"),
    ("text_config", "quantization_config"),
    ("compression_config",),
    ("quantization_config",),
)


def _config(document: JsonDocument | None) -> list[Reading]:
    """What config.json declares: another producer's block first, so that mlx-lm's own wins."""
    if document is None:
        return []
    blocks = [
        Block(block, _below(document, path))
        for path in FOREIGN_PLACES
        if isinstance(block := _at(document.data, path), Mapping) and mlx_dialect.is_foreign(block)
    ]
    foreign = [dialects.read_block(block, "config") for block in blocks[-1:]]
    disagreeing = Reading(conflicts=tuple(_disagreements(blocks)))
    return [*foreign, disagreeing, mlx_dialect.read_config(_block(document))]


def _disagreements(blocks: Sequence[Block]) -> Iterator[Diagnostic]:
    """Another producer's blocks that say something else than the last one, which is read."""
    for block in blocks[:-1]:
        read = blocks[-1]
        if block.data == read.data:
            continue
        keys = sorted({*block.data, *read.data})
        key = next(key for key in keys if block.data.get(key) != read.data.get(key))
        here, there = read.locate(()), block.locate(())
        yield Diagnostic(
            "disagreeing-blocks",
            f"config.json declares the quantisation twice, with another '{key:.60}'",
            origin=block.locate((key,)) if key in block.data else there,
            found=f"{here.pointer} is read, {there.pointer} is not",
            help="remove one of the two blocks",
            severity="warning",
        )


def _sidecars(checkpoint: Checkpoint) -> list[Reading]:
    return [
        dialects.read_sidecar(name, _block(document))
        for name in dialects.SIDECARS
        if (document := checkpoint.document(name)) is not None
    ]


def _at(data: Any, path: tuple[str, ...]) -> Any:
    for segment in path:
        data = data.get(segment) if isinstance(data, Mapping) else None
    return data


def _below(document: JsonDocument, prefix: tuple[str, ...]) -> Callable[[tuple[str, ...]], Origin]:
    return lambda below: document.origin(json_pointer(*prefix, *below))


def _block(document: JsonDocument) -> Block:
    """The whole document; what is wrong with all of it is at its beginning."""

    def locate(below: tuple[str, ...]) -> Origin:
        return document.origin(json_pointer(*below)) if below else Origin(document.label, 1, 1)

    return Block(document.data, locate)


def _spec_rules(loaded: LoadedSpec) -> Reading:
    claims: list[Claim] = []
    for number, rule in enumerate(loaded.spec.quantization.overrides):
        origin = loaded.origin("quantization", "overrides", number)
        reach = Reach.PATTERN if is_pattern(rule.match) else Reach.PATH
        if rule.dense:
            claims.append(Claim("spec", None, reach, rule.match, origin, "dense: true"))
            continue
        try:
            scheme = complete(rule.mode, rule.bits, rule.group_size)
        except ValueError as problem:
            raise UsageError("unknown-scheme", str(problem), origin=origin) from None
        omitted = [
            f"{field} omitted -> {getattr(scheme, field)}"
            for field in ("mode", "bits", "group_size")
            if getattr(rule, field) is None
        ]
        note = ", ".join(omitted) + (" (MLX's default)" if omitted else "")
        claims.append(Claim("spec", scheme, reach, rule.match, origin, note))
    return Reading(tuple(claims))


def _file(loaded: LoadedSpec, name: str) -> Reading:
    declared = loaded.spec.quantization.sources[name].path
    path = loaded.resolve(declared)
    if not path.is_file():
        raise UsageError(
            "missing-file",
            f"the override file of source '{name}' does not exist",
            origin=loaded.origin("quantization", "sources", name, "path"),
            found=declared,
            help="paths are relative to the spec",
        )
    block = (
        _yaml_block(path, declared)
        if path.suffix in (".yaml", ".yml")
        else _json_block(path, declared)
    )
    return mlx_dialect.read_block(block, name, patterns=True)


def _yaml_block(path: Path, label: str) -> Block:
    document = read_yaml(path, label)
    prefix, data = _unwrap(document.data)
    return Block(data, lambda below: document.positions.origin((*prefix, *below), key=True))


def _json_block(path: Path, label: str) -> Block:
    document = JsonDocument(path.name, path, label, read_json(path, label))
    prefix, data = _unwrap(document.data)
    return Block(data, lambda below: document.origin(json_pointer(*prefix, *below)))


def _unwrap(data: Any) -> tuple[tuple[str, ...], Any]:
    """An override file may be a whole config.json, or its `quantization` alone."""
    for key in ("quantization", "quantization_config"):
        if isinstance(data, Mapping) and isinstance(data.get(key), Mapping):
            return (key,), data[key]
    return (), data


def _blobs(checkpoint: Checkpoint, groups: Iterable[Group]) -> list[ollama_dialect.Blob]:
    stamped = {
        number
        for number, shard in enumerate(checkpoint.shards)
        if any(key.rpartition(".")[2] in ollama_dialect.KEYS for key in shard.metadata)
    }
    if not stamped:
        return []
    packed: dict[int, list[tuple[str, str]]] = {number: [] for number in stamped}
    for group in groups:
        if group.packed:
            for name in group.parts["weight"].names:
                shard = checkpoint.tensors[name].shard
                if shard in packed:
                    packed[shard].append((name, group.path))
    return [
        ollama_dialect.Blob(shard.label, shard.metadata, tuple(packed[number]))
        for number, shard in enumerate(checkpoint.shards)
        if number in stamped
    ]
