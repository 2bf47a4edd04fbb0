"""Producers' bytes as MLX's arrays, lazily, one function for each row of `quant.layouts`.

Every function takes the group's arrays by role and a `Packing`, and gives the parameters of a
packed layer: weight U32, scales, and where there are biases, multiplier and permutation. Shapes are
for W[o, i]; experts have a leading axis E on everything. Nothing is computed until MLX evaluates
the result, so memory stays bounded by one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from mlxpipe.quant.layouts import block_size
from mlxpipe.quant.modes import ROW, Scheme

Arrays = Mapping[str, mx.array]

WORD = 32
BYTE = 8

#: Where AWQ puts the eight 4-bit codes of a word: code k is in nibble AWQ_ORDER[k].
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)

#: E8M0 for 2^0.
E8M0_ONE = 127

#: What GPTQ's first format leaves off its zero points.
GPTQ_V1_OFFSET = 1


@dataclass(frozen=True, slots=True)
class Packing:
    """What the plan decided about a group.

    Attributes:
        scheme: What the checkpoint has.
        landing: What MLX computes, None for a dense weight.
        variant: The declared variant of the layout, "" where there is none.
        in_features: Columns of the logical weight.
        dtype: What offsets and dense weights are rounded to; None: the producer's 16 bits.
        exact: Whether the landing holds the values; if not, they are requantised to it.
    """

    scheme: Scheme
    landing: Scheme | None
    variant: str
    in_features: int
    dtype: mx.Dtype | None = None
    exact: bool = True


# --- bits ------------------------------------------------------------------------------------


def unpack(words: mx.array, bits: int, count: int) -> mx.array:
    """The first `count` codes of an LSB-first stream: U32 [..., n] -> U8 [..., count]."""
    if BYTE % bits == 0:
        return _split_bytes(words.view(mx.uint8), bits)[..., :count]
    start = mx.arange(count, dtype=mx.uint32) * bits
    low, shift = start // WORD, start % WORD
    high = mx.minimum(low + 1, words.shape[-1] - 1)
    wide = words.astype(mx.uint64)
    pair = wide[..., low] | (wide[..., high] << 32)
    return ((pair >> shift.astype(mx.uint64)) & ((1 << bits) - 1)).astype(mx.uint8)


def pack(codes: mx.array, bits: int) -> mx.array:
    """Codes as an LSB-first stream: U8 [..., i] -> U32 [..., i * bits / 32].

    i * bits must be a multiple of 32, and i of 32 where codes cross bytes.
    """
    codes = codes.astype(mx.uint8)
    if BYTE % bits == 0:
        return _join_bytes(codes, bits).view(mx.uint32)
    # Eight codes fill `bits` bytes exactly: lay their bits out, then gather eight to a byte.
    places = mx.arange(bits, dtype=mx.uint8)
    single = (codes[..., None] >> places) & 1
    return _join_bytes(single.flatten(-2), 1).view(mx.uint32)


def _split_bytes(stream: mx.array, bits: int) -> mx.array:
    """U8 [..., n] -> codes U8 [..., n * 8 / bits]; everything stays in bytes, to spare memory."""
    shifts = mx.arange(BYTE // bits, dtype=mx.uint8) * bits
    return ((stream[..., None] >> shifts) & ((1 << bits) - 1)).flatten(-2)


def _join_bytes(codes: mx.array, bits: int) -> mx.array:
    """Codes U8 [..., i] -> U8 [..., i * bits / 8]."""
    count = BYTE // bits
    joined = codes[..., 0::count]
    for place in range(1, count):
        joined = joined | (codes[..., place::count] << (place * bits))
    return mx.contiguous(joined)


# --- affine ----------------------------------------------------------------------------------


def _affine(
    weight: mx.array, scales: mx.array, zero_points: mx.array, packing: Packing
) -> dict[str, mx.array]:
    """Codes q with (q - z)·s as MLX's s·q + β, β = -z·s, on groups that a kernel has."""
    assert packing.landing is not None
    biases = -(zero_points.astype(mx.float32) * scales.astype(mx.float32))
    size = packing.in_features if packing.scheme.group_size == ROW else packing.scheme.group_size
    repeats = size // packing.landing.group_size
    # Both in one dtype, or MLX would promote its results.
    dtype = packing.dtype or scales.dtype
    triple = {"weight": weight, "scales": scales.astype(dtype), "biases": biases.astype(dtype)}
    if repeats > 1:
        triple["scales"] = mx.repeat(triple["scales"], repeats, axis=-1)
        triple["biases"] = mx.repeat(triple["biases"], repeats, axis=-1)
    return triple


