"""From a plan to arrays: every parameter of the planned model by its name, lazy.

Bytes become MLX's arrays here, the architecture's `sanitize` renames and stacks them, and a recipe
makes something else of them. Loading and exporting share this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

import mlx.core as mx

from mlxpipe.architecture.skeleton import Skeleton
from mlxpipe.checkpoint import Checkpoint
from mlxpipe.errors import ExecutionError
from mlxpipe.graph.cuts import NVFP4_AMAX, join_rows, take_rows, unpacked
from mlxpipe.graph.layouts import CONVERTERS, Packing
from mlxpipe.graph.on_demand import OnDemandFile
from mlxpipe.graph.recipe import apply
from mlxpipe.naming.groups import Group, Part
from mlxpipe.plan.plan import AS_STORED, PLUS_ONE, TURNED, Parameter, Plan, PlannedModule
from mlxpipe.quant.layouts import LAYOUTS, LOSSY, PACKED_ROLES, landing

#: The leaf of MLX's own tensor scale, an amax.
AMAX = "global_scale"

#: How many files are kept open; those of a store with more blobs are opened for each read.
OPEN_FILES = 128

#: Parameters of a packed layer.
PACKED_LEAVES = ("weight", "scales", "biases", "bias", "multiplier", "permutation")

#: Those that no architecture knows.
EXTRAS = frozenset({"multiplier", "permutation"})

#: `Parameter.instead` -> what makes the parameter of its tensor.
INSTEAD: Mapping[str, Callable[[mx.array], mx.array]] = {
    AS_STORED: lambda array: array,
    PLUS_ONE: lambda array: array + 1.0,
    TURNED: lambda array: array.moveaxis(2, 1),
}

#: Layouts whose conversion gives a dense weight by itself.
DENSE_LAYOUTS = frozenset(row.name for row in LAYOUTS if row.grade == LOSSY)

#: Called with (bytes loaded, bytes in all).
Progress = Callable[[int, int], None]

#: A module -> the dtype that its conversion rounds to; None: the producer's 16 bits.
Rounding = Callable[[PlannedModule], mx.Dtype | None]


def final_arrays(
    plan: Plan,
    checkpoint: Checkpoint,
    skeleton: Skeleton,
    rounding: Rounding,
    progress: Progress | None = None,
) -> dict[str, mx.array]:
    """Every parameter of the planned model by its name, lazy but for what a recipe makes.

    Args:
        plan: A sound plan of this checkpoint.
        checkpoint: The open checkpoint.
        skeleton: The architecture, for its `sanitize`.
        rounding: What conversions round to.
        progress: Told of the bytes that a recipe made.

    Returns:
        Name -> array in the dtype that the checkpoint, a conversion or the recipe gives it.
        Multipliers and permutations stand beside the weights that need them.

    Raises:
        ExecutionError: a shard cannot be read, or a module cannot be converted.
    """
    arrays, extras = _canonical_arrays(plan, checkpoint, rounding)
    # Its own dictionary and arrays: a `sanitize` may take out what it has seen, or add in place.
    own = {name: array.reshape(array.shape) for name, array in arrays.items()}
    outputs = skeleton.sanitize(own) if skeleton.sanitize else arrays
    parameters = {each.name: _final(each, outputs, arrays) for each in plan.parameters.values()}
    parameters |= extras
    _apply_recipe(plan, parameters, progress)
    return parameters


def _canonical_arrays(
    plan: Plan, checkpoint: Checkpoint, rounding: Rounding
) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """What `sanitize` is given, and what goes to our layers past it: name -> lazy array.

    An architecture knows nothing of multipliers and permutations, so a `sanitize` that stacks or
    renames its weights might lose them.
    """
    wanted = {
        name for group in plan.groups.values() for role in group.parts for name in group.names(role)
    }
    tensors = open_tensors(checkpoint, wanted)
    modules = {
        module.group: module
        for module in plan.modules.values()
        if module.scheme is not None and (module.layout in CONVERTERS or module.converted is None)
    }
    arrays: dict[str, mx.array] = {}
    extras: dict[str, mx.array] = {}
    for group in plan.groups.values():
        module = modules.get(group.path)
        # A recipe starts from the checkpoint's own numbers, whatever the activations are.
        dtype = None if module is None or module.changed else rounding(module)
        parts = group_arrays(group, module, tensors, dtype)
        if module is not None:
            for leaf in EXTRAS & parts.keys():
                extras[f"{module.path}.{leaf}"] = parts.pop(leaf)
        arrays |= {group.canonical(role): array for role, array in parts.items()}
    return arrays, extras


def group_arrays(
    group: Group,
    module: PlannedModule | None,
    tensors: Mapping[str, mx.array],
    dtype: mx.Dtype | None,
) -> dict[str, mx.array]:
    """A group in MLX's layout: converted first, then cut, because producers pack along any axis."""
    parts = {role: _assemble(part, tensors) for role, part in group.parts.items()}
    if module is not None:
        parts = _convert(module, parts, dtype)
    own = take_rows(parts, group.rows)
    others = [group_arrays(other, module, tensors, dtype) for other in group.others]
    return join_rows([own, *others])


