"""Open a directory of safetensors files and JSON documents.

Which files are the weights follows what producers write and mlx-lm reads: an index
(`model.safetensors.index.json`), else `model.safetensors`, else a complete numbered set, else
`model*.safetensors`, else the only safetensors file there is. mlx-lm loads every
`model*.safetensors` whatever the index says, so a stray one is an error here and not a surprise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from operator import eq
from pathlib import Path
from types import MappingProxyType

from mlxpipe.checkpoint.files import collector_paused, unreadable
from mlxpipe.checkpoint.header import read_header
from mlxpipe.checkpoint.inventory import Checkpoint, Kind, Shard, Tensor, gather
from mlxpipe.checkpoint.json_positions import json_pointer
from mlxpipe.checkpoint.json_reader import read_json
from mlxpipe.errors import Origin, SourceError, did_you_mean

INDEX = "model.safetensors.index.json"
MAX_INDEX_BYTES = 256 << 20

_SAFETENSORS = ".safetensors"
_NUMBERED = re.compile(r"model-(\d{1,9})-of-(\d{1,9})\.safetensors")
_SHARD_NAME = re.compile(r"[^/\\:\x00-\x1f\x7f]{1,255}")
_ADAPTERS = frozenset({"adapters.safetensors", "adapter_model.safetensors"})

_OTHER_WEIGHTS: Mapping[str, str] = MappingProxyType(
    {
        ".gguf": "download the safetensors version of the model",
        ".bin": "load it with transformers and save_pretrained(safe_serialization=True)",
        ".pt": "load it with torch and write it with safetensors.torch.save_file",
        ".pth": "load it with torch and write it with safetensors.torch.save_file",
        ".ckpt": "load it with torch and write it with safetensors.torch.save_file",
        ".npz": "load it with mlx.core.load and write it with mlx.core.save_safetensors",
        ".h5": "download the safetensors version of the model",
        ".msgpack": "download the safetensors version of the model",
        ".onnx": "download the safetensors version of the model",
    }
)
"""Suffixes of weights that are not read, and how to get safetensors from them."""


def open_directory(path: str | Path, label: str | None = None) -> Checkpoint:
    """Open a checkpoint directory.

    Args:
        path: The directory; in a str, `~` is expanded.
        label: How diagnostics name it; by default the path as given.

    Raises:
        SourceError: The directory (`missing-path`, `not-a-directory`, `unreadable-file`), its
            choice of files (`no-weights`, `ambiguous-weights`, `missing-shard`, `stray-shard`), its
            index (`bad-index`, `bad-shard-name`, `lying-index`, `unlisted-tensor`,
            `misplaced-tensor`), a header (see `mlxpipe.checkpoint.header.read_header`), or two
            shards with one tensor (`duplicate-tensor`).
    """
    # A Path is taken as it is: made of `./~x`, it reads `~x` and yet means no home directory.
    root = Path(path).expanduser() if isinstance(path, str) else path
    return scan_directory(root, label or str(path), "directory")


def scan_directory(root: Path, label: str, kind: Kind) -> Checkpoint:
    """`open_directory` for any kind of source that ends up as a directory."""
    weights, files = _listing(root, label)
    with collector_paused():
        index = _read_index(files[INDEX], f"{label}/{INDEX}") if INDEX in files else None
    if index is None:
        names = _unindexed(weights, label) or _refuse_other(weights, files, root, label)
    else:
        names = _indexed(index, weights, label)
    labels = [f"{label}/{name}" for name in names]
    with collector_paused():
        headers = [read_header(root / n, labels[i], i) for i, n in enumerate(names)]
        tensors = gather(labels, (header.tensors for header in headers))
    if index is not None:
        _check_index(index, names, tensors, label)
    return Checkpoint(
        kind=kind,
        label=label,
        root=root,
        shards=tuple(
            Shard(root / name, name, header.metadata, header.size)
            for name, header in zip(names, headers, strict=True)
        ),
        tensors=tensors,
        files=files,
        ignored=tuple(sorted(weights - set(names))),
    )


# ------------------------------------------------------------------ the directory's listing


def _listing(root: Path, label: str) -> tuple[frozenset[str], Mapping[str, Path]]:
    """Names of the safetensors files, and the other files that are not weights."""
    try:
        names = sorted(entry.name for entry in root.iterdir() if entry.is_file())
    except FileNotFoundError as error:
        raise _missing_path(root, label) from error
    except NotADirectoryError as error:
        raise _not_a_directory(root, label) from error
    except (OSError, ValueError) as error:
        raise unreadable(label, error) from error
    weights = frozenset(name for name in names if name.endswith(_SAFETENSORS))
    others = (name for name in names if name not in weights and not name.startswith("."))
    files = {name: root / name for name in others if Path(name).suffix not in _OTHER_WEIGHTS}
    return weights, MappingProxyType(files)


def _missing_path(root: Path, label: str) -> SourceError:
    parent = root.parent
    siblings: list[str] = []
    with suppress(OSError):  # the names are only for the advice
        siblings = [entry.name for entry in parent.iterdir()]
    if not parent.is_dir():
        advice = f"'{parent.name}', which should hold it, does not exist either"
    else:
        advice = did_you_mean(root.name, siblings) or "check the path; it is relative to the spec"
    return SourceError(
        "missing-path",
        f"{label} does not exist",
        origin=Origin(label),
        expected="a directory with safetensors files and a config.json",
        help=advice,
    )


def _not_a_directory(root: Path, label: str) -> SourceError:
    weights = root.suffix == _SAFETENSORS
    return SourceError(
        "not-a-directory",
        f"{label} is a file, not a directory",
        origin=Origin(label),
        expected="a directory with safetensors files and a config.json",
        help=f"give the directory that holds it: {Path(label).parent}"
        if weights
        else _OTHER_WEIGHTS.get(root.suffix, "give the directory that holds the model"),
    )


# ------------------------------------------------------------------ which files are the weights


def _unindexed(weights: frozenset[str], label: str) -> Sequence[str]:
    """The weights of a directory without an index; empty where no file is clearly meant."""
    models = sorted(name for name in weights if name.startswith("model"))
    numbered = [name for name in models if _NUMBERED.fullmatch(name)]
    if numbered:
        return _numbered_set(numbered, [name for name in models if name not in numbered], label)
    others = sorted(weights - _ADAPTERS)
    return models or (others if len(others) == 1 else [])


def _numbered_set(names: list[str], strays: list[str], label: str) -> list[str]:
    """The shards `model-i-of-n` in order, when they are one complete set and alone."""
    parts = {name: tuple(map(int, _NUMBERED.fullmatch(name).groups())) for name in names}  # type: ignore[union-attr]
    totals = sorted({total for _, total in parts.values()})
    if strays or len(totals) > 1:
        raise SourceError(
            "stray-shard" if strays and "model.safetensors" not in strays else "ambiguous-weights",
            f"{label} holds more than one set of weights and no {INDEX}",
            origin=Origin(label),
            found=_some([*strays, *names]),
            expected="one set of shards",
            help="remove or rename the files that do not belong to the model",
        )
    present = {number for number, _ in parts.values()}
    missing = [number for number in range(1, min(totals[0], 10**5) + 1) if number not in present]
    if missing or len(names) != totals[0]:
        raise SourceError(
            "missing-shard",
            f"{label} holds {len(names)} of {totals[0]} shards",
            origin=Origin(label),
            found=_some(names),
            expected=f"{totals[0]} shards, numbered from 1; missing: {_some(map(str, missing))}",
            help="download the missing files",
        )
    return sorted(names, key=lambda name: parts[name])


def _refuse_other(
    weights: frozenset[str], files: Mapping[str, Path], root: Path, label: str
) -> list[str]:
    if len(weights - _ADAPTERS) > 1:
        raise SourceError(
            "ambiguous-weights",
            f"{label} holds several safetensors files and none is called model*.safetensors",
            origin=Origin(label),
            found=_some(sorted(weights)),
            expected=f"model.safetensors, numbered shards, or an {INDEX}",
            help="rename the model's files, or give a directory that holds them alone",
        )
    other = sorted(
        entry.name for entry in root.iterdir() if entry.suffix in _OTHER_WEIGHTS and entry.is_file()
    )
    if weights:
        found, advice = _some(sorted(weights)), "an adapter is no model: fuse it into its base"
    elif other:
        found, advice = _some(other), _OTHER_WEIGHTS[Path(other[0]).suffix]
    else:
        found = _some(sorted(files)) if files else "no files"
        advice = "check the path, and whether the download finished"
    raise SourceError(
        "no-weights",
        f"{label} holds no safetensors weights",
        origin=Origin(label),
        found=found,
        expected="model.safetensors or model-*.safetensors; only safetensors is read",
        help=advice,
    )


# ------------------------------------------------------------------ the index


def _read_index(path: Path, label: str) -> dict[str, str]:
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
        if not _SHARD_NAME.fullmatch(name) or not name.endswith(_SAFETENSORS):
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
    return sorted(set(_read_index(path, label).values()))


def _indexed(index: Mapping[str, str], weights: frozenset[str], label: str) -> list[str]:
    """The index's shards, when all of them and no other `model*.safetensors` are there."""
    names = sorted(set(index.values()))
    missing = [name for name in names if name not in weights]
    strays = sorted(name for name in weights.difference(names) if name.startswith("model"))
    if missing:
        advice = "download the missing files"
        if strays:
            advice += f", or remove {INDEX} if {_some(strays)} replaces them"
        raise SourceError(
            "missing-shard",
            f"{label} lacks {len(missing)} of the {len(names)} shards in its index",
            origin=Origin(f"{label}/{INDEX}"),
            found=_some(sorted(weights)) if weights else "no safetensors file",
            expected=_some(missing),
            help=advice,
        )
    if strays:
        raise SourceError(
            "stray-shard",
            f"{label} holds weights that its index does not name",
            origin=Origin(f"{label}/{INDEX}"),
            found=_some(strays),
            expected=f"no model*.safetensors beside those of the index ({_some(names)})",
            help="remove or rename them: mlx-lm would load them over the model's own tensors",
        )
    return names


def _check_index(
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


def _some(names: Sequence[str] | map[str], limit: int = 6) -> str:
    known = list(names)
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return ", ".join(known[:limit]) + more