def packed_integers(arrays: Arrays, packing: Packing) -> dict[str, mx.array]:
    """weight I32 [o, i·b/32], scales [o, groups], zero_points I32 [o·b/32, groups] if asymmetric.

    The zero points are packed along their first axis, so they are unpacked transposed.
    """
    bits, scales = packing.scheme.bits, arrays["scales"]
    if "zero_points" in arrays:
        words = mx.contiguous(arrays["zero_points"].swapaxes(-1, -2)).view(mx.uint32)
        zero_points = _unpack_exactly(words, bits, scales.shape[-2]).swapaxes(-1, -2)
    else:
        zero_points = mx.full(scales.shape, 1 << (bits - 1), dtype=mx.uint32)
    triple = _affine(arrays["weight"].view(mx.uint32), scales, zero_points, packing)
    # The producer's tools take an order with -1 in it as one that was never set.
    if "order" in arrays and not (arrays["order"] == -1).any().item():
        return reorder(triple, arrays["order"], packing)
    return triple


def plain_integers(arrays: Arrays, packing: Packing) -> dict[str, mx.array]:
    """weight I8 [o, i] with scales [o, groups] and zero_points I8 of the same shape or none.

    Flipping the sign bit adds 128, which the offset takes away again.
    """
    scales = arrays["scales"]
    zero_points = mx.full(scales.shape, 128, dtype=mx.float32)
    if "zero_points" in arrays:
        zero_points = zero_points + arrays["zero_points"].astype(mx.float32)
    codes = arrays["weight"].view(mx.uint8) ^ 128
    return _affine(codes.view(mx.uint32), scales, zero_points, packing)


def gptq(arrays: Arrays, packing: Packing) -> dict[str, mx.array]:
    """weight I32 [i·b/32, o], zero_points I32 [groups, o·b/32], scales [groups, o], order [i].

    The first format stores z - 1, in which 0 wraps around; `gptq_v2` has the true z.
    """
    bits = packing.scheme.bits
    weight = mx.contiguous(arrays["weight"].swapaxes(-1, -2)).view(mx.uint32)
    scales = mx.contiguous(arrays["scales"].swapaxes(-1, -2))
    words = arrays["zero_points"].view(mx.uint32)
    zero_points = _unpack_exactly(words, bits, scales.shape[-2]).swapaxes(-1, -2)
    if packing.variant != "gptq_v2":
        zero_points = (zero_points + GPTQ_V1_OFFSET) & ((1 << bits) - 1)
    triple = _affine(weight, scales, zero_points, packing)
    if "order" in arrays:
        return reorder(triple, arrays["order"], packing)
    return triple


