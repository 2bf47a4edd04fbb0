"""Read and validate the header of a safetensors file, before anything else opens it.

The format is 8 bytes of little-endian header length, a JSON header, then the data; the rules are
those of the safetensors library (`tensor.rs`: limits, checked arithmetic, data contiguous from 0 to
the end of the file), each with an error of its own, plus a few that MLX needs: it wraps dimensions
to 32 bits and checks no offsets.

https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mlxpipe.checkpoint.entry import (
    DOWNLOAD,
    MAX_OFFSET,
    TENSOR_KEYS,
    Layout,
    entry_fault,
    fault,
    measure,
    short,
)
from mlxpipe.checkpoint.files import open_regular, unreadable
from mlxpipe.checkpoint.inventory import Tensor
from mlxpipe.checkpoint.json_positions import second_occurrence
from mlxpipe.errors import Origin, SourceError

MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""

MAX_NAME = 1024

_OTHER_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"version ", "a Git LFS pointer", "fetch the real file: git lfs pull"),
    (b"GGUF", "a GGUF file", "mlxpipe reads safetensors only: download the safetensors model"),
    (b"PK\x03\x04", "a zip or PyTorch file", "convert the model to safetensors"),
    (b"\x80\x02", "a Python pickle", "convert the model to safetensors"),
    (b"<", "a web page", "download the file again, and log in first if the model is gated"),
)
"""First bytes of what stands in the place of a safetensors file: magic, what it is, what to do."""


class Header(NamedTuple):
    """The header of one safetensors file: its tensors in file order, and its size in bytes."""

    metadata: Mapping[str, str]
    tensors: list[Tensor]
    size: int


_tensor = partial(tuple.__new__, Tensor)  # Tensor._make without its Python frame
_START, _STOP = itemgetter(4), itemgetter(5)  # of a Tensor, at C speed


def read_header(path: Path, label: str, shard: int = 0) -> Header:
    """Read and validate the header of a file.

    Args:
        path: The file.
        label: How diagnostics name it.
        shard: The index its tensors will carry.

    Raises:
        SourceError: The file cannot be read, is no safetensors file (`not-safetensors`), or breaks
            a rule of the format: `header-too-small`, `header-too-large`, `header-truncated`,
            `header-not-json`, `duplicate-key`, `bad-metadata`, `bad-name`, `bad-entry`,
            `unknown-dtype`, `bad-shape`, `bad-offsets`, `overlap`, `hole`, `truncated`,
            `trailing-bytes`.
    """
    file, size = open_regular(path, label)
    with file:
        try:
            length = _header_length(file.read(8), size, label)
            raw = file.read(length)
        except OSError as error:
            raise unreadable(label, error) from error
    return parse_header(raw, size, label, shard)


def parse_header(raw: bytes, size: int, label: str, shard: int = 0) -> Header:
    """Validate a header: `raw` is its JSON alone, `size` the bytes of the whole file."""
    members = _load(raw, label)
    keys = len(members)
    metadata = _metadata(members.pop("__metadata__", None), label)
    _check_names(raw, members, label)
    base = 8 + len(raw)
    tensors = _tensors(members, base, label, shard)
    _check_unique(raw, keys + len(TENSOR_KEYS) * len(tensors) + len(metadata), label)
    return Header(metadata, _in_file_order(tensors, base, size, label), size)


def _header_length(prefix: bytes, size: int, label: str) -> int:
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8:
        raise fault(
            "header-too-small",
            f"{label} is too short for a safetensors file",
            label,
            found=f"{size} bytes",
            expected="8 bytes that give the header's length, and the header",
        )
    if length <= min(MAX_HEADER_BYTES, size - 8):
        return length
    for magic, what, advice in _OTHER_FORMATS:
        if prefix.startswith(magic):
            raise fault(
                "not-safetensors",
                f"{label} is {what}, not a safetensors file",
                label,
                found=f"the first bytes {prefix!r}",
                help=advice,
            )
    large = length > MAX_HEADER_BYTES
    raise fault(
        "header-too-large" if large else "header-truncated",
        f"{label} declares a header {'above the limit' if large else 'beyond its own end'}",
        label,
        found=f"a header of {length:,} bytes in a file of {size:,} bytes",
        expected=f"at most {MAX_HEADER_BYTES if large else size - 8:,} bytes",
    )


def _load(raw: bytes, label: str) -> dict[str, Any]:
    reason = "it does not start with '{'"
    if raw[:1] == b"{":
        try:
            members: dict[str, Any] = json.loads(raw.decode("utf-8"))
            return members
        except UnicodeDecodeError as error:
            reason = f"byte {error.start} is not UTF-8"
        except RecursionError:
            reason = "it is nested too deeply"
        except ValueError as error:  # malformed, or a number of thousands of digits
            reason = str(error)
    raise fault(
        "header-not-json",
        f"the header of {label} is not a JSON object: {reason}",
        label,
        found=repr(raw[:40]),
        expected="a JSON object in UTF-8",
    )


def _metadata(value: Any, label: str) -> Mapping[str, str]:
    # MLX writes null where it is given no metadata, and the safetensors library reads it as none.
    if value is None:
        return MappingProxyType({})
    if isinstance(value, dict) and all(type(text) is str for text in value.values()):
        return MappingProxyType(value)
    raise fault(
        "bad-metadata",
        f"the __metadata__ of {label} is not a mapping from string to string",
        label,
        tensor="__metadata__",
        found=short(value),
    )


def _check_names(raw: bytes, members: dict[str, Any], label: str) -> None:
    # JSON has control characters only as escapes, DEL and what is not ASCII apart.
    plain = raw.isascii() and b"\\" not in raw and b"\x7f" not in raw
    if plain and "" not in members and max(map(len, members), default=0) <= MAX_NAME:
        return
    for name in members:
        if not name or len(name) > MAX_NAME or any(map(_is_control, name)):
            raise fault(
                "bad-name",
                f"{label} holds a tensor whose name is empty, too long or has control characters",
                label,
                found=short(name),
                expected=f"1 to {MAX_NAME} printable characters",
            )


def _is_control(character: str) -> bool:
    # C0, C1, line separators, bidirectional overrides, lone surrogates: what garbles a report.
    code = ord(character)
    return code < 32 or 127 <= code < 160 or 0x2028 <= code <= 0x202E or 0xD800 <= code < 0xE000


def _tensors(members: dict[str, Any], base: int, label: str, shard: int) -> list[Tensor]:
    """The tensors in the header's order, each valid in itself; `base` is where the data starts.

    A checkpoint has few layouts and many tensors, so what dtype and shape imply is worked out once.
    The key is a repr, which tells 1 from true and 1.0 where equality does not.
    """
    layouts: dict[str, Layout] = {}
    tensors: list[Tensor] = []
    for name, entry in members.items():
        try:
            start, stop = entry["data_offsets"]
            key = f"{entry['dtype']}{entry['shape']!r}"
            layout = layouts.get(key)
            if layout is None:
                layout = layouts[key] = measure(name, entry["dtype"], entry["shape"], label)
            dtype, shape, nbytes = layout
            sound = stop - start == nbytes and type(start) is type(stop) is int
            sound = sound and len(entry) == 3 and 0 <= start <= MAX_OFFSET
        except (TypeError, ValueError, KeyError):
            sound = False
        if not sound:
            raise entry_fault(name, entry, label)
        tensors.append(_tensor((name, dtype, shape, shard, base + start, base + stop)))
    return tensors


def _check_unique(raw: bytes, keys: int, label: str) -> None:
    """Refuse duplicate keys, given how many keys were parsed.

    A proof by counting: every key in the text has a colon of its own, so as many colons as parsed
    keys leave no room for a duplicate. Having the JSON parser look for them takes two thirds of its
    time again, so it is asked only where a name or the metadata has colons too.
    """
    if raw.count(b":") == keys:
        return
    text = raw.decode("utf-8")
    if not _has_duplicates(text):
        return
    place = second_occurrence(text)
    pointer = place.pointer if place else ""
    raise SourceError(
        "duplicate-key",
        f"the header of {label} has one key twice",
        origin=Origin(label, pointer=pointer),
        found=f"{pointer} a second time",
        expected="each tensor once",
        help=DOWNLOAD,
    )


def _has_duplicates(text: str) -> bool:
    duplicates = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) != len(pairs):
            duplicates.append(True)

    json.loads(text, object_pairs_hook=note)
    return bool(duplicates)


def _in_file_order(tensors: list[Tensor], base: int, size: int, label: str) -> list[Tensor]:
    """The tensors by offset, once it is certain that they cover the file from `base` to `size`."""
    if not _is_contiguous(tensors, base, size):
        tensors = sorted(tensors, key=itemgetter(4, 5, 0))
        if not _is_contiguous(tensors, base, size):
            raise _coverage_fault(tensors, base, size, label)
    return tensors


def _is_contiguous(tensors: list[Tensor], base: int, size: int) -> bool:
    return [base, *map(_STOP, tensors)] == [*map(_START, tensors), size]


def _coverage_fault(tensors: list[Tensor], base: int, size: int, label: str) -> SourceError:
    cursor, last = base, ""
    for tensor in tensors:
        if tensor.start != cursor:
            return _gap_fault(tensor, cursor, last, base, label)
        cursor, last = tensor.stop, tensor.name
    return _end_fault(cursor, size, last, label)


def _gap_fault(tensor: Tensor, cursor: int, last: str, base: int, label: str) -> SourceError:
    overlap = tensor.start < cursor
    after = f"after '{last}'" if last else "at the beginning"
    what = f"overlaps '{last}'" if overlap else f"leaves {tensor.start - cursor:,} bytes {after}"
    return fault(
        "overlap" if overlap else "hole",
        f"tensor '{tensor.name}' in {label} {what}",
        label,
        tensor=tensor.name,
        found=f"data_offsets [{tensor.start - base}, {tensor.stop - base}]",
        expected=f"a start of {cursor - base}: the data is contiguous",
    )


def _end_fault(declared: int, size: int, last: str, label: str) -> SourceError:
    short = declared > size
    return fault(
        "truncated" if short else "trailing-bytes",
        f"{label} is cut off: {declared - size:,} bytes are missing"
        if short
        else f"{label} has {size - declared:,} bytes that belong to no tensor",
        label,
        tensor=last,
        found=f"a file of {size:,} bytes",
        expected=f"{declared:,} bytes" + (f", the end of tensor '{last}'" if last else ""),
    )
