"""Producers' formats in plain NumPy: what a file holds, and what it means by the published formula.

Nothing here knows MLX or mlxpipe. A maker draws random tensors as a producer's file has them; the
decoder beside it computes the dense weight W[o, i] in float64 from those tensors alone, one formula
of FORMATS §2 each, written as loops over bits and groups rather than as the clever form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

#: e2m1: sign, two bits of exponent, one of mantissa.
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])

#: The nibble of a 32-bit word that holds AWQ's code number 0, 1, 2, …
AWQ_NIBBLE = (0, 4, 1, 5, 2, 6, 3, 7)

NUMPY_DTYPES = {
    "U8": np.uint8,
    "F8_E4M3": np.uint8,
    "F8_E8M0": np.uint8,
    "I32": np.int32,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "BF16": np.float32,
}


class Tensor(NamedTuple):
    """A tensor of a file: bytes of floats as uint8, BF16 as float32 that BF16 can hold."""

    dtype: str
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def data(self) -> bytes:
        """As the file has it, little-endian."""
        if self.dtype == "BF16":
            return (self.array.view(np.uint32) >> 16).astype("<u2").tobytes()
        return np.ascontiguousarray(self.array).tobytes()


@dataclass(frozen=True)
class Stored:
    """One layer of a file.

    Attributes:
        leaves: What follows the layer's path -> tensor.
        weight: The dense weight that they mean, float64 [o, i].
        config: What config.json would say of it, for those that a test writes to disk.
        variant: The layout's variant where one must be declared.
    """

    leaves: dict[str, Tensor]
    weight: np.ndarray
    config: dict[str, Any] = field(default_factory=dict)
    variant: str = ""


# --- numbers ---------------------------------------------------------------------------------


def as_tensor(dtype: str, values: Any) -> Tensor:
    """Values rounded to a dtype."""
    array = np.asarray(values)
    if dtype == "BF16":
        bits = np.ascontiguousarray(array, np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return Tensor(dtype, rounded.astype(np.uint32).view(np.float32).reshape(array.shape))
    return Tensor(dtype, array.astype(NUMPY_DTYPES[dtype]))


def e4m3(code: int) -> float:
    """Sign, four bits of exponent with bias 7, three of mantissa; 127 and 255 are NaN."""
    sign = -1.0 if code & 0x80 else 1.0
    exponent, mantissa = (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


E4M3 = np.array([e4m3(code) for code in range(256)])


def e8m0(codes: np.ndarray) -> np.ndarray:
    """Powers of two with bias 127."""
    return 2.0 ** (codes.astype(np.float64) - 127)


# --- bit streams -----------------------------------------------------------------------------


def write_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """[n] codes -> ⌈n·bits/32⌉ words, the least significant bit first."""
    words = [0] * -(-codes.size * bits // 32)
    for number, code in enumerate(codes.tolist()):
        for bit in range(bits):
            place = number * bits + bit
            words[place // 32] |= ((code >> bit) & 1) << (place % 32)
    return np.array(words, np.uint32)


def read_stream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The inverse: `count` codes of a stream of words."""
    stream = sum(int(word) << (32 * number) for number, word in enumerate(words.view(np.uint32)))
    return np.array([(stream >> (bits * at)) & ((1 << bits) - 1) for at in range(count)], np.int64)


def pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """[o, i] -> I32 [o, ⌈i·bits/32⌉]."""
    return np.stack([write_stream(row, bits) for row in codes]).view(np.int32)