def _unpack_exactly(words: mx.array, bits: int, count: int) -> mx.array:
    """As `unpack`, where the words must be those of `count` codes."""
    wanted = -(-count * bits // WORD)
    if words.shape[-1] != wanted:
        raise ValueError(
            f"{count} zero points of {bits} bits take {wanted} words, there are {words.shape[-1]}"
        )
    return unpack(words, bits, count)


def awq(arrays: Arrays, packing: Packing) -> dict[str, mx.array]:
    """weight I32 [i, o/8], zero_points I32 [groups, o/8], scales [groups, o]; 4 bits."""
    weight = pack(mx.contiguous(_awq_codes(arrays["weight"]).swapaxes(-1, -2)), 4)
    scales = mx.contiguous(arrays["scales"].swapaxes(-1, -2))
    zero_points = _awq_codes(arrays["zero_points"]).swapaxes(-1, -2)
    return _affine(weight, scales, zero_points, packing)


def _awq_codes(words: mx.array) -> mx.array:
    """I32 [..., n] -> codes U8 [..., 8n] in their logical order."""
    nibbles = _split_bytes(words.view(mx.uint8), 4)
    grouped = nibbles.reshape(*words.shape, len(AWQ_ORDER))
    return grouped[..., mx.array(AWQ_ORDER)].flatten(-2)


def reorder(triple: dict[str, mx.array], order: mx.array, packing: Packing) -> dict[str, mx.array]:
    """Columns sorted by their group, with the permutation that inputs then need.

    `order` [i] is the group of each column. Where it is i // group_size it says nothing and goes.
    It is the one thing read here before the graph is complete: i numbers.
    """
    groups = order.astype(mx.int32)
    if order.shape[-1] != packing.in_features:
        raise ValueError(
            f"its activation order is of {order.shape[-1]} columns, not {packing.in_features}"
        )
    size = packing.in_features if packing.scheme.group_size == ROW else packing.scheme.group_size
    trivial = mx.arange(packing.in_features, dtype=mx.int32) // size
    if mx.array_equal(groups, mx.broadcast_to(trivial, groups.shape)).item():
        return triple
    if groups.ndim > 1:
        raise ValueError("experts with an activation order of their own have no MLX form")
    permutation = mx.argsort(groups)
    if not mx.array_equal(groups[permutation], trivial).item():
        raise ValueError("its activation order has groups of unequal size")
    codes = unpack(triple["weight"], packing.scheme.bits, packing.in_features)
    weight = pack(codes[..., permutation], packing.scheme.bits)
    return {**triple, "weight": weight, "permutation": permutation}


# --- floating point --------------------------------------------------------------------------


def packed_float4(arrays: Arrays, packing: Packing) -> dict[str, mx.array]:
    """weight U8 [o, i/2], scales E4M3 or E8M0 [o, groups]; a multiplier or divisor for nvfp4."""
    triple = {
        "weight": arrays["weight"].view(mx.uint32),
        "scales": arrays["scales"],
    }
    if "multiplier" in arrays:
        triple["multiplier"] = _per_tensor(arrays["multiplier"], arrays["weight"])
    if "divisor" in arrays:
        divisor = _per_tensor(arrays["divisor"], arrays["weight"])
        triple["multiplier"] = 1.0 / divisor.astype(mx.float32)
    return triple


def _per_tensor(factor: mx.array, weight: mx.array) -> mx.array:
    """[] or [1] as []; for experts [E] or [E, 1] as [E]."""
    return factor.reshape(weight.shape[:-2])


def float8(arrays: Arrays, packing: Packing) -> dict[str, mx.array]:
    """weight E4M3 [o, i], scales [], [1], [o] or [o, 1]: mxfp8 of unit scales, times them."""
    weight = arrays["weight"]
    unit = mx.full((*weight.shape[:-1], weight.shape[-1] // WORD), E8M0_ONE, dtype=mx.uint8)
    scales = arrays["scales"]
    lead, rows = weight.shape[:-2], weight.shape[-2]
    per_row = scales.size == rows * _product(lead) and scales.shape != (*lead, 1)
    factor = scales.reshape((*lead, rows) if per_row else lead)
    return {"weight": weight.view(mx.uint32), "scales": unit, "multiplier": factor}


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def float8_blocks(arrays: Arrays, packing: Packing) -> dict[str, mx.array]:
    """weight E4M3 [o, i], scales [⌈o/B⌉, ⌈i/B⌉].

    mxfp8 if the scales are powers of two, else requantised to it or dense, as the plan decided.
    """
    weight, scales = arrays["weight"], arrays["scales"]
    if packing.landing is not None and packing.exact:
        return {
            "weight": weight.view(mx.uint32),
            "scales": spread(_exponents(scales), weight.shape, WORD),
        }
    values = mx.from_fp8(weight, dtype=mx.float32) * spread(
        _scales_as_float(scales), weight.shape, 1
    )
    if packing.landing is not None:
        to = packing.landing
        packed = mx.quantize(values, to.group_size, to.bits, mode=to.mode)
        return {"weight": packed[0], "scales": packed[1]}
    return {"weight": values.astype(packing.dtype or mx.bfloat16)}


def _exponents(scales: mx.array) -> mx.array:
    """Powers of two as E8M0 bytes, which they may be already."""
    if scales.dtype == mx.uint8:
        return scales
    return (mx.round(mx.log2(scales.astype(mx.float32))) + E8M0_ONE).astype(mx.uint8)


def _scales_as_float(scales: mx.array) -> mx.array:
    """E8M0 bytes as numbers, others in float32."""
    if scales.dtype == mx.uint8:
        return mx.power(2.0, scales.astype(mx.float32) - E8M0_ONE)
    return scales.astype(mx.float32)


def spread(blocks: mx.array, shape: tuple[int, ...], step: int) -> mx.array:
    """A value per block as one per row and `step` columns: [⌈o/B⌉, ⌈i/B⌉] -> [o, i/step]."""
    rows, columns = shape[-2], shape[-1]
    tall, wide = block_size(rows, blocks.shape[-2]), block_size(columns, blocks.shape[-1])
    if tall is None or wide is None:
        raise ValueError(f"no blocks of a power of two give scales {blocks.shape[-2:]}")
    full = mx.repeat(mx.repeat(blocks, tall, axis=-2), max(1, wide // step), axis=-1)
    return full[..., :rows, : columns // step]


CONVERTERS: Mapping[str, Callable[[Arrays, Packing], dict[str, mx.array]]] = {
    "packed_integers": packed_integers,
    "plain_integers": plain_integers,
    "packed_float4": packed_float4,
    "float8": float8,
    "float8_blocks": float8_blocks,
    "awq": awq,
    "gptq": gptq,
}
