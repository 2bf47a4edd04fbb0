"""What one entry of a safetensors header may say: dtype, shape, offsets, and the faults.

The dtypes and the checked arithmetic are those of the safetensors library; the limits on dimensions
are MLX's.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

from mlxpipe.checkpoint.json_positions import json_pointer
from mlxpipe.errors import Origin, SourceError, did_you_mean

MAX_OFFSET = 2**63 - 1
MAX_DIMENSION = 2**31 - 1
"""MLX holds a dimension in 32 signed bits and wraps what is larger."""

MAX_RANK = 64

DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
"""Bits of one element of each dtype that safetensors 0.8 knows."""

TENSOR_KEYS = ("dtype", "shape", "data_offsets")
DOWNLOAD = "download the file again: it is damaged, or was not written by a safetensors library"


class Layout(NamedTuple):
    """What dtype and shape imply; `nbytes` is how many bytes they take."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def measure(name: str, dtype: Any, shape: Any, label: str) -> Layout:
    """What the declared dtype and shape of a tensor imply.

    Raises:
        TypeError: They are not even a string and a list; `entry_fault` says it properly.
        SourceError: `unknown-dtype` or `bad-shape`.
    """
    if type(dtype) is not str or type(shape) is not list:
        raise TypeError
    if dtype not in DTYPE_BITS:
        raise fault(
            "unknown-dtype",
            f"tensor '{name}' in {label} has an unknown dtype '{_clip(dtype)}'",
            label,
            tensor=name,
            expected="one of " + ", ".join(DTYPE_BITS),
            help=did_you_mean(dtype[:32], DTYPE_BITS)
            or "the file may be newer than this version of mlxpipe knows, or damaged",
        )
    problem = _shape_problem(shape, DTYPE_BITS[dtype])
    if problem:
        raise fault(
            "bad-shape",
            f"tensor '{name}' in {label} has an impossible shape: {problem}",
            label,
            tensor=name,
            found=f"{dtype} {short(shape)}",
        )
    return Layout(dtype, tuple(shape), prod(shape) * DTYPE_BITS[dtype] // 8)


def _shape_problem(shape: list[Any], bits: int) -> str:
    if len(shape) > MAX_RANK:
        return f"more than {MAX_RANK} dimensions"
    if not all(type(size) is int for size in shape):
        return "a dimension is not an integer"
    if any(size < 0 for size in shape):
        return "a dimension is negative"
    if any(size > MAX_DIMENSION for size in shape):
        return "a dimension is above 2^31 - 1, which MLX cannot hold"
    # Zeros left out: strides are products too, and overflow all the same.
    if prod(size or 1 for size in shape) * bits > MAX_OFFSET:
        return "its size overflows 63 bits"
    if prod(shape) * bits % 8:
        return f"elements of {bits} bits that do not end on a whole byte"
    return ""


def entry_fault(name: str, entry: Any, label: str) -> SourceError:
    """What is wrong with an entry that did not pass; its dtype and shape may be right or not."""
    if not isinstance(entry, dict) or sorted(entry) != sorted(TENSOR_KEYS):
        return fault(
            "bad-entry",
            f"the entry of tensor '{name}' in {label} is not exactly dtype, shape and data_offsets",
            label,
            tensor=name,
            found=short(entry),
        )
    dtype, shape, span = (entry[key] for key in TENSOR_KEYS)
    if type(dtype) is not str or type(shape) is not list:
        return fault(
            "bad-entry",
            f"the entry of tensor '{name}' in {label} has values of the wrong type",
            label,
            tensor=name,
            found=short(entry),
            expected="dtype a string, shape a list of integers",
        )
    expected = f"two integers, start and stop, {measure(name, dtype, shape, label).nbytes:,} apart"
    return fault(
        "bad-offsets",
        f"tensor '{name}' in {label} has data_offsets that do not fit {dtype} {short(shape)}",
        label,
        tensor=name,
        found=short(span),
        expected=expected,
    )


def fault(
    code: str,
    message: str,
    label: str,
    tensor: str = "",
    found: str = "",
    expected: str = "",
    help: str = DOWNLOAD,
) -> SourceError:
    """A fault of the file `label`, at the header's entry of `tensor`."""
    pointer = json_pointer(tensor) if tensor else ""
    origin = Origin(label, pointer=pointer)
    return SourceError(code, message, origin=origin, found=found, expected=expected, help=help)


def short(value: Any) -> str:
    """The repr of a value out of a file, cut to what a message can hold."""
    return _clip(repr(value))


def _clip(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"