def unpack_rows(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """I32 [o, n] -> [o, count]."""
    return np.stack([read_stream(np.ascontiguousarray(row), bits, count) for row in words])


def nibbles(packed: np.ndarray) -> np.ndarray:
    """U8 [o, n] -> [o, 2n], the low nibble first."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)


def random_codes(rng: np.random.Generator, bits: int, *shape: int) -> np.ndarray:
    return rng.integers(0, 1 << bits, shape)


def random_floats8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """E4M3 bytes without the two NaNs."""
    codes = rng.integers(0, 254, shape)
    return np.where(codes >= 127, codes + 1, codes).astype(np.uint8)


def random_scales(rng: np.random.Generator, bits: int, *shape: int) -> np.ndarray:
    """Scales that make weights of about 0.05."""
    return rng.uniform(0.05, 0.2, shape) / (1 << bits)


def random_order(rng: np.random.Generator, columns: int, group: int) -> np.ndarray:
    """The group of each column, every group as often as the others."""
    return rng.permutation(np.arange(columns) // group).astype(np.int32)


# --- compressed-tensors ----------------------------------------------------------------------


def packed_integers(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    bits: int,
    group: int,
    *,
    symmetric: bool = True,
    ordered: bool = False,
    scale_dtype: str = "BF16",
) -> Stored:
    """`pack-quantized`; `group` -1 is a whole row."""
    size = columns if group == -1 else group
    groups = columns // size
    leaves = {
        "weight_packed": Tensor("I32", pack_rows(random_codes(rng, bits, rows, columns), bits)),
        "weight_scale": as_tensor(scale_dtype, random_scales(rng, bits, rows, groups)),
        "weight_shape": as_tensor("I64", [rows, columns]),
    }
    if not symmetric:
        points = random_codes(rng, bits, groups, rows)
        leaves["weight_zero_point"] = Tensor("I32", pack_rows(points, bits).T)
    if ordered:
        leaves["weight_g_idx"] = Tensor("I32", random_order(rng, columns, size))
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group == -1 else "group",
        "group_size": None if group == -1 else group,
        "actorder": "group" if ordered else None,
    }
    return Stored(
        leaves,
        decode_packed_integers(leaves, bits, size),
        compressed_tensors("pack-quantized", weights),
    )


def decode_packed_integers(leaves: dict[str, Tensor], bits: int, size: int) -> np.ndarray:
    """(u - z)·s with u = q + 2^(b-1), z packed along dim 0 or 2^(b-1)."""
    rows, columns = (int(each) for each in leaves["weight_shape"].array)
    scales = leaves["weight_scale"].array.astype(np.float64)
    stored = unpack_rows(leaves["weight_packed"].array, bits, columns)
    points = np.full(scales.shape, 1 << (bits - 1))
    if "weight_zero_point" in leaves:
        points = unpack_rows(leaves["weight_zero_point"].array.T, bits, rows).T
    order = np.arange(columns) // size
    if "weight_g_idx" in leaves and -1 not in leaves["weight_g_idx"].array:
        order = leaves["weight_g_idx"].array
    return (stored - points[:, order]) * scales[:, order]


def plain_integers(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    group: int,
    *,
    symmetric: bool = True,
    scale_dtype: str = "BF16",
) -> Stored:
    """`int-quantized`: a signed byte for each weight; `group` -1 is a whole row."""
    groups = 1 if group == -1 else columns // group
    leaves = {
        "weight": Tensor("I8", rng.integers(-128, 128, (rows, columns), dtype=np.int8)),
        "weight_scale": as_tensor(scale_dtype, random_scales(rng, 8, rows, groups)),
    }
    if not symmetric:
        points = rng.integers(-128, 128, (rows, groups), dtype=np.int8)
        leaves["weight_zero_point"] = Tensor("I8", points)
    weights = {
        "num_bits": 8,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "channel" if group == -1 else "group",
        "group_size": None if group == -1 else group,
    }
    return Stored(
        leaves, decode_plain_integers(leaves), compressed_tensors("int-quantized", weights)
    )


def decode_plain_integers(leaves: dict[str, Tensor]) -> np.ndarray:
    """(q - z)·s, z 0 where it is not stored."""
    codes = leaves["weight"].array.astype(np.float64)
    scales = leaves["weight_scale"].array.astype(np.float64)
    size = codes.shape[1] // scales.shape[1]
    if "weight_zero_point" in leaves:
        points = leaves["weight_zero_point"].array.astype(np.float64)
        codes = codes - np.repeat(points, size, axis=1)
    return codes * np.repeat(scales, size, axis=1)


def compressed_tensors(form: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "format": form}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def floats4(
    rng: np.random.Generator, rows: int, columns: int, form: str, *, factor: float | None = None
) -> Stored:
    """NVFP4 of compressed-tensors (`divided`) or ModelOpt (`multiplied`), or `mxfp4`."""
    size = 32 if form == "mxfp4" else 16
    packed = Tensor("U8", rng.integers(0, 256, (rows, columns // 2), dtype=np.uint8))
    groups = columns // size
    if form == "mxfp4":
        scales = Tensor("U8", rng.integers(118, 124, (rows, groups), dtype=np.uint8))
        leaves = {"weight_packed": packed, "weight_scale": scales}
        weights = {"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group"}
        config = compressed_tensors("mxfp4-pack-quantized", weights)
        return Stored(leaves, decode_floats4(leaves, size), config)
    # Positive, as scales are, and up to 448.
    scales = Tensor("F8_E4M3", rng.integers(80, 127, (rows, groups), dtype=np.uint8))
    chosen = rng.uniform(2e-5, 2e-4) if factor is None else factor
    if form == "multiplied":
        leaves = {
            "weight": packed,
            "weight_scale": scales,
            "weight_scale_2": as_tensor("F32", chosen),
            "input_scale": as_tensor("F32", 0.5),
        }
        config = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
        return Stored(leaves, decode_floats4(leaves, size), config)
    leaves = {
        "weight_packed": packed,
        "weight_scale": scales,
        "weight_global_scale": as_tensor("F32", [1 / chosen]),
        "input_global_scale": as_tensor("F32", [2.0]),
    }
    weights = {"num_bits": 4, "type": "float", "group_size": 16, "strategy": "tensor_group"}
    config = compressed_tensors("nvfp4-pack-quantized", weights)
    return Stored(leaves, decode_floats4(leaves, size), config)


def decode_floats4(leaves: dict[str, Tensor], size: int) -> np.ndarray:
    """e2m1 · e4m3 / global, e2m1 · e4m3 · weight_scale_2, or e2m1 · 2^(s-127)."""
    main = leaves.get("weight_packed") or leaves["weight"]
    scales = leaves["weight_scale"]
    factors = e8m0(scales.array) if scales.dtype == "U8" else E4M3[scales.array]
    weight = E2M1[nibbles(main.array)] * np.repeat(factors, size, axis=1)
    if "weight_global_scale" in leaves:
        weight = weight / leaves["weight_global_scale"].array.astype(np.float64)
    if "weight_scale_2" in leaves:
        weight = weight * leaves["weight_scale_2"].array.astype(np.float64)
    return weight


# --- FP8 -------------------------------------------------------------------------------------

#: How the scale of a tensor or of rows may be shaped.
FLOAT8_FORMS = ("tensor", "tensor [1]", "row", "row [o, 1]")


def floats8(
    rng: np.random.Generator, rows: int, columns: int, form: str, scale_dtype: str = "F32"
) -> Stored:
    """ModelOpt's FP8, or compressed-tensors' `float-quantized` (`row [o, 1]`)."""
    shape = {"tensor": (), "tensor [1]": (1,), "row": (rows,), "row [o, 1]": (rows, 1)}[form]
    leaves = {
        "weight": Tensor("F8_E4M3", random_floats8(rng, rows, columns)),
        "weight_scale": as_tensor(scale_dtype, rng.uniform(2e-4, 2e-3, shape)),
        "input_scale": as_tensor("F32", 0.5),
    }
    config: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": "FP8"}
    if form == "row [o, 1]":
        weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
        config = compressed_tensors("float-quantized", weights)
    return Stored(leaves, decode_floats8(leaves), config)


def decode_floats8(leaves: dict[str, Tensor]) -> np.ndarray:
    """q · s, s for the tensor or for each row."""
    scales = leaves["weight_scale"].array.astype(np.float64)
    return E4M3[leaves["weight"].array] * (scales.reshape(-1, 1) if scales.size > 1 else scales)


def blocks8(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    block: tuple[int, int],
    *,
    powers: bool,
    scale_dtype: str = "F32",
) -> Stored:
    """DeepSeek's and Qwen's FP8; blocks at the edges may be short."""
    shape = (-(-rows // block[0]), -(-columns // block[1]))
    exponents = rng.integers(-12, -8, shape)
    scales = 2.0**exponents if powers else rng.uniform(2e-4, 2e-3, shape)
    byte = scale_dtype in ("U8", "F8_E8M0")
    stored = as_tensor(scale_dtype, exponents + 127 if byte else scales)
    leaves = {
        "weight": Tensor("F8_E4M3", random_floats8(rng, rows, columns)),
        "weight_scale_inv": stored,
    }
    config = {"quant_method": "fp8", "weight_block_size": list(block)}
    return Stored(leaves, decode_blocks8(leaves, block), config)


def decode_blocks8(leaves: dict[str, Tensor], block: tuple[int, int]) -> np.ndarray:
    """q · s of its block, block (r, c) holding rows r·B … and columns c·B …"""
    codes, scales = leaves["weight"].array, leaves["weight_scale_inv"]
    factors = e8m0(scales.array) if scales.dtype in ("U8", "F8_E8M0") else scales.array
    rows, columns = np.arange(codes.shape[0]) // block[0], np.arange(codes.shape[1]) // block[1]
    return E4M3[codes] * factors.astype(np.float64)[rows[:, None], columns]


# --- GPTQ and AWQ ----------------------------------------------------------------------------


def gptq(
    rng: np.random.Generator,
    rows: int,
    columns: int,
    bits: int,
    group: int,
    *,
    version: str = "gptq",
    ordered: bool | None = None,
) -> Stored:
    """qweight I32 [i·b/32, o]; `ordered` None leaves g_idx out, False makes it trivial."""
    size = columns if group == -1 else group
    groups = columns // size
    points = random_codes(rng, bits, groups, rows)
    stored = points if version == "gptq_v2" else (points - 1) % (1 << bits)
    leaves = {
        "qweight": Tensor("I32", pack_rows(random_codes(rng, bits, rows, columns), bits).T),
        "qzeros": Tensor("I32", pack_rows(stored, bits)),
        "scales": as_tensor("F16", random_scales(rng, bits, groups, rows)),
    }
    if ordered is not None:
        trivial = (np.arange(columns) // size).astype(np.int32)
        leaves["g_idx"] = Tensor("I32", random_order(rng, columns, size) if ordered else trivial)
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": bool(ordered),
        "sym": False,
        "checkpoint_format": version,
    }
    return Stored(leaves, decode_gptq(leaves, bits, size, version), config, version)


def decode_gptq(leaves: dict[str, Tensor], bits: int, size: int, version: str) -> np.ndarray:
    """(q - z)·s[g_idx]; the first format stores z - 1 in `bits` bits, so that 0 wraps around."""
    scales = leaves["scales"].array.astype(np.float64).T
    rows, columns = scales.shape[0], leaves["qweight"].shape[0] * 32 // bits
    codes = unpack_rows(leaves["qweight"].array.T, bits, columns)
    points = unpack_rows(leaves["qzeros"].array, bits, rows).T
    if version == "gptq":
        points = (points + 1) % (1 << bits)
    order = leaves["g_idx"].array if "g_idx" in leaves else np.arange(columns) // size
    return (codes - points[:, order]) * scales[:, order]


def awq(rng: np.random.Generator, rows: int, columns: int, group: int) -> Stored:
    """qweight I32 [i, o/8]: the outputs are packed, in AWQ's order."""
    groups = columns // group
    leaves = {
        "qweight": Tensor("I32", awq_words(random_codes(rng, 4, columns, rows))),
        "qzeros": Tensor("I32", awq_words(random_codes(rng, 4, groups, rows))),
        "scales": as_tensor("F16", random_scales(rng, 4, groups, rows)),
    }
    config = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": group,
        "zero_point": True,
        "version": "gemm",
    }
    return Stored(leaves, decode_awq(leaves, group), config)


def awq_words(codes: np.ndarray) -> np.ndarray:
    """[n, 8m] -> I32 [n, m], code k of eight in nibble AWQ_NIBBLE[k]."""
    eights = codes.reshape(codes.shape[0], -1, 8).astype(np.uint32)
    words = np.zeros(eights.shape[:-1], np.uint32)
    for number, nibble in enumerate(AWQ_NIBBLE):
        words |= eights[..., number] << (4 * nibble)
    return words.view(np.int32)


def awq_codes(words: np.ndarray) -> np.ndarray:
    """I32 [n, m] -> [n, 8m]."""
    eights = [(words.view(np.uint32) >> (4 * nibble)) & 15 for nibble in AWQ_NIBBLE]
    return np.stack(eights, axis=-1).reshape(words.shape[0], -1).astype(np.int64)


def decode_awq(leaves: dict[str, Tensor], group: int) -> np.ndarray:
    """(q - z)·s, transposed to [o, i]."""
    codes = awq_codes(leaves["qweight"].array)
    order = np.arange(codes.shape[0]) // group
    points = awq_codes(leaves["qzeros"].array)[order]
    return ((codes - points) * leaves["scales"].array.astype(np.float64)[order]).T
