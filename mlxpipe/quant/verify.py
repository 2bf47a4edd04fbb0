"""The judge: what the bytes can be, from shapes and dtypes alone.

For a packed weight with `in_features` columns (safetensors headers give the shapes, the
architecture gives `in_features`):

    bits       = 32 * packed_columns / in_features
    group_size = in_features / scale_columns

One-byte scales without biases are mxfp4, mxfp8 or nvfp4 by (bits, group_size); otherwise affine.
Without `in_features` only the product bits * group_size = 32 * packed_columns / scale_columns is
known, and several affine schemes share it (4/64 = 8/32 = 2/128).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from mlxpipe.checkpoint.entry import DTYPE_BITS
from mlxpipe.quant.modes import MODES, ROW, Scheme

FLOATS = frozenset({"BF16", "F16", "F32", "F64"})
BYTES = frozenset({"U8", "F8_E4M3", "F8_E8M0"})
WORD = 32


@dataclass(frozen=True, slots=True)
class Array:
    """A tensor's dtype (safetensors name) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return DTYPE_BITS[self.dtype] * prod(self.shape) // 8

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the checkpoint holds for one module, and what the architecture expects.

    Attributes:
        weight: Packed codes [..., out, in * bits / 32] or a dense weight [..., out, in].
        scales: [..., out, in / group_size], None for a dense weight.
        biases: As `scales`, None where the mode has none.
        in_features: The input width, None where no architecture told.
    """

    weight: Array
    scales: Array | None = None
    biases: Array | None = None
    in_features: int | None = None

    @property
    def dense(self) -> bool:
        """Whether the weight is stored in floating point without scales."""
        return self.scales is None and self.weight.dtype in FLOATS


def flaw(evidence: Evidence) -> str:
    """Why these tensors are no MLX layer under any scheme, or ""."""
    if evidence.dense:
        return ""
    if evidence.scales is None:
        return f"the weight is {evidence.weight} and no scales belong to it"
    if evidence.weight.dtype != "U32":
        return f"packed codes are U32, the weight is {evidence.weight}"
    if len(evidence.weight.shape) != len(evidence.scales.shape):
        return f"weight {evidence.weight} and scales {evidence.scales} differ in their dimensions"
    if not evidence.weight.shape or not all((*evidence.weight.shape, *evidence.scales.shape)):
        return f"an axis of length 0: weight {evidence.weight}, scales {evidence.scales}"
    if evidence.weight.shape[:-1] != evidence.scales.shape[:-1]:
        return f"weight {evidence.weight} and scales {evidence.scales} differ in their rows"
    if evidence.biases is not None and evidence.biases.shape != evidence.scales.shape:
        return f"scales {evidence.scales} and biases {evidence.biases} differ in shape"
    return ""


def solutions(evidence: Evidence) -> tuple[Scheme, ...]:
    """Every scheme that the tensors can be; one, where `in_features` is known and they fit."""
    if evidence.dense or flaw(evidence):
        return ()
    fitting = tuple(scheme for scheme in _ALL if not contradiction(scheme, evidence))
    return fitting or tuple(_beyond_kernels(evidence))


_ALL = tuple(
    Scheme(mode.name, bits, size)
    for mode in MODES.values()
    for bits in mode.bits
    for size in mode.group_sizes
)


def _beyond_kernels(evidence: Evidence) -> Iterator[Scheme]:
    """Affine schemes with groups that MLX has no kernel for, but that `landing` can divide."""
    width = evidence.in_features
    assert evidence.scales is not None
    groups = evidence.scales.shape[-1]
    if width is None or width % groups:
        return
    size = ROW if groups == 1 else width // groups
    for bits in MODES["affine"].bits:
        scheme = Scheme("affine", bits, size)
        if not contradiction(scheme, evidence):
            yield scheme


def contradiction(scheme: Scheme | None, evidence: Evidence) -> str:
    """Why the tensors cannot be `scheme` (None: dense), in numbers, or "" if they can."""
    if scheme is None or evidence.dense:
        return _kind_contradiction(scheme, evidence)
    if problem := flaw(evidence):
        return problem
    assert evidence.scales is not None
    mode = MODES[scheme.mode]
    if mode.byte_scales != (evidence.scales.dtype in BYTES):
        wanted = "one byte" if mode.byte_scales else "floating point"
        return f"{mode.name} has scales of {wanted}, these are {evidence.scales.dtype}"
    if mode.has_biases != (evidence.biases is not None):
        return f"{mode.name} has {'biases' if mode.has_biases else 'no biases'}, here " + (
            "there are none" if mode.has_biases else "there are some"
        )
    return _size_contradiction(scheme, evidence)


def _kind_contradiction(scheme: Scheme | None, evidence: Evidence) -> str:
    if scheme is None and not evidence.dense:
        return f"the weight is packed: {evidence.weight}" + (
            f", scales {evidence.scales}" if evidence.scales else ""
        )
    if scheme is not None:
        return f"the weight is dense: {evidence.weight}, without scales"
    return ""


def _size_contradiction(scheme: Scheme, evidence: Evidence) -> str:
    assert evidence.scales is not None
    packed, groups = evidence.weight.shape[-1], evidence.scales.shape[-1]
    width = evidence.in_features
    if scheme.group_size == ROW:
        return _row_contradiction(scheme, evidence)
    if width is None:
        ratio = WORD * packed / groups
        wanted = scheme.bits * scheme.group_size
        return "" if ratio == wanted else f"32·{packed}/{groups} = {ratio:g}, not {wanted}"
    bits, size = WORD * packed / width, width / groups
    if bits != scheme.bits:
        return f"bits = 32·{packed}/{width} = {bits:g}, not {scheme.bits}"
    if size != scheme.group_size:
        return f"group_size = {width}/{groups} = {size:g}, not {scheme.group_size}"
    return ""


def _row_contradiction(scheme: Scheme, evidence: Evidence) -> str:
    assert evidence.scales is not None
    packed, groups = evidence.weight.shape[-1], evidence.scales.shape[-1]
    width = evidence.in_features
    if groups != 1:
        return f"{groups} groups in a row, not one"
    if width is not None and WORD * packed != scheme.bits * width:
        return f"bits = 32·{packed}/{width} = {WORD * packed / width:g}, not {scheme.bits}"
    return ""


def arithmetic(evidence: Evidence) -> tuple[str, ...]:
    """The judge's reasoning, line by line, for people."""
    lines = [f"weight {evidence.weight}"]
    if evidence.dense:
        return (f"weight {evidence.weight}, no scales: dense",)
    lines[0] += "".join(
        f", {name} {array}"
        for name, array in (("scales", evidence.scales), ("biases", evidence.biases))
        if array is not None
    )
    if problem := flaw(evidence):
        return (*lines, problem)
    assert evidence.scales is not None
    packed, groups = evidence.weight.shape[-1], evidence.scales.shape[-1]
    width = evidence.in_features
    if width is None:
        lines.append(f"bits·group_size = 32·{packed}/{groups} = {WORD * packed / groups:g}")
    else:
        lines.append(f"bits = 32·{packed}/{width} = {WORD * packed / width:g}")
        lines.append(f"group_size = {width}/{groups} = {width / groups:g}")
    found = solutions(evidence)
    lines.append("so it is " + (" or ".join(str(one) for one in found) or "no MLX scheme"))
    return tuple(lines)
