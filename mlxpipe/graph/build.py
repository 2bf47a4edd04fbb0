"""From a plan to a model: bytes to arrays, arrays to layers, layers into the library's model.

Nothing is decided here. Arrays stay lazy until the model is complete; then they are read part by
part, so that peak memory stays near the size of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxpipe.architecture.skeleton import Kind, Module, Skeleton, build_skeleton
from mlxpipe.checkpoint import Checkpoint
from mlxpipe.errors import ExecutionError
from mlxpipe.graph.arrays import (
    EXTRAS,
    Progress,
    cast,
    exact_multipliers,
    final_arrays,
    load_failed,
    own_leaves,
)
from mlxpipe.graph.layers import PackedEmbedding, PackedExperts, PackedLinear, SealedLinear
from mlxpipe.graph.numerics import Numerics
from mlxpipe.graph.recipe import dense_weight
from mlxpipe.plan.plan import Plan
from mlxpipe.quant.modes import Scheme

#: Bytes that are evaluated together while loading: what conversions hold meanwhile is a few times
#: as much.
PART_BYTES = 8 << 20

#: Kinds whose dense layer does what the packed one does.
DENSE_FORMS = frozenset({Kind.LINEAR, Kind.EMBEDDING, Kind.EXPERTS})


def build_model(
    plan: Plan,
    checkpoint: Checkpoint,
    numerics: Numerics,
    progress: Progress | None = None,
) -> Any:
    """The model that a plan describes, its weights in memory.

    Args:
        plan: A sound plan of this checkpoint.
        checkpoint: The open checkpoint.
        numerics: Device, dtype and kernels; `graph.numerics.choose` makes them.
        progress: Told how many bytes are loaded.

    Returns:
        mlx-lm's model in evaluation mode; mlx-vlm's, where the plan has `vision`.

    Raises:
        PlanError: the plan has problems.
        ExecutionError: a tensor cannot be read.
    """
    plan.require_sound()
    dtype = numerics.mlx_dtype
    skeleton = build_skeleton(checkpoint.config.data, vision=plan.vision)
    model = skeleton.model
    arrays = final_arrays(plan, checkpoint, skeleton, lambda module: dtype, progress)
    parameters = {
        name: cast(model, name, array, dtype) for name, array in exact_multipliers(arrays, plan)
    }
    del arrays
    _replace_layers(skeleton, plan, parameters, numerics)
    for part in skeleton.parts_without(plan.parameters):
        setattr(model, part, None)
    model.load_weights(list(parameters.items()), strict=True)
    del parameters
    model.eval()
    _evaluate(model, progress)
    return model


# --- layers ----------------------------------------------------------------------------------


def _replace_layers(
    skeleton: Skeleton, plan: Plan, parameters: dict[str, mx.array], numerics: Numerics
) -> None:
    """Put packed layers into the model, or dense weights into `parameters`."""
    for path, planned in plan.modules.items():
        if planned.landing is None:
            continue
        module = skeleton.modules[path]
        own = own_leaves(path, parameters)
        if numerics.dense and module.kind in DENSE_FORMS:
            dtype = numerics.mlx_dtype or mx.float32
            for leaf in own.keys() - {"weight", "bias"}:
                del parameters[f"{path}.{leaf}"]
            parameters[f"{path}.weight"] = dense_weight(own, planned.landing, dtype)
        else:
            layer = _layer(skeleton, module, planned.landing, own, numerics, seal=plan.vision)
            _put(skeleton.model, path, layer)


def _layer(
    skeleton: Skeleton,
    module: Module,
    scheme: Scheme,
    arrays: dict[str, mx.array],
    numerics: Numerics,
    *,
    seal: bool,
) -> Any:
    rows = numerics.dense_rows.get(scheme.mode)
    match module.kind:
        case Kind.LINEAR:
            linear = SealedLinear if seal and EXTRAS & arrays.keys() else PackedLinear
            return linear(scheme, arrays, rows)
        case Kind.EMBEDDING:
            return PackedEmbedding(scheme, arrays, rows, numerics.mlx_dtype)
        case Kind.EXPERTS:
            return PackedExperts(scheme, arrays, rows)
    return _own_form(_get(skeleton.model, module.path), module, scheme)


def _own_form(layer: Any, module: Module, scheme: Scheme) -> Any:
    """An architecture's own quantised form, for layers that only it knows."""
    try:
        # Not every `to_quantized` knows modes; affine is what those without know.
        mode = {} if scheme.mode == "affine" else {"mode": scheme.mode}
        return layer.to_quantized(group_size=scheme.group_size, bits=scheme.bits, **mode)
    except (TypeError, ValueError) as error:
        raise ExecutionError(
            "no-packed-form",
            f"mlx-lm's {module.class_name} at '{module.path}' has no form for {scheme}",
            found=str(error),
        ) from error


def _get(model: Any, path: str) -> Any:
    for segment in path.split("."):
        model = model[int(segment)] if isinstance(model, list) else model[segment]
    return model


def _put(model: Any, path: str, layer: Any) -> None:
    parent, _, last = path.rpartition(".")
    owner = _get(model, parent) if parent else model
    owner[int(last) if isinstance(owner, list) else last] = layer


# --- evaluation ------------------------------------------------------------------------------


def _evaluate(model: Any, progress: Progress | None) -> None:
    arrays = [array for _, array in tree_flatten(model.parameters())]
    total = sum(array.nbytes for array in arrays)
    done = 0
    for part in _parts(arrays):
        try:
            mx.eval(part)
        except RuntimeError as error:
            raise load_failed(error) from error
        done += sum(array.nbytes for array in part)
        if progress is not None:
            progress(done, total)


def _parts(arrays: list[mx.array]) -> Iterator[list[mx.array]]:
    part: list[mx.array] = []
    size = 0
    for array in arrays:
        part.append(array)
        size += array.nbytes
        if size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part
