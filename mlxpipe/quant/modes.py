"""MLX's quantisation modes as a table, and the scheme they are named by.

Source: `mlx.core.quantize` of MLX 0.32, and `mlx.nn.layers.quantized` for the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to pack a weight W[o, i] into 32-bit words.

    Attributes:
        name: MLX's name.
        bits: Allowed bits per code.
        group_sizes: Allowed numbers of codes that share a scale.
        default_bits: MLX's choice where bits are omitted.
        default_group_size: MLX's choice where the group size is omitted.
        byte_scales: Scales are one byte (E8M0 or E4M3); otherwise they have the weight's dtype.
        has_biases: Each group has an offset β as well.
    """

    name: str
    bits: tuple[int, ...]
    group_sizes: tuple[int, ...]
    default_bits: int
    default_group_size: int
    byte_scales: bool
    has_biases: bool


MODES: Mapping[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("affine", (2, 3, 4, 5, 6, 8), (32, 64, 128), 4, 64, False, True),
        Mode("mxfp4", (4,), (32,), 4, 32, True, False),
        Mode("mxfp8", (8,), (32,), 8, 32, True, False),
        Mode("nvfp4", (4,), (16,), 4, 16, True, False),
    )
}

DEFAULT_MODE = "affine"


#: A group size: one group for a whole row, however long ("channel" or -1 in producers' words).
ROW = 0


@dataclass(frozen=True, slots=True, order=True)
class Scheme:
    """How a weight is quantised. The three fields mean nothing apart.

    Producers have affine groups that no MLX kernel takes: whole rows, or 256 and more. Such a
    scheme is what the checkpoint has; `landing` says what MLX computes instead, exactly.
    """

    mode: str
    bits: int
    group_size: int

    def __str__(self) -> str:
        size = "per row" if self.group_size == ROW else f"g{self.group_size}"
        return f"{self.mode} {self.bits}-bit {size}"

    def problem(self) -> str:
        """Why no MLX kernel takes this scheme, or ""."""
        mode = MODES.get(self.mode)
        if mode is None:
            return f"there is no mode '{self.mode}'; the modes are {', '.join(MODES)}"
        if self.bits not in mode.bits:
            return f"{self.mode} has no {self.bits} bits, only {_spell(mode.bits)}"
        if self.group_size not in mode.group_sizes:
            return (
                f"{self.mode} has no group size {self.group_size}, only {_spell(mode.group_sizes)}"
            )
        return ""


def _spell(values: tuple[int, ...]) -> str:
    return " ".join(str(value) for value in values)


def complete(mode: str | None, bits: int | None, group_size: int | None) -> Scheme:
    """A whole scheme from a partial declaration, by MLX's rule.

    An omitted mode is `affine`, whatever the global mode is; omitted bits or group size are the
    mode's defaults. That is what `Module.to_quantized` does with the override's dictionary.

    Raises:
        ValueError: a mode, bits or group size that MLX does not have.
    """
    name = DEFAULT_MODE if mode is None else mode
    row = MODES.get(name)
    if row is None:
        raise ValueError(Scheme(name, 0, 0).problem())
    scheme = Scheme(
        name,
        row.default_bits if bits is None else bits,
        row.default_group_size if group_size is None else group_size,
    )
    if problem := scheme.problem():
        raise ValueError(problem)
    return scheme


def packed_bytes(scheme: Scheme | None, weights: int, float_bytes: int) -> int:
    """Bytes of `weights` weights and their companions, whole groups assumed.

    Args:
        scheme: How they are packed, with a group size of its own; None: dense.
        weights: How many there are.
        float_bytes: Bytes of a floating-point number: of a dense weight, or of a scale and an
            offset where the mode has none of one byte.
    """
    if scheme is None:
        return weights * float_bytes
    mode = MODES[scheme.mode]
    scale = 1 if mode.byte_scales else float_bytes
    offset = float_bytes if mode.has_biases else 0
    return weights * scheme.bits // 8 + weights // scheme.group_size * (scale + offset)
