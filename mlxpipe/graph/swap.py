"""One module of a loaded model under another scheme, for as long as it is looked at.

What stands in its place is what the model would have there, had a rule of `quantize` said so; so
what is measured with it is what that rule gives.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx.utils import tree_unflatten

from mlxpipe.architecture.lineage import DTYPES
from mlxpipe.graph.layers import PackedEmbedding, PackedExperts, PackedLinear
from mlxpipe.graph.numerics import Numerics
from mlxpipe.graph.recipe import WEIGHT_ROLES, dense_weight, quantise
from mlxpipe.plan.plan import PlannedModule
from mlxpipe.quant.modes import Scheme

#: Kinds of modules that have a packed form of ours.
KINDS = frozenset({"linear", "embedding", "experts"})


@contextmanager
def swapped(model: Any, layers: Mapping[str, Any]) -> Iterator[None]:
    """While inside, the model has other layers at some paths."""
    modules = dict(model.named_modules())
    before = {path: modules[path] for path in layers}
    try:
        model.update_modules(tree_unflatten(list(layers.items())))
        yield
    finally:
        model.update_modules(tree_unflatten(list(before.items())))


def requantised(layer: Any, module: PlannedModule, wanted: Scheme, numerics: Numerics) -> Any:
    """A layer like `layer` whose weight is packed as `wanted`; of a kind in `KINDS`.

    Args:
        layer: What a loaded model has for the module.
        module: Its plan, of which no recipe changed anything.
        wanted: Another scheme; its group size divides the width.
        numerics: Those that the model was loaded with.
    """
    packed_already = "scales" in layer
    stored = module.landing if packed_already else None
    weight = layer["weight"] if stored is None else dense_weight(layer, stored, mx.float32)
    made = quantise(weight, wanted, _own_dtype(module))
    dtype = numerics.mlx_dtype
    made = {role: _cast(array, dtype) for role, array in made.items()}
    if numerics.dense:
        other = copy.copy(layer)
        other.weight = dense_weight(made, wanted, dtype or mx.float32)
        return other
    rest = {role: array for role, array in _arrays(layer).items() if role not in WEIGHT_ROLES}
    rows = numerics.dense_rows.get(wanted.mode)
    if module.kind == "embedding":
        return PackedEmbedding(wanted, {**rest, **made}, rows, dtype)
    form = PackedExperts if module.kind == "experts" else PackedLinear
    return form(wanted, {**rest, **made}, rows)


def _arrays(layer: Any) -> dict[str, mx.array]:
    return {name: value for name, value in layer.items() if isinstance(value, mx.array)}


def _cast(array: mx.array, dtype: mx.Dtype | None) -> mx.array:
    if dtype is None or not mx.issubdtype(array.dtype, mx.floating):
        return array
    return array.astype(dtype)


def _own_dtype(module: PlannedModule) -> mx.Dtype:
    """The dtype of the module's own floating-point numbers, as `graph.recipe` takes it."""
    evidence = module.verdict.evidence
    array = evidence.weight if evidence.dense else evidence.biases
    return mx.bfloat16 if array is None else DTYPES[array.dtype]
