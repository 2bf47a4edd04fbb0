"""What is written for each module: the packed arrays as they are, or a dense weight in their place.

A producer's factor on the output and GPTQ's permutation of the inputs have a place in mlxpipe's
layers, and seldom one in a format. Where a format can hold a factor exactly, it does. Elsewhere the
module is dequantised to float32, which rounds each weight once, or kept packed for mlxpipe alone,
or the export is refused, as the task's `unsupported` says. Nothing is folded into block scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from mlxpipe.architecture.skeleton import Skeleton
from mlxpipe.checkpoint import Checkpoint
from mlxpipe.errors import ExecutionError, Origin
from mlxpipe.graph.arrays import (
    AMAX,
    PACKED_LEAVES,
    Rounding,
    final_arrays,
    group_arrays,
    multiplier_of,
    open_tensors,
)
from mlxpipe.graph.cuts import NVFP4_AMAX
from mlxpipe.graph.layouts import CONVERTERS
from mlxpipe.graph.recipe import dense_weight
from mlxpipe.naming.groups import Group
from mlxpipe.plan.plan import Plan, PlannedModule
from mlxpipe.quant.modes import Scheme

Unsupported = Literal["dense", "keep", "error"]
Dtype = Literal["exact", "checkpoint"]
Arrays = dict[str, mx.array]

FACTOR, ORDER = "multiplier", "permutation"

#: Leaves of which all or none are written: what a dense weight takes the place of.
PACKED_ONLY = frozenset({*PACKED_LEAVES, AMAX} - {"weight", "bias"})

#: A module and its arrays by leaf -> the arrays under the format's leaves; None: no form for them.
Holder = Callable[[PlannedModule, Arrays], Arrays | None]

#: How many modules an error lists.
LISTED = 8

DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}


@dataclass(frozen=True, slots=True)
class Form:
    """What an export holds of a module that could be quantised.

    Attributes:
        scheme: How it is packed there, None for a dense weight.
        fidelity: `identical` (the source's values, packed as mlxpipe computes them), `dequantised`
            (a dense weight, each value rounded once) or `rounded` (offsets rounded to 16 bits).
        reason: Why it is not as the source has it, "" where it is.
        factor: The leaf of its factor, "" for none.
    """

    scheme: Scheme | None
    fidelity: str
    reason: str = ""
    factor: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the task's table of modules."""
        fields: dict[str, Any] = {"scheme": str(self.scheme) if self.scheme else "dense"}
        fields["fidelity"] = self.fidelity
        return {**fields, "reason": self.reason} if self.reason else fields


@dataclass(frozen=True, slots=True)
class Contents:
    """All that is written of a model's weights.

    Attributes:
        arrays: Name -> lazy array, sorted by name.
        forms: Module path -> its form, sorted by path.
    """

    arrays: Arrays
    forms: Mapping[str, Form]


def collect(
    plan: Plan,
    checkpoint: Checkpoint,
    skeleton: Skeleton,
    holder: Holder,
    *,
    unsupported: Unsupported = "dense",
    dtype: Dtype = "exact",
    origin: Origin | None = None,
) -> Contents:
    """A model's parameters in the form in which they are written, lazy.

    Args:
        plan: A sound plan of this checkpoint.
        checkpoint: The open checkpoint.
        skeleton: The architecture.
        holder: What the format can hold.
        unsupported: What to do with modules that it cannot.
        dtype: `exact`: what is computed here is float32 wherever 16 bits would round it;
            `checkpoint`: it has the checkpoint's own 16 bits, as when loaded on a GPU.
        origin: Where the spec asks for the export.

    Raises:
        ExecutionError: `unsupported-modules`, or as for `final_arrays`.
    """
    coarse = inexact_offsets(plan, checkpoint)
    arrays = final_arrays(plan, checkpoint, skeleton, _rounding(coarse, dtype))
    forms: dict[str, Form] = {}
    refused: list[str] = []
    for path, module in sorted(plan.modules.items()):
        own = _take(arrays, path)
        if module.landing is None:
            held, forms[path] = own, _dense_form(module, dtype)
        elif (fit := holder(module, _with_factor(own))) is not None:
            held, forms[path] = fit, _packed_form(module, fit, module.group in coarse, dtype)
        elif unsupported == "keep":
            form = _packed_form(module, own, module.group in coarse, dtype)
            held, forms[path] = own, replace(form, reason=f"packed for mlxpipe alone: {_why(own)}")
        else:
            refused.append(path)
            target = _dense_dtype(checkpoint, dtype)
            held = _dequantised(module.landing, _with_factor(own), target)
            forms[path] = Form(None, "dequantised", _why(own))
        arrays.update((f"{path}.{leaf}", array) for leaf, array in held.items())
    if refused and unsupported == "error":
        raise _unsupported(refused, forms, origin)
    return Contents(dict(sorted(arrays.items())), forms)


def _take(arrays: Arrays, path: str) -> Arrays:
    """A module's own arrays by leaf, taken out."""
    leaves = (*PACKED_LEAVES, AMAX)
    return {leaf: arrays.pop(name) for leaf in leaves if (name := f"{path}.{leaf}") in arrays}


def _with_factor(own: Arrays) -> Arrays:
    """A module's arrays with the factor that an amax stands for beside it."""
    return {**own, FACTOR: multiplier_of(own[AMAX])} if AMAX in own else own


def _dense_form(module: PlannedModule, dtype: Dtype) -> Form:
    if module.scheme is None or module.changed:
        return Form(None, "identical")
    rounded = dtype == "checkpoint"
    reason = f"MLX has no form for {module.layout}"
    return Form(None, "rounded" if rounded else "identical", f"{reason}; dense in the plan, too")


def _packed_form(module: PlannedModule, held: Arrays, coarse: bool, dtype: Dtype) -> Form:
    factor = next((leaf for leaf in (AMAX, FACTOR) if leaf in held), "")
    if coarse and dtype == "checkpoint":
        return Form(module.landing, "rounded", "offsets rounded to the dtype of the scales", factor)
    reason = "offsets and scales in float32, which 16 bits would round" if coarse else ""
    return Form(module.landing, "identical", reason, factor)


def _dequantised(scheme: Scheme, own: Arrays, dtype: mx.Dtype) -> Arrays:
    bias = {"bias": own["bias"]} if "bias" in own else {}
    return {"weight": dense_weight(own, scheme, dtype), **bias}


def _dense_dtype(checkpoint: Checkpoint, dtype: Dtype) -> mx.Dtype:
    if dtype == "exact":
        return mx.float32
    config = checkpoint.config.data
    declared = config.get("dtype") or config.get("torch_dtype")
    return DTYPES.get(str(declared), mx.bfloat16)


def _why(own: Arrays) -> str:
    if ORDER in own:
        return "permuted inputs, for which the format has no place"
    return "a factor on its output, for which the format has no exact place"


def _unsupported(
    refused: list[str], forms: Mapping[str, Form], origin: Origin | None
) -> ExecutionError:
    lines = [f"{path}: {forms[path].reason}" for path in refused[:LISTED]]
    rest = len(refused) - len(lines)
    return ExecutionError(
        "unsupported-modules",
        f"the format has no form for {len(refused)} of {len(forms)} modules",
        origin=origin,
        found="\n".join([*lines, *([f"… and {rest} others"] if rest else [])]),
        help="set unsupported to dense (float32 weights, each rounded once), or with format mlx "
        "to keep (packed; mlxpipe reads it, mlx-lm refuses)",
    )


# --- what 16 bits would round ----------------------------------------------------------------


def _rounding(coarse: Iterable[str], dtype: Dtype) -> Rounding:
    """What conversions round to: with `exact` nothing that would lose a bit."""
    inexact = frozenset(coarse)

    def rounding(module: PlannedModule) -> mx.Dtype | None:
        exactly = module.group in inexact or module.converted is None
        return mx.float32 if dtype == "exact" and exactly else None

    return rounding


def inexact_offsets(plan: Plan, checkpoint: Checkpoint) -> frozenset[str]:
    """Paths of groups whose offsets β = -z·s the dtype of their scales would round.

    It reads scales and zero points, a few per cent of the weights, and forgets each at once.
    """
    modules = {
        module.group: module
        for module in plan.modules.values()
        if module.layout in CONVERTERS and not module.changed
        if module.converted is not None and module.converted.mode == "affine"
    }
    names = {path: _names(plan.groups[path]) for path in modules}
    last = {name: path for path, own in names.items() for name in own}
    tensors = open_tensors(checkpoint, last.keys())
    coarse = set()
    for path, module in modules.items():
        group = plan.groups[path]
        wide, narrow = (
            group_arrays(group, module, tensors, dtype)["biases"] for dtype in (mx.float32, None)
        )
        if not mx.array_equal(narrow, wide).item():
            coarse.add(path)
        del wide, narrow
        for name in names[path]:
            if last[name] == path:
                del tensors[name]
    return frozenset(coarse)


def _names(group: Group) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for role in group.parts for name in group.names(role)))


# --- factors ---------------------------------------------------------------------------------


def amax_of(factor: mx.array) -> mx.array | None:
    """The amax that MLX keeps instead of a factor: amax / 2688 = factor, to the bit.

    Args:
        factor: [E], one for each expert.

    Returns:
        amax float32 [E], or None where a factor is no quotient of that form.
    """
    wanted = np.array(factor.astype(mx.float32))
    divisor = np.float32(NVFP4_AMAX)
    near = (wanted.astype(np.float64) * NVFP4_AMAX).astype(np.float32)
    found = np.full_like(near, np.nan)
    for candidate in (np.nextafter(near, -np.inf), np.nextafter(near, np.inf), near):
        found = np.where(candidate / divisor == wanted, candidate, found)
    return None if np.isnan(found).any() else mx.array(found)
