"""Rows of packed layers taken and joined, and packed weights made dense, once they are MLX's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from mlxpipe.graph.recipe import WEIGHT_ROLES, dense_weight
from mlxpipe.naming.groups import Run
from mlxpipe.quant.forms import OUTPUT_AXIS
from mlxpipe.quant.modes import Scheme

Arrays = dict[str, mx.array]

#: multiplier = amax / (largest e4m3 * largest e2m1): how MLX stores nvfp4's tensor scale.
NVFP4_AMAX = 448.0 * 6.0


def take_rows(arrays: Arrays, runs: Sequence[Run]) -> Arrays:
    """The output features of some runs, in their order; () is all of them.

    A multiplier has rows where it is [o] or, of experts, [E, o].
    """
    if not runs:
        return arrays
    return {role: _taken(array, _axis(role, arrays), runs) for role, array in arrays.items()}


def _axis(role: str, arrays: Mapping[str, mx.array]) -> int | None:
    if role == "multiplier" and arrays[role].ndim == arrays["weight"].ndim - 1:
        return -1
    return OUTPUT_AXIS.get(role)


def _taken(array: mx.array, axis: int | None, runs: Sequence[Run]) -> mx.array:
    if axis is None:
        return array
    rest = (slice(None),) * (-axis - 1)
    pieces = [array[(..., slice(*run), *rest)] for run in runs]
    return pieces[0] if len(pieces) == 1 else mx.concatenate(pieces, axis=axis)


def join_rows(parts: Sequence[Arrays]) -> Arrays:
    """Layers [o, …] one below the other; a multiplier of a whole layer becomes one of its rows."""
    if len(parts) == 1:
        return parts[0]
    spread = [_per_row(arrays) for arrays in parts]
    return {
        role: mx.concatenate([arrays[role] for arrays in spread], axis=OUTPUT_AXIS.get(role, -1))
        for role in spread[0]
    }


def _per_row(arrays: Arrays) -> Arrays:
    factor = arrays.get("multiplier")
    if factor is None:
        return arrays
    rows = mx.broadcast_to(factor, arrays["weight"].shape[:-1])
    return {**arrays, "multiplier": rows}


def unpacked(arrays: Arrays, scheme: Scheme, dtype: mx.Dtype | None) -> Arrays:
    """The dense weight [..., o, i] of MLX's arrays; roles that are no part of it stay.

    Args:
        arrays: Role -> array: weight, scales; biases, multiplier or amax, permutation.
        scheme: How the weight is packed.
        dtype: Of the result; None: bfloat16.
    """
    factors = {}
    if "amax" in arrays:
        factors = {"multiplier": arrays["amax"].astype(mx.float32) / NVFP4_AMAX}
    weight = dense_weight(arrays | factors, scheme, mx.float32)
    rest = {role: array for role, array in arrays.items() if role not in WEIGHT_ROLES | {"amax"}}
    return {**rest, "weight": weight.astype(dtype or mx.bfloat16)}
