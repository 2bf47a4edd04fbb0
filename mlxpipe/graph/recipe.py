"""Requantising one module: what the plan's recipe asks for, from MLX's arrays.

A dense weight is quantised as `mlx_lm.convert` does it: in the dtype that the checkpoint has. A
packed one is dequantised in float32, its tensor scale and its columns' order included, and the new
scales and offsets get the dtype that the old ones had (bfloat16 where they were bytes), so that
what is computed here is what an export would hold.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from mlxpipe.quant.modes import Scheme

Arrays = Mapping[str, mx.array]

#: Weights that are quantised together. Without a GPU MLX's one-byte modes take up to 76 bytes for
#: each meanwhile (`tests/benchmarks/quantising.py`), so a whole module at once would take too much.
SLICE_WEIGHTS = 1 << 20

#: Roles that the weight's new form replaces; others, such as the layer's bias, stay.
WEIGHT_ROLES = frozenset({"weight", "scales", "biases", "multiplier", "permutation"})


def apply(arrays: Arrays, stored: Scheme | None, wanted: Scheme | None) -> dict[str, mx.array]:
    """One module's arrays under another scheme.

    Args:
        arrays: Role -> array of a layer in MLX's terms: weight [..., o, i], dense or packed, with
            scales, biases, multiplier and permutation where there are; other roles pass through.
        stored: How the weight is packed, None for a dense one.
        wanted: How it shall be packed, None for a dense one.

    Returns:
        Role -> array; the same arrays where the schemes are equal, a new weight and its
        companions evaluated otherwise.
    """
    if stored == wanted:
        return dict(arrays)
    dtype = _float_dtype(arrays, stored)
    rest = {role: array for role, array in arrays.items() if role not in WEIGHT_ROLES}
    weight = arrays["weight"] if stored is None else dense_weight(arrays, stored, mx.float32)
    if wanted is None:
        dense = weight.astype(dtype)
        mx.eval(dense)
        return {**rest, "weight": dense}
    return {**rest, **quantise(weight, wanted, dtype)}


def quantise(weight: mx.array, scheme: Scheme, dtype: mx.Dtype) -> dict[str, mx.array]:
    """A dense weight [..., o, i] packed: weight, scales, and biases where the mode has them.

    Scales and offsets are of `dtype`, unless the mode's scales are bytes.
    """
    *lead, width = weight.shape
    rows = weight.reshape(-1, width)
    step = max(1, SLICE_WEIGHTS // width)
    slices = [_pack(rows[start : start + step], scheme) for start in range(0, len(rows), step)]
    joined = [mx.concatenate(list(each)).reshape(*lead, -1) for each in zip(*slices, strict=True)]
    made = [_cast(array, dtype) for array in joined]
    mx.eval(made)
    return dict(zip(("weight", "scales", "biases"), made, strict=False))


def _pack(rows: mx.array, scheme: Scheme) -> list[mx.array]:
    parts: list[mx.array] = list(
        mx.quantize(rows, scheme.group_size, scheme.bits, mode=scheme.mode)
    )
    # At once: left to itself MLX would hold what every slice needs meanwhile.
    mx.eval(parts)
    return parts


def dense_weight(arrays: Arrays, scheme: Scheme, dtype: mx.Dtype) -> mx.array:
    """A packed layer's weight [..., o, i], its multiplier and its columns' order included."""
    # MLX computes in the dtype of the scales, whatever it is asked to return.
    scales, biases = _cast(arrays["scales"], dtype), arrays.get("biases")
    weight = mx.dequantize(
        arrays["weight"],
        scales=scales,
        biases=None if biases is None else _cast(biases, dtype),
        group_size=scheme.group_size,
        bits=scheme.bits,
        mode=scheme.mode,
        dtype=dtype,
    )
    factor = arrays.get("multiplier")
    if factor is not None:
        weight = weight * factor.reshape(*factor.shape, *[1] * (weight.ndim - factor.ndim))
    if "permutation" in arrays:
        weight = weight[..., mx.argsort(arrays["permutation"])]
    return weight.astype(dtype)


def _cast(array: mx.array, dtype: mx.Dtype) -> mx.array:
    """Floating-point numbers in another dtype; codes and scales of one byte as they are."""
    return array.astype(dtype) if mx.issubdtype(array.dtype, mx.floating) else array


def _float_dtype(arrays: Arrays, stored: Scheme | None) -> mx.Dtype:
    """The dtype of the module's own floating-point numbers."""
    numbers = arrays["weight"] if stored is None else arrays.get("biases", arrays["scales"])
    return numbers.dtype if mx.issubdtype(numbers.dtype, mx.floating) else mx.bfloat16
