"""How producers pack one weight, as headers show it: a table.

A layout is recognised by structure (the convention, dtypes and shapes), never by what a config
says. Its row says what the tensors amount to in MLX's terms, so that the judge's arithmetic is one
for all producers, and how faithfully MLX can hold the values:

* `exact`: bit for bit the producer's values;
* `exact_codes`: the codes survive; the offset β = -z·s rounds in the dtype of the scales;
* `lossy`: MLX has no form for them; the row says why.

`graph.layouts` holds the function of the same name that converts the bytes. W[o, i] is the logical
weight below; experts have a leading axis. Formats: FORMATS of each producer's own packing code, as
named in the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlxpipe.naming.groups import Group
from mlxpipe.quant.modes import ROW, Scheme
from mlxpipe.quant.verify import BYTES, Array

#: Role -> array, as a group's header declares them.
Arrays = Mapping[str, Array]

EXACT, EXACT_CODES, LOSSY = "exact", "exact_codes", "lossy"

MLX_CONVENTIONS = frozenset({"mlx", "ollama", "ollama-runtime"})

#: Roles that a layout's conversion takes; other roles of a group go to the model as they are.
PACKED_ROLES = frozenset(
    {"weight", "scales", "biases", "zero_points", "amax", "multiplier", "divisor", "order"}
)

#: Group sizes of MLX's affine kernels, the coarsest first.
KERNEL_GROUPS = (128, 64, 32)


@dataclass(frozen=True, slots=True)
class Layout:
    """One row.

    Attributes:
        name: What plans call it, and the converting function's name in `graph.layouts`.
        title: Who writes it.
        grade: How faithfully MLX holds it.
        fits: Whether a group has this layout: (convention, its arrays) -> bool.
        amounts_to: The group's arrays as an MLX layer's weight, scales and biases.
        variants: Names of claims' variants that change the decoding; the first is no default:
            where there are variants, somebody must declare one.
    """

    name: str
    title: str
    grade: str
    fits: Callable[[str, Arrays], bool]
    amounts_to: Callable[[Arrays], dict[str, Array]]
    variants: tuple[str, ...] = ()


def _words(array: Array) -> Array:
    """Bytes [..., n] as 32-bit words [..., n / 4]."""
    return Array("U32", (*array.shape[:-1], array.shape[-1] // 4))


def _swapped(array: Array) -> tuple[int, ...]:
    return (*array.shape[:-2], array.shape[-1], array.shape[-2])


def _identity(arrays: Arrays) -> dict[str, Array]:
    return {role: arrays[role] for role in ("weight", "scales", "biases") if role in arrays}


def _integers(arrays: Arrays) -> dict[str, Array]:
    scales = arrays["scales"]
    return {"weight": Array("U32", arrays["weight"].shape), "scales": scales, "biases": scales}


def _float4(arrays: Arrays) -> dict[str, Array]:
    return {"weight": _words(arrays["weight"]), "scales": Array("U8", arrays["scales"].shape)}


def _float8(arrays: Arrays) -> dict[str, Array]:
    weight = arrays["weight"]
    scales = (*weight.shape[:-1], weight.shape[-1] // 32)
    return {"weight": _words(weight), "scales": Array("U8", scales)}


def _gptq(arrays: Arrays) -> dict[str, Array]:
    scales = Array(arrays["scales"].dtype, _swapped(arrays["scales"]))
    return {
        "weight": Array("U32", _swapped(arrays["weight"])),
        "scales": scales,
        "biases": scales,
    }


def _awq(arrays: Arrays) -> dict[str, Array]:
    *lead, inputs, packed = arrays["weight"].shape
    scales = Array(arrays["scales"].dtype, _swapped(arrays["scales"]))
    weight = Array("U32", (*lead, packed * 8, inputs * 4 // 32))
    return {"weight": weight, "scales": scales, "biases": scales}


def _per_row_or_tensor(arrays: Arrays) -> bool:
    """Whether scales are one for the tensor ([] or [1]) or one per row ([o] or [o, 1])."""
    *lead, rows, _ = arrays["weight"].shape
    forms = {(*lead,), (*lead, 1), (*lead, rows), (*lead, rows, 1)}
    return arrays["scales"].shape in forms


def _in_blocks(arrays: Arrays) -> bool:
    return len(arrays["scales"].shape) == len(arrays["weight"].shape) >= 2


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "mlx",
        "MLX's own",
        EXACT,
        lambda convention, arrays: convention in MLX_CONVENTIONS,
        _identity,
    ),
    Layout(
        "packed_integers",
        "compressed-tensors pack-quantized (compressed_tensors/compressors/pack_quantized)",
        EXACT_CODES,
        lambda convention, arrays: (
            convention == "compressed-tensors" and arrays["weight"].dtype == "I32"
        ),
        _integers,
    ),
    Layout(
        "packed_float4",
        "compressed-tensors nvfp4- and mxfp4-pack-quantized; ModelOpt NVFP4",
        EXACT,
        lambda convention, arrays: (
            arrays["weight"].dtype == "U8" and arrays["scales"].dtype in BYTES
        ),
        _float4,
    ),
    Layout(
        "float8",
        "ModelOpt FP8; compressed-tensors float-quantized, per tensor or row",
        EXACT,
        lambda convention, arrays: (
            arrays["weight"].dtype == "F8_E4M3" and _per_row_or_tensor(arrays)
        ),
        _float8,
    ),
    Layout(
        "float8_blocks",
        "DeepSeek's and Qwen's block FP8; compressed-tensors float-quantized in blocks",
        LOSSY,
        lambda convention, arrays: arrays["weight"].dtype == "F8_E4M3" and _in_blocks(arrays),
        _float8,
    ),
    Layout(
        "awq",
        "AWQ GEMM; AutoRound auto_awq (awq/utils/packing_utils)",
        EXACT_CODES,
        lambda convention, arrays: (
            convention == "gptq" and arrays["weight"].shape[-1] * 8 == arrays["scales"].shape[-1]
        ),
        _awq,
    ),
    Layout(
        "gptq",
        "GPTQ, AutoRound (gptqmodel/nn_modules/qlinear)",
        EXACT_CODES,
        lambda convention, arrays: (
            convention == "gptq" and arrays["weight"].shape[-1] == arrays["scales"].shape[-1]
        ),
        _gptq,
        variants=("gptq", "gptq_v2"),
    ),
)

BY_NAME: Mapping[str, Layout] = {layout.name: layout for layout in LAYOUTS}


def arrays_of(group: Group) -> dict[str, Array]:
    """A group's parts as dtypes and shapes."""
    return {role: Array(part.dtype, part.shape) for role, part in group.parts.items()}


def recognise(group: Group) -> Layout | None:
    """The layout of a packed group, None for a dense one or an unknown packing."""
    if not group.packed:
        return None
    arrays = arrays_of(group)
    return next((row for row in LAYOUTS if row.fits(group.convention, arrays)), None)


def landing(scheme: Scheme, in_features: int) -> Scheme | None:
    """What MLX computes for a scheme, exactly: coarse affine groups as several equal ones.

    None where no kernel fits: groups below 32, or of which 32 is no divisor.
    """
    if scheme.mode != "affine":
        return None if scheme.problem() else scheme
    size = in_features if scheme.group_size == ROW else scheme.group_size
    fit = next((each for each in KERNEL_GROUPS if size % each == 0), None)
    landed = Scheme(scheme.mode, scheme.bits, fit) if fit else None
    return None if landed is None or landed.problem() else landed