def _convert(
    module: PlannedModule, parts: dict[str, mx.array], dtype: mx.Dtype | None
) -> dict[str, mx.array]:
    """A producer's arrays as MLX's; roles that the layout does not take stay."""
    evidence = module.verdict.evidence
    assert module.scheme is not None and evidence.in_features is not None
    made_dense = module.converted is None and module.layout not in DENSE_LAYOUTS
    landed = landing(module.scheme, evidence.in_features) if made_dense else module.converted
    packing = Packing(
        module.scheme,
        landed,
        module.variant,
        evidence.in_features,
        dtype,
        exact=module.converted_grade != LOSSY,
    )
    rest = {role: array for role, array in parts.items() if role not in PACKED_ROLES}
    try:
        converter = CONVERTERS.get(module.layout)
        triple = {**rest, **converter(parts, packing)} if converter else parts
        return unpacked(triple, landed, dtype) if made_dense and landed else triple
    except ValueError as error:
        raise ExecutionError(
            "unconvertible",
            f"'{module.path}' cannot be converted to MLX's layout",
            found=str(error),
        ) from error


def open_tensors(checkpoint: Checkpoint, wanted: Set[str]) -> dict[str, mx.array]:
    """Lazy arrays by name, also where a store has more blobs than files may be open."""
    shards = {checkpoint.tensors[name].shard for name in wanted}
    many = len(shards) > OPEN_FILES
    tensors: dict[str, mx.array] = {}
    for number in sorted(shards):
        shard = checkpoint.shards[number]
        try:
            source: Any = OnDemandFile(shard.path) if many else str(shard.path)
            loaded: Any = mx.load(source, format="safetensors")
        except (OSError, RuntimeError) as error:
            raise ExecutionError(
                "unreadable-shard", f"MLX cannot read {shard.label}", found=str(error)
            ) from error
        tensors.update((name, array) for name, array in loaded.items() if name in wanted)
    return tensors


def _assemble(part: Part, tensors: Mapping[str, mx.array]) -> mx.array:
    if part.stacked:
        return mx.stack([tensors[name] for name in part.names])
    return tensors[part.names[0]]


def _final(
    parameter: Parameter, outputs: Mapping[str, mx.array], arrays: Mapping[str, mx.array]
) -> mx.array:
    """What `sanitize` made, or what the plan wants instead."""
    if not parameter.instead:
        return outputs[parameter.output]
    return INSTEAD[parameter.instead](arrays[parameter.inputs[0]])


def cast(model: Any, name: str, array: mx.array, dtype: mx.Dtype | None) -> mx.array:
    """The array in the activations' dtype, unless it holds codes or must stay precise.

    An architecture's `cast_predicate` names what 16 bits would harm; so they would a multiplier.
    """
    if dtype is None or not mx.issubdtype(array.dtype, mx.floating):
        return array
    if name.rpartition(".")[2] in EXTRAS:
        return array
    keeps = getattr(model, "cast_predicate", None)
    if dtype != mx.float32 and keeps is not None and not keeps(name):
        return array
    return array.astype(dtype)


def multiplier_of(amax: mx.array) -> mx.array:
    """The float32 factor that MLX's `global_scale` stands for."""
    return amax.astype(mx.float32) / NVFP4_AMAX


def exact_multipliers(
    parameters: Mapping[str, mx.array], plan: Plan
) -> Iterator[tuple[str, mx.array]]:
    """MLX's `global_scale`, an amax, as the multiplier that it stands for."""
    for name, array in parameters.items():
        path, _, leaf = name.rpartition(".")
        if leaf == AMAX and path in plan.modules:
            yield f"{path}.multiplier", multiplier_of(array)
        else:
            yield name, array


def _apply_recipe(plan: Plan, parameters: dict[str, mx.array], progress: Progress | None) -> None:
    """Requantise what the plan's recipe changes, module by module."""
    done, total = 0, plan.totals.nbytes
    for path, planned in plan.modules.items():
        if planned.changed:
            own = {leaf: parameters.pop(f"{path}.{leaf}") for leaf in own_leaves(path, parameters)}
            if (amax := parameters.pop(f"{path}.{AMAX}", None)) is not None:
                own["multiplier"] = multiplier_of(amax)
            try:
                made = apply(own, planned.converted, planned.landing)
            except RuntimeError as error:
                raise load_failed(error) from error
            parameters.update({f"{path}.{leaf}": array for leaf, array in made.items()})
            done += planned.final_bytes
            if progress is not None:
                progress(done, total)


def own_leaves(path: str, parameters: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """A module's parameters by leaf, as far as a packed layer has them."""
    names = {leaf: f"{path}.{leaf}" for leaf in PACKED_LEAVES}
    return {leaf: parameters[name] for leaf, name in names.items() if name in parameters}


def load_failed(error: RuntimeError) -> ExecutionError:
    """MLX's error while weights are read, as one of ours."""
    return ExecutionError("load-failed", "the weights could not be read", found=str(error))
