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
from pathlib import Path
from types import MappingProxyType

from mlxpipe.checkpoint.files import collector_paused, unreadable
from mlxpipe.checkpoint.header import Header, read_header
from mlxpipe.checkpoint.index import (
    INDEX,
    SAFETENSORS,
    check_index,
    is_plain,
    read_index,
    shards_of,
    some,
)
from mlxpipe.checkpoint.inventory import Checkpoint, Kind, Shard, Tensor, gather
from mlxpipe.errors import Origin, SourceError, did_you_mean

_NUMBERED = re.compile(r"model-(\d{1,9})-of-(\d{1,9})\.safetensors")
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
        opened = _numbered(root, label, weights, files) or _chosen(root, label, weights, files)
    names, headers, tensors = opened
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


#: File names of the shards, their headers, and all tensors by name.
_Opened = tuple[Sequence[str], list[Header], Mapping[str, Tensor]]


def _numbered(
    root: Path, label: str, weights: frozenset[str], files: Mapping[str, Path]
) -> _Opened | None:
    """The usual case, at once: the shards are known by their numbers, and the index agrees.

    None where there is no index or anything is unusual; `_chosen` finds out what.
    """
    if INDEX not in files:
        return None
    with suppress(SourceError):
        names, headers, tensors = _open(root, label, _unindexed(weights, label))
        # As a writer fills it shard by shard, or sorted.
        orders = ([row for each in headers for row in each.tensors], tensors.values())
        if names and is_plain(files[INDEX], f"{label}/{INDEX}", names, orders):
            return names, headers, tensors
    return None


def _chosen(root: Path, label: str, weights: frozenset[str], files: Mapping[str, Path]) -> _Opened:
    if INDEX not in files:
        names = _unindexed(weights, label) or _refuse_other(weights, files, root, label)
        return _open(root, label, names)
    index = read_index(files[INDEX], f"{label}/{INDEX}")
    opened = _open(root, label, shards_of(index, weights, label))
    check_index(index, opened[0], opened[2], label)
    return opened


def _open(root: Path, label: str, names: Sequence[str]) -> _Opened:
    labels = [f"{label}/{name}" for name in names]
    headers = [read_header(root / name, labels[i], i) for i, name in enumerate(names)]
    return names, headers, gather(labels, (header.tensors for header in headers))


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
    weights = frozenset(name for name in names if name.endswith(SAFETENSORS))
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
    weights = root.suffix == SAFETENSORS
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
            found=some([*strays, *names]),
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
            found=some(names),
            expected=f"{totals[0]} shards, numbered from 1; missing: {some(map(str, missing))}",
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
            found=some(sorted(weights)),
            expected=f"model.safetensors, numbered shards, or an {INDEX}",
            help="rename the model's files, or give a directory that holds them alone",
        )
    other = sorted(
        entry.name for entry in root.iterdir() if entry.suffix in _OTHER_WEIGHTS and entry.is_file()
    )
    if weights:
        found, advice = some(sorted(weights)), "an adapter is no model: fuse it into its base"
    elif other:
        found, advice = some(other), _OTHER_WEIGHTS[Path(other[0]).suffix]
    else:
        found = some(sorted(files)) if files else "no files"
        advice = "check the path, and whether the download finished"
    raise SourceError(
        "no-weights",
        f"{label} holds no safetensors weights",
        origin=Origin(label),
        found=found,
        expected="model.safetensors or model-*.safetensors; only safetensors is read",
        help=advice,
    )
