"""A group's arguments in compressed-tensors as a scheme.

Rules, in compressed-tensors 0.20: quantization/quant_args.py (QuantizationArgs: defaults, and the
strategy inferred from the group size) and compressors/*/base.py (which arguments belong to which
format).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlxpipe.errors import Origin, did_you_mean
from mlxpipe.quant.claims import ASYMMETRIC
from mlxpipe.quant.dialects.fields import Fields, UnreadableError, malformed, refuse
from mlxpipe.quant.dialects.formats import (
    DENSE_BITS,
    FP8,
    FP8_ROW,
    FP8_TENSOR,
    MXFP4,
    MXFP8,
    NVFP4,
    Integers,
    affine,
    fp8_blocks,
    pair,
    whole_blocks,
)
from mlxpipe.quant.modes import Scheme

#: format -> the kinds of numbers it can hold. `naive` is what older versions called two of them.
FORMATS: Mapping[str, frozenset[str]] = {
    "pack-quantized": frozenset({"int"}),
    "int-quantized": frozenset({"int"}),
    "float-quantized": frozenset({"fp8"}),
    "naive-quantized": frozenset({"int", "fp8"}),
    "nvfp4-pack-quantized": frozenset({"nvfp4"}),
    "mxfp4-pack-quantized": frozenset({"mxfp4"}),
    "mxfp8-quantized": frozenset({"mxfp8"}),
}

#: Formats that say nothing about a group: one per group follows, or nothing is compressed.
OPEN_FORMATS = frozenset({"", "mixed-precision", "fakequant"})

#: format -> why it is not read.
REFUSED_FORMATS: Mapping[str, str] = {
    "marlin-24": "its weights are permuted for one GPU kernel",
    "sparse-24-bitmask": "it stores sparse weights",
    "sparse-bitmask": "it stores sparse weights",
    "mxfp6-pack-quantized": "MLX has no 6-bit floats",
    "nvfp4-e5m3-pack-quantized": "MLX has no E5M3 scales",
}

ACTIVATION_ORDERS = ("weight", "static", "group", "dynamic")


@dataclass(frozen=True, slots=True)
class Group:
    """What one group says of its targets: a scheme, or None for dense weights."""

    scheme: Scheme | None
    note: str
    variant: str = ""


def meaning_of(group: Fields, fields: Fields) -> Group:
    """What a group says; its own format beats the one of the whole declaration."""
    if not group.has("weights"):
        return Group(None, "no weights in this group: dense")
    weights = group.below("weights")
    holder = group if group.has("format") else fields
    form = holder.text("format").lower()
    if form == "dense":
        return Group(None, "format: dense")
    kind, meaning = _numbers(weights, form)
    if meaning.scheme is not None:
        _check_format(form, kind, holder.at("format"))
    return meaning


def _numbers(weights: Fields, form: str) -> tuple[str, Group]:
    """The kind of numbers that a group's arguments describe, and what they mean."""
    _check_order(weights)
    bits = weights.integer("num_bits", 8)
    kind = weights.text("type", "int").lower()
    strategy = _strategy(weights)
    if bits >= DENSE_BITS:
        return kind, Group(None, f"{bits} bits: dense")
    if kind == "int":
        return kind, _integers(weights, bits, strategy)
    if kind == "float" and not weights.flag("symmetric", True):
        raise _unsupported(weights, "floats with zero points")
    if kind == "float":
        return _floats(weights, bits, strategy, form)
    raise malformed(weights.at("type"), "type", kind, "int or float")


def _strategy(weights: Fields) -> str:
    """The strategy, inferred from the group size where it is omitted."""
    size = weights.integer("group_size", 0)
    if size < -1:
        raise malformed(weights.at("group_size"), "group_size", size, "a positive number, or -1")
    inferred = "group" if size > 0 else "channel" if size == -1 else "tensor"
    return weights.text("strategy", inferred).lower()


def _integers(weights: Fields, bits: int, strategy: str) -> Group:
    variant = "" if weights.flag("symmetric", True) else ASYMMETRIC
    if strategy == "group":
        size = weights.integer("group_size")
        return Group(affine(Integers(bits, size), weights), "", variant)
    notes = {"channel": "", "tensor": "one scale per tensor"}
    if strategy not in notes:
        raise _unsupported(weights, f"integers with the strategy '{strategy:.40}'")
    return Group(affine(Integers(bits, -1), weights), notes[strategy], variant)


def _floats(weights: Fields, bits: int, strategy: str, form: str) -> tuple[str, Group]:
    size = weights.integer("group_size", 0)
    grouped = strategy in ("group", "tensor_group")
    if grouped and (bits, size) == (4, 16):
        return "nvfp4", Group(NVFP4, "")
    if grouped and (bits, size) == (4, 32):
        return "mxfp4", Group(MXFP4, "")
    if grouped and (bits, size) == (8, 32) and _byte_scales(weights, form):
        return "mxfp8", Group(MXFP8, "")
    if bits == 8 and strategy in ("tensor", "channel"):
        return "fp8", Group(FP8, FP8_TENSOR if strategy == "tensor" else FP8_ROW)
    if bits == 8 and strategy == "block":
        return "fp8", Group(FP8, fp8_blocks(*_block(weights)))
    words = f"in groups of {size}" if grouped else f"with the strategy '{strategy:.40}'"
    raise _unsupported(weights, f"{bits}-bit floats {words}")


def _byte_scales(weights: Fields, form: str) -> bool:
    return form == "mxfp8-quantized" or weights.text("scale_dtype").endswith("uint8")


def _block(weights: Fields) -> tuple[int, int]:
    """Rows and columns of a block: a list, or `128x128` in older versions."""
    value = weights.block.data.get("block_structure")
    found = pair(value.split("x")) if isinstance(value, str) else pair(value)
    if found is None:
        raise malformed(
            weights.at("block_structure"), "block_structure", value, "two positive whole numbers"
        )
    return whole_blocks(found, weights.at("block_structure"))


def _unsupported(weights: Fields, what: str) -> UnreadableError:
    return refuse(
        "unsupported-scheme",
        f"{what} have no counterpart in MLX",
        weights.at(),
        expected="integers by group, row or tensor; NVFP4; MXFP4; MXFP8; FP8 by tensor, row, block",
        help="convert the unquantised checkpoint with another scheme",
    )


def _check_format(form: str, kind: str, origin: Origin) -> None:
    if form in OPEN_FORMATS or kind in FORMATS.get(form, ()):
        return
    if form in REFUSED_FORMATS:
        raise refuse(
            "unsupported-format",
            f"the format {form} cannot be read: {REFUSED_FORMATS[form]}",
            origin,
            help="use another export of the model, or convert the unquantised checkpoint",
        )
    if form in FORMATS:
        raise refuse(
            "contradicting-format",
            f"the format {form} does not hold {kind} weights, which the group's arguments describe",
            origin,
            found=kind,
            expected=" or ".join(sorted(FORMATS[form])),
        )
    raise refuse(
        "unknown-format",
        f"unknown format '{form:.60}'",
        origin,
        expected=", ".join(FORMATS),
        help=did_you_mean(form, (*FORMATS, *REFUSED_FORMATS)),
    )


def _check_order(weights: Fields) -> None:
    """A known activation order; what it does to the columns is in the tensors (g_idx)."""
    value = weights.block.data.get("actorder")
    if value is None or isinstance(value, bool) or value in ACTIVATION_ORDERS:
        return
    raise malformed(weights.at("actorder"), "actorder", value, ", ".join(ACTIVATION_ORDERS))
