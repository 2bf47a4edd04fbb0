"""Producers' number formats in MLX's words."""

from __future__ import annotations

from typing import Any, NamedTuple

from mlxpipe.errors import Origin
from mlxpipe.quant.dialects.fields import Fields, malformed, refuse
from mlxpipe.quant.modes import MODES, ROW, Scheme

NVFP4 = Scheme("nvfp4", 4, 16)
MXFP4 = Scheme("mxfp4", 4, 32)
MXFP8 = Scheme("mxfp8", 8, 32)

#: E4M3 codes under scales that are no powers of two; the scale goes to the layer's output.
FP8 = Scheme("mxfp8", 8, 32)
FP8_TENSOR = "FP8, one scale per tensor"
FP8_ROW = "FP8, one scale per row"

#: How producers spell the two fields.
BITS = ("bits", "w_bit", "num_bits")
SIZES = ("group_size", "q_group_size")

#: From here on, producers mean "not quantised".
DENSE_BITS = 16


def fp8_blocks(rows: int, columns: int) -> str:
    """The note for FP8 with a scale per block."""
    return f"FP8 in blocks of {rows}×{columns}"


def pair(value: Any) -> tuple[int, int] | None:
    """A list of two positive whole numbers, or of their digits; None for anything else."""
    if not isinstance(value, list) or len(value) != 2:
        return None
    numbers = [int(each) if _is_digits(each) else each for each in value]
    if any(isinstance(each, bool) or not isinstance(each, int) or each < 1 for each in numbers):
        return None
    return numbers[0], numbers[1]


def whole_blocks(block: tuple[int, int], origin: Origin) -> tuple[int, int]:
    """The block, if the shape of the scales can tell its size.

    Raises:
        UnreadableError: a side that is no power of two; nobody is known to write such blocks.
    """
    if all(side & (side - 1) == 0 for side in block):
        return block
    raise refuse(
        "unsupported-block-size",
        "blocks whose sides are no powers of two are not supported",
        origin,
        found=f"{block[0]}×{block[1]}",
        expected="such as 128×128",
        help="quantise the unquantised checkpoint with other blocks",
    )


def _is_digits(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 7


class Integers(NamedTuple):
    """Integer codes as a producer declares them: `group_size` -1 is a whole row."""

    bits: int
    group_size: int


def read_integers(fields: Fields, top: Integers | None = None) -> Integers:
    """Bits and group size, each inherited from `top` where it is omitted."""
    bits, size = fields.key(*BITS), fields.key(*SIZES)
    for flag in ("sym", "desc_act"):
        fields.flag(flag)
    if top is None:
        return Integers(fields.integer(bits), fields.integer(size))
    return Integers(fields.integer(bits, top.bits), fields.integer(size, top.group_size))


def inherited(fields: Fields, *keys: str) -> str:
    """A note on what an override leaves to the top scheme."""
    left = [key for key in keys if not fields.has(key)]
    return f"{' and '.join(left)} as in the top scheme" if left else ""


def affine(integers: Integers, fields: Fields) -> Scheme | None:
    """The scheme of integer codes, None for dense; `fields` is where they are declared."""
    bits, size = integers
    if bits >= DENSE_BITS:
        return None
    if bits not in MODES["affine"].bits:
        allowed = " ".join(str(each) for each in MODES["affine"].bits)
        raise refuse(
            "unsupported-bits",
            f"MLX has no {bits}-bit integers",
            _place(fields, *BITS),
            found=str(bits),
            expected=f"one of {allowed}, or {DENSE_BITS} and more for dense",
            help="convert the unquantised checkpoint with other bits",
        )
    if size != -1 and size < 1:
        origin = _place(fields, *SIZES)
        raise malformed(origin, "group_size", size, "a positive number, or -1 for whole rows")
    return Scheme("affine", bits, ROW if size == -1 else size)


def _place(fields: Fields, *names: str) -> Origin:
    """Where a field is; the mapping where it is inherited."""
    key = fields.key(*names)
    return fields.at(key) if fields.has(key) else fields.at()
