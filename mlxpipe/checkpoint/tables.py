"""Small tables that a plan may read: scales of blocks, zero points, norms; never weights."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable

from mlxpipe.checkpoint.inventory import Checkpoint

#: Beyond this many bytes of tables a plan does not look.
LIMIT = 64 << 20

#: dtype -> (bytes of a value, mask of the bits that are not its exponent): a value is a power of
#: two if they are all zero.
_NOT_EXPONENT = {"F32": (4, 0x807FFFFF), "BF16": (2, 0x807F), "F16": (2, 0x83FF)}

#: dtype -> mask of its exponent, which must be neither 0 nor all ones: a normal number.
_EXPONENT = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}

#: How much of packed codes is read, and how many of them must be there to tell anything.
SAMPLE_BYTES = 4096
FEWEST_CODES = 64

#: Codes after which their bits end with a word, whatever their width.
WORD_CODES = 32


def repeated_code(checkpoint: Checkpoint, name: str, bits: int) -> int | None:
    """The one code that the beginning of packed codes repeats.

    Args:
        checkpoint: The open checkpoint.
        name: A tensor of codes, packed contiguously from the lowest bit on.
        bits: The width of a code.

    Returns:
        The code; None where codes differ, or are too few to tell a rule from chance.
    """
    unit = WORD_CODES * bits // 8
    tensor = checkpoint.tensors[name]
    count = min(tensor.nbytes, SAMPLE_BYTES) // unit
    if count * WORD_CODES < FEWEST_CODES:
        return None
    with checkpoint.shards[tensor.shard].path.open("rb") as file:
        file.seek(tensor.start)
        data = file.read(count * unit)
    code = data[0] & ((1 << bits) - 1)
    word = sum(code << (bits * place) for place in range(WORD_CODES)).to_bytes(unit, "little")
    return code if data == word * count else None


def powers_of_two(checkpoint: Checkpoint, names: Iterable[str]) -> bool | None:
    """Whether every value of some tensors is a normal positive power of two.

    Args:
        checkpoint: The open checkpoint.
        names: Tensors of scales.

    Returns:
        The answer; None where the tables are too large to read, or of another dtype. E8M0, which
        some producers write as plain bytes, holds nothing but powers of two.
    """
    tensors = [checkpoint.tensors[name] for name in names]
    if all(tensor.dtype in ("F8_E8M0", "U8") for tensor in tensors):
        return True
    known = all(tensor.dtype in _NOT_EXPONENT for tensor in tensors)
    if not known or sum(tensor.nbytes for tensor in tensors) > LIMIT:
        return None
    for tensor in tensors:
        with checkpoint.shards[tensor.shard].path.open("rb") as file:
            file.seek(tensor.start)
            data = file.read(tensor.nbytes)
        if not _all_powers(data, tensor.dtype):
            return False
    return True


#: dtype -> `struct` code of a value; BF16 is the upper half of F32.
_CODES = {"F32": "f", "F16": "e", "BF16": "f"}

#: Beyond this many bytes a vector is not read.
VECTOR_LIMIT = 1 << 20


def mean(checkpoint: Checkpoint, name: str) -> float | None:
    """The mean of a vector of weights, such as a norm's; None where it is large or
    holds other things than finite floats."""
    tensor = checkpoint.tensors[name]
    if tensor.dtype not in _CODES or not 0 < tensor.nbytes <= VECTOR_LIMIT:
        return None
    with checkpoint.shards[tensor.shard].path.open("rb") as file:
        file.seek(tensor.start)
        data = file.read(tensor.nbytes)
    if tensor.dtype == "BF16":
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
    values = [value for (value,) in struct.iter_unpack("<" + _CODES[tensor.dtype], data)]
    average = math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan
    return average if math.isfinite(average) else None


def _all_powers(data: bytes, dtype: str) -> bool:
    width, rest = _NOT_EXPONENT[dtype]
    exponent = _EXPONENT[dtype]
    values = {data[at : at + width] for at in range(0, len(data), width)}
    numbers = (int.from_bytes(value, "little") for value in values)
    return all(not number & rest and 0 < number & exponent < exponent for number in numbers)
