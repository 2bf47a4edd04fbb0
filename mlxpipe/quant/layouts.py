"""How producers pack one weight, as headers show it: a table.

A layout is recognised by structure (the convention, dtypes and shapes), never by what a config
says. Its row says what the tensors amount to in MLX's terms, so that the judge's arithmetic is one
for all producers, and how faithfully MLX can hold the values:

* `exact`: bit for bit the producer's values;
* `exact_codes`: the codes survive; the offset β = -z·s rounds in the dtype of the scales;
* `lossy`: MLX has no form for them; the row says why.

`graph.layouts` holds the function of the same name that converts the bytes. W[o, i] is the logical
weight below; experts have a leading axis. The formats are stated in each producer's own packing
code, as named in the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlxpipe.naming.groups import Group
from mlxpipe.quant.modes import MODES, ROW, Scheme
from mlxpipe.quant.verify import BYTES, FLOATS, WORD, Array

#: Role -> array, as a group's header declares them.
Arrays = Mapping[str, Array]

EXACT, EXACT_CODES, LOSSY = "exact", "exact_codes", "lossy"

MLX_CONVENTIONS = frozenset({"mlx", "ollama", "ollama-runtime"})

#: Roles that a layout's conversion takes; other roles of a group go to the model as they are.
PACKED_ROLES = frozenset(
    {"weight", "scales", "biases", "zero_points", "amax", "multiplier", "divisor", "order"}
)

#: Factors on a whole tensor.
FACTORS = frozenset({"amax", "multiplier", "divisor"})

#: dtypes of E8M0 numbers, of words with packed codes, and of indices.
E8M0 = frozenset({"U8", "F8_E8M0"})
WORDS = frozenset({"I32", "U32"})
INDICES = frozenset({"I32", "U32", "I64"})

#: Group sizes of MLX's affine kernels, the coarsest first.
KERNEL_GROUPS = (128, 64, 32)


@dataclass(frozen=True, slots=True)
class Layout:
    """One row.

    Attributes:
        name: What plans call it, and the converting function's name in `graph.layouts`.
        title: Who writes it.
        grade: How faithfully MLX holds it.
        fits: Whether a group has this layout: (convention, its arrays) -> bool. Every array that
            the conversion takes is checked here, because the judge sees weight and scales alone.
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


