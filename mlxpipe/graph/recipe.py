"""Requantising one module, lazily: what the plan's recipe asks for, from MLX's arrays.

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
        Role -> array, not evaluated. The same arrays where the schemes are equal.
    """
    if stored == wanted:
        return dict(arrays)
    dtype = _float_dtype(arrays, stored)
    rest = {role: array for role, array in arrays.items() if role not in WEIGHT_ROLES}
    weight = arrays["weight"] if stored is None else dense_weight(arrays, stored, mx.float32)
    if wanted is None:
        return {**rest, "weight": weight.astype(dtype)}
    packed, *numbers = mx.quantize(weight, wanted.group_size, wanted.bits, mode=wanted.mode)
    numbers = [
        each.astype(dtype) if mx.issubdtype(each.dtype, mx.floating) else each for each in numbers
    ]
    return {**rest, "weight": packed, **dict(zip(("scales", "biases"), numbers, strict=False))}


def dense_weight(arrays: Arrays, scheme: Scheme, dtype: mx.Dtype) -> mx.array:
    """A packed layer's weight [..., o, i], its multiplier and its columns' order included."""
    weight = mx.dequantize(
        arrays["weight"],
        scales=arrays["scales"],
        biases=arrays.get("biases"),
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


def _float_dtype(arrays: Arrays, stored: Scheme | None) -> mx.Dtype:
    """The dtype of the module's own floating-point numbers."""
    numbers = arrays["weight"] if stored is None else arrays.get("biases", arrays["scales"])
    return numbers.dtype if mx.issubdtype(numbers.dtype, mx.floating) else mx.bfloat16
