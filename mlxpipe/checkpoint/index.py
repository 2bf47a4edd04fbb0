"""The index of a sharded checkpoint: which tensor is in which file, and whether that is true."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import eq
from pathlib import Path
from typing import Any

from mlxpipe.checkpoint.inventory import Tensor
from mlxpipe.checkpoint.json_positions import json_pointer
from mlxpipe.checkpoint.json_reader import parse_json, read_json, read_text
from mlxpipe.errors import Origin, SourceError

INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 256 << 20
SAFETENSORS = ".safetensors"

_SHARD_NAME = re.compile(r"[^/\\:\x00-\x1f\x7f]{1,255}")

#: Tensors in the order of an index's rows.
Rows = Collection[Tensor]

#: The beginning of a weight_map, and what its writer puts before a row.
_OPENING = re.compile(r'"weight_map"\s*:\s*\{(\s*)')


def is_plain(path: Path, label: str, names: Sequence[str], orders: Iterable[Rows]) -> bool:
    """Whether an index says of each tensor where it is and nothing else, in an order that is tried.

    The rows that the tensors must give are cut out of the text, and what is left is parsed. That
    takes half of the time of parsing 370,000 rows. False says nothing: the index may be written
    in another way.

    Args:
        path: The index.
        label: How diagnostics name it.
        names: The file name of each shard.
        orders: The shards' tensors, all of them in each.

    Raises:
        SourceError: as for `read_json`, of the rest.
    """
    text = read_text(path, label, MAX_INDEX_BYTES)
    opening = _OPENING.search(text)
    if opening is None or text.count('"weight_map"') != 1:
        return False
    separator = f",{opening[1]}" if opening[1] else ", "
    for tensors in orders:
        body = separator.join([f'"{each[0]}": "{names[each[3]]}"' for each in tensors])
        if text.startswith(body, opening.end()):
            rest = text[: opening.end()] + text[opening.end() + len(body) :]
            return _is_literal(body, len(tensors)) and _is_empty(parse_json(rest, label))
    return False


def _is_literal(body: str, rows: int) -> bool:
    """Without an escape and with four quotes to a row, no name can pass for more than one."""
    return rows > 0 and body.count('"') == 4 * rows and "\\" not in body


def _is_empty(index: Any) -> bool:
    return isinstance(index, dict) and index.get("weight_map") == {}


def read_index(path: Path, label: str) -> dict[str, str]:
    """The index's `weight_map`: {tensor name: shard's file name}.

    Its `metadata.total_size` is not looked at: several producers get it wrong.
    """
    document = read_json(path, label, MAX_INDEX_BYTES)
    table = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(table, dict) or not table or set(map(type, table.values())) != {str}:
        raise SourceError(
            "bad-index",
            f"{label} has no usable weight_map",
            origin=Origin(label, pointer="/weight_map"),
            expected='{"weight_map": {tensor name: file name}}',
            help="download the index again, or remove it if the shards are numbered completely",
        )
    for name in sorted(set(table.values())):
        if not _SHARD_NAME.fullmatch(name) or not name.endswith(SAFETENSORS):
            tensor = next(key for key, value in table.items() if value == name)
            raise SourceError(
                "bad-shard-name",
                f"{label} names a shard that is not a plain safetensors file name",
                origin=Origin(label, pointer=json_pointer("weight_map", tensor)),
                found=repr(name[:120]),
                expected="the name of a .safetensors file beside the index, without a path",
                help="download the index again",
            )
    return table


def index_shards(path: Path, label: str) -> list[str]:
    """The file names of an index's shards, each a plain name; errors as for `open_directory`."""
    return sorted(set(read_index(path, label).values()))


def shards_of(index: Mapping[str, str], weights: frozenset[str], label: str) -> list[str]:
    """The index's shards, when all of them and no other `model*.safetensors` are there."""
    names = sorted(set(index.values()))
    missing = [name for name in names if name not in weights]
    strays = sorted(name for name in weights.difference(names) if name.startswith("model"))
    if missing:
        advice = "download the missing files"
        if strays:
            advice += f", or remove {INDEX} if {some(strays)} replaces them"
        raise SourceError(
            "missing-shard",
            f"{label} lacks {len(missing)} of the {len(names)} shards in its index",
            origin=Origin(f"{label}/{INDEX}"),
            found=some(sorted(weights)) if weights else "no safetensors file",
            expected=some(missing),
            help=advice,
        )
    if strays:
        raise SourceError(
            "stray-shard",
            f"{label} holds weights that its index does not name",
            origin=Origin(f"{label}/{INDEX}"),
            found=some(strays),
            expected=f"no model*.safetensors beside those of the index ({some(names)})",
            help="remove or rename them: mlx-lm would load them over the model's own tensors",
        )
    return names


def check_index(
    index: Mapping[str, str], names: Sequence[str], tensors: Mapping[str, Tensor], label: str
) -> None:
    """Refuse an index that says something else than its shards."""
    actual = [names[tensor.shard] for tensor in tensors.values()]
    if len(index) == len(actual) and all(map(eq, actual, map(index.get, tensors))):
        return
    for tensor in tensors.values():
        _check_listed(tensor, index, names, label)
    lost = sorted(index.keys() - tensors.keys())
    if lost:
        raise _index_fault(
            "lying-index",
            f"the index assigns tensor '{lost[0]}' to {index[lost[0]]}, which does not hold it",
            lost[0],
            label,
            notes=(f"{len(lost)} of {len(index)} tensors in the index are in no shard",),
        )


def _check_listed(
    tensor: Tensor, index: Mapping[str, str], names: Sequence[str], label: str
) -> None:
    shard = names[tensor.shard]
    listed = index.get(tensor.name)
    if listed is None:
        raise _index_fault(
            "unlisted-tensor",
            f"{shard} holds tensor '{tensor.name}', which the index does not list",
            tensor.name,
            label,
        )
    if listed != shard:
        raise _index_fault(
            "misplaced-tensor",
            f"{shard} holds tensor '{tensor.name}', which the index assigns to {listed}",
            tensor.name,
            label,
        )


def _index_fault(
    code: str, message: str, tensor: str, label: str, notes: tuple[str, ...] = ()
) -> SourceError:
    pointer = json_pointer("weight_map", tensor)
    return SourceError(
        code,
        message,
        origin=Origin(f"{label}/{INDEX}", pointer=pointer),
        expected="an index that lists every tensor with the file that holds it",
        help="download the index and the shards again: they are not of one version",
        notes=notes,
    )


def some(names: Sequence[str] | map[str], limit: int = 6) -> str:
    """The first names, and how many more there are."""
    known = list(names)
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return ", ".join(known[:limit]) + more