def _parts(length: int, size: int) -> int:
    """Parts of `size` in `length`, a short one included: what does not divide must not pass."""
    return -(-length // size)


def _words(array: Array) -> Array:
    """Bytes [..., n] as 32-bit words [..., n / 4]."""
    return Array("U32", (*array.shape[:-1], _parts(array.shape[-1], 4)))


def _swapped(array: Array) -> tuple[int, ...]:
    return (*array.shape[:-2], array.shape[-1], array.shape[-2])


def _identity(arrays: Arrays) -> dict[str, Array]:
    return {role: arrays[role] for role in ("weight", "scales", "biases") if role in arrays}


def _integers(arrays: Arrays) -> dict[str, Array]:
    scales = arrays["scales"]
    return {"weight": Array("U32", arrays["weight"].shape), "scales": scales, "biases": scales}


def _int8(arrays: Arrays) -> dict[str, Array]:
    scales = arrays["scales"]
    return {"weight": _words(arrays["weight"]), "scales": scales, "biases": scales}


def _float4(arrays: Arrays) -> dict[str, Array]:
    return {"weight": _words(arrays["weight"]), "scales": Array("U8", arrays["scales"].shape)}


def _float8(arrays: Arrays) -> dict[str, Array]:
    weight = arrays["weight"]
    scales = (*weight.shape[:-1], _parts(weight.shape[-1], 32))
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
    weight = Array("U32", (*lead, packed * 8, _parts(inputs * 4, WORD)))
    return {"weight": weight, "scales": scales, "biases": scales}


# --- which arrays fit together -----------------------------------------------------------------


def _matrices(arrays: Arrays) -> bool:
    """Whether weight and scales are matrices [..., o, i] with the same leading axes."""
    weight, scales = arrays["weight"].shape, arrays["scales"].shape
    return len(weight) == len(scales) >= 2 and weight[:-2] == scales[:-2]


def _float_scales(arrays: Arrays) -> bool:
    return arrays["scales"].dtype in FLOATS


def _same_rows(arrays: Arrays) -> bool:
    return arrays["weight"].shape[:-1] == arrays["scales"].shape[:-1]


def _factors_fit(arrays: Arrays) -> bool:
    """Factors are floats: one, or one for each expert, perhaps with an axis of length 1."""
    lead = arrays["weight"].shape[:-2]
    factors = [arrays[role] for role in ("amax", "multiplier", "divisor") if role in arrays]
    return len(factors) <= 1 and all(
        factor.dtype in FLOATS and factor.shape in (lead, (*lead, 1)) for factor in factors
    )


def _row_factors_fit(arrays: Arrays) -> bool:
    """Whether there is one multiplier for each row, which exports of ours may keep."""
    factor = arrays.get("multiplier")
    rows = arrays["weight"].shape[:-1]
    return factor is not None and factor.dtype in FLOATS and factor.shape == rows


def _order_fits(arrays: Arrays, words: int) -> bool:
    """Whether `order` has an integer for each column, `words` being the words of a row."""
    order = arrays.get("order")
    if order is None:
        return True
    lead = arrays["weight"].shape[:-2]
    columns = order.shape[-1] if order.shape else 0
    bits = (words * WORD / columns) if columns else 0
    integral = order.dtype in INDICES and bits in MODES["affine"].bits
    return integral and order.shape in ((columns,), (*lead, columns))


def _points_fit(points: Array, lead: tuple[int, ...], groups: int, rows: int, axis: int) -> bool:
    """Whether zero points are `rows` codes of some width, packed along `axis`, for each group."""
    if points.dtype not in WORDS or len(points.shape) != len(lead) + 2:
        return False
    words = points.shape[axis]
    other = points.shape[-1 if axis == -2 else -2]
    widths = {_parts(rows * bits, WORD) for bits in MODES["affine"].bits}
    return points.shape[:-2] == lead and other == groups and words in widths


def _mlx_fits(convention: str, arrays: Arrays) -> bool:
    known = FLOATS | BYTES
    named = convention in MLX_CONVENTIONS and arrays["scales"].dtype in known
    return (
        named
        and ("biases" not in arrays or arrays["biases"].dtype in FLOATS)
        and (_factors_fit(arrays) or _row_factors_fit(arrays))
    )


def _integers_fit(convention: str, arrays: Arrays) -> bool:
    if convention != "compressed-tensors" or arrays["weight"].dtype != "I32":
        return False
    if not (_matrices(arrays) and _same_rows(arrays) and _float_scales(arrays)):
        return False
    *lead, rows, groups = arrays["scales"].shape
    points = arrays.get("zero_points")
    return _order_fits(arrays, arrays["weight"].shape[-1]) and (
        points is None or _points_fit(points, tuple(lead), groups, rows, -2)
    )


def _int8_fits(convention: str, arrays: Arrays) -> bool:
    if arrays["weight"].dtype != "I8" or FACTORS & arrays.keys():
        return False
    points, scales = arrays.get("zero_points"), arrays["scales"]
    return (
        _matrices(arrays)
        and _same_rows(arrays)
        and _float_scales(arrays)
        and (points is None or (points.dtype == "I8" and points.shape == scales.shape))
    )


def _float4_fits(convention: str, arrays: Arrays) -> bool:
    """nvfp4 has E4M3 scales of 16 columns and a factor, mxfp4 E8M0 scales of 32 and none.

    Either without the other's parts would be read as other numbers.
    """
    weight, scales = arrays["weight"], arrays["scales"]
    if weight.dtype != "U8" or scales.dtype not in BYTES or not _matrices(arrays):
        return False
    nvfp4 = scales.dtype == "F8_E4M3"
    factor = "multiplier" in arrays or "divisor" in arrays
    columns = scales.shape[-1] * (16 if nvfp4 else 32)
    return (
        _same_rows(arrays)
        and weight.shape[-1] * 2 == columns
        and factor == nvfp4
        and _factors_fit(arrays)
    )


def _float8_fits(convention: str, arrays: Arrays) -> bool:
    """Whether scales are one for the tensor ([] or [1]) or one per row ([o] or [o, 1])."""
    weight = arrays["weight"]
    if weight.dtype != "F8_E4M3" or len(weight.shape) < 2 or not _float_scales(arrays):
        return False
    *lead, rows, _ = weight.shape
    forms = {(*lead,), (*lead, 1), (*lead, rows), (*lead, rows, 1)}
    return arrays["scales"].shape in forms and not FACTORS & arrays.keys()


def _blocks_fit(convention: str, arrays: Arrays) -> bool:
    """Whether scales are one per block, mxfp8's 32 columns being part of one block."""
    weight, scales = arrays["weight"], arrays["scales"]
    if weight.dtype != "F8_E4M3" or not _matrices(arrays) or FACTORS & arrays.keys():
        return False
    tall = block_size(weight.shape[-2], scales.shape[-2])
    wide = block_size(weight.shape[-1], scales.shape[-1])
    narrow = wide is not None and wide < 32 and scales.shape[-1] > 1
    return (
        (_float_scales(arrays) or scales.dtype in E8M0) and None not in (tall, wide) and not narrow
    )


def block_size(length: int, blocks: int) -> int | None:
    """The power of two that cuts `length` into `blocks` blocks, the last one perhaps short.

    None where there is none: blocks of other sizes cannot be told from the shapes.
    """
    if length < 1 or blocks < 1:
        return None
    size = 1
    while _parts(length, size) > blocks:
        size *= 2
    return size if _parts(length, size) == blocks else None


def _awq_fits(convention: str, arrays: Arrays) -> bool:
    if convention != "gptq" or not _matrices(arrays) or not _float_scales(arrays):
        return False
    *lead, groups, rows = arrays["scales"].shape
    points = arrays.get("zero_points")
    return (
        arrays["weight"].shape[-1] * 8 == rows
        and points is not None
        and points.dtype in WORDS
        and points.shape == (*lead, groups, rows // 8)
        and "order" not in arrays
    )


def _gptq_fits(convention: str, arrays: Arrays) -> bool:
    if convention != "gptq" or not _matrices(arrays) or not _float_scales(arrays):
        return False
    *lead, groups, rows = arrays["scales"].shape
    points = arrays.get("zero_points")
    return (
        arrays["weight"].shape[-1] == rows
        and points is not None
        and _points_fit(points, tuple(lead), groups, rows, -1)
        and _order_fits(arrays, arrays["weight"].shape[-2])
    )


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "mlx",
        "MLX's own",
        EXACT,
        _mlx_fits,
        _identity,
    ),
    Layout(
        "packed_integers",
        "compressed-tensors pack-quantized (compressed_tensors/compressors/pack_quantized)",
        EXACT_CODES,
        _integers_fit,
        _integers,
    ),
    Layout(
        "plain_integers",
        "compressed-tensors int-quantized (compressed_tensors/compressors/naive_quantized)",
        EXACT_CODES,
        _int8_fits,
        _int8,
    ),
    Layout(
        "packed_float4",
        "compressed-tensors nvfp4- and mxfp4-pack-quantized; ModelOpt NVFP4",
        EXACT,
        _float4_fits,
        _float4,
    ),
    Layout(
        "float8",
        "ModelOpt FP8; compressed-tensors float-quantized, per tensor or row",
        EXACT,
        _float8_fits,
        _float8,
    ),
    Layout(
        "float8_blocks",
        "DeepSeek's and Qwen's block FP8; compressed-tensors float-quantized in blocks",
        LOSSY,
        _blocks_fit,
        _float8,
    ),
    Layout(
        "awq",
        "AWQ GEMM; AutoRound auto_awq (awq/utils/packing_utils)",
        EXACT_CODES,
        _awq_fits,
        _awq,
    ),
    Layout(
        "gptq",
        "GPTQ, AutoRound (gptqmodel/nn_modules/qlinear)",
        EXACT_CODES,
        _gptq_fits,
        _gptq,
        variants=("gptq", "gptq_v2"),
    ),
)


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
