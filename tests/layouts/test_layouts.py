"""Every producer's packing against its published formula, from its names to the layers' answers.

`decoders` draws a layer as a file has it and computes the dense weight that it means. Here the same
tensors go the way of a plan (names to roles, the layout by structure, the scheme by arithmetic) and
through the converter.
"""

from __future__ import annotations

from typing import NamedTuple

import decoders
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxpipe.graph.layers import PackedEmbedding, PackedExperts, PackedLinear
from mlxpipe.graph.layouts import CONVERTERS, Packing
from mlxpipe.naming.groups import group_tensors
from mlxpipe.quant.layouts import EXACT, EXACT_CODES, LOSSY, Layout, arrays_of, landing, recognise
from mlxpipe.quant.modes import MODES, ROW, Scheme
from mlxpipe.quant.verify import Evidence, solutions

BITS = (2, 3, 4, 5, 6, 8)
GPTQ_BITS = (2, 3, 4, 8)
FORMS4 = ("divided", "multiplied", "mxfp4")

#: Half a unit in the last place of 8 and of 11 bits, relative to the number.
HALF_ULP = {mx.bfloat16: 2.0**-8, mx.float16: 2.0**-11}

seeds = st.integers(0, 2**32 - 1)
rows_of_any_number = st.integers(1, 9)


class Converted(NamedTuple):
    layout: Layout
    scheme: Scheme
    landed: Scheme | None
    arrays: dict[str, mx.array]


def as_mlx(tensor):
    array = mx.array(np.ascontiguousarray(tensor.array))
    return array.astype(mx.bfloat16) if tensor.dtype == "BF16" else array


def group_of(leaves):
    named = {f"x.{leaf}": tensor for leaf, tensor in sorted(leaves.items())}
    (group,) = group_tensors(named).groups.values()
    return group


def convert(stored, columns, *, powers=True, dtype=mx.float32):
    """As a plan and a graph would."""
    group = group_of(stored.leaves)
    layout = recognise(group)
    assert layout is not None
    amounts = layout.amounts_to(arrays_of(group))
    evidence = Evidence(amounts["weight"], amounts["scales"], amounts.get("biases"), columns)
    (scheme,) = solutions(evidence)
    landed = landing(scheme, columns) if powers else None
    parts = {
        role: as_mlx(stored.leaves[part.names[0].removeprefix("x.")])
        for role, part in group.parts.items()
    }
    packing = Packing(scheme, landed, stored.variant, columns, dtype)
    return Converted(layout, scheme, landed, CONVERTERS[layout.name](parts, packing))


def decoded(found):
    """The dense weight [o, i] that the converted arrays mean, in float64, its columns in order."""
    arrays, scheme = found.arrays, found.landed
    if scheme is None:
        return np.array(arrays["weight"].astype(mx.float32)).astype(np.float64)
    floats = {
        name: array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array
        for name, array in arrays.items()
    }
    weight = mx.dequantize(
        floats["weight"],
        floats["scales"],
        floats.get("biases"),
        group_size=scheme.group_size,
        bits=scheme.bits,
        mode=scheme.mode,
        dtype=mx.float32,
    )
    weight = np.array(weight).astype(np.float64)
    if "permutation" in floats:
        weight = weight[:, np.argsort(np.array(floats["permutation"]))]
    if "multiplier" in floats:
        weight = weight * np.array(floats["multiplier"]).astype(np.float64).reshape(-1, 1)
    return weight


def assert_triple(found, rows, columns):
    """The shapes and dtypes that MLX's kernels take."""
    scheme, arrays = found.landed, found.arrays
    groups = (rows, columns // scheme.group_size)
    assert scheme.problem() == ""
    assert (arrays["weight"].dtype, arrays["weight"].shape) == (
        mx.uint32,
        (rows, columns * scheme.bits // 32),
    )
    assert arrays["scales"].shape == groups
    assert ("biases" in arrays) == MODES[scheme.mode].has_biases
    if "biases" in arrays:
        assert arrays["biases"].shape == groups
        assert arrays["biases"].dtype == arrays["scales"].dtype
    else:
        assert arrays["scales"].dtype == mx.uint8


# --- integers --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [32, 64, 128, 256, -1])
@given(
    seed=seeds,
    rows=rows_of_any_number,
    blocks=st.integers(1, 2),
    symmetric=st.booleans(),
    ordered=st.booleans(),
    scale_dtype=st.sampled_from(["BF16", "F16", "F32"]),
)
@settings(max_examples=6)
def test_compressed_tensors_integers(
    bits, group, seed, rows, blocks, symmetric, ordered, scale_dtype
):
    columns = 256 * blocks if group == -1 else group * blocks
    stored = decoders.packed_integers(
        np.random.default_rng(seed),
        rows,
        columns,
        bits,
        group,
        symmetric=symmetric,
        ordered=ordered,
        scale_dtype=scale_dtype,
    )
    found = convert(stored, columns)
    assert (found.layout.name, found.layout.grade) == ("packed_integers", EXACT_CODES)
    assert found.scheme.bits == bits
    assert_triple(found, rows, columns)
    # With 16-bit scales float32 holds s·q and z·s; with 24-bit ones each of three results rounds.
    if scale_dtype == "F32":
        bound = 3 * 2.0**-24 * 2.0**bits * np.abs(stored.leaves["weight_scale"].array).max()
        assert np.abs(decoded(found) - stored.weight).max() <= bound
    else:
        assert np.array_equal(decoded(found), stored.weight)


@pytest.mark.parametrize("group", [32, 64, 128, 256, -1])
@given(
    seed=seeds,
    rows=rows_of_any_number,
    blocks=st.integers(1, 2),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["BF16", "F16", "F32"]),
)
@settings(max_examples=12)
def test_integers_of_a_byte_each(group, seed, rows, blocks, symmetric, scale_dtype):
    columns = 256 * blocks if group == -1 else group * blocks
    stored = decoders.plain_integers(
        np.random.default_rng(seed),
        rows,
        columns,
        group,
        symmetric=symmetric,
        scale_dtype=scale_dtype,
    )
    found = convert(stored, columns)
    assert (found.layout.name, found.layout.grade) == ("plain_integers", EXACT_CODES)
    assert found.scheme.bits == 8
    assert_triple(found, rows, columns)
    if scale_dtype == "F32":
        bound = 3 * 2.0**-24 * 2.0**9 * np.abs(stored.leaves["weight_scale"].array).max()
        assert np.abs(decoded(found) - stored.weight).max() <= bound
    else:
        assert np.array_equal(decoded(found), stored.weight)


def test_every_code_of_a_byte():
    codes = np.arange(-128, 128, dtype=np.int8).reshape(2, 128)
    leaves = {
        "weight": decoders.Tensor("I8", codes),
        "weight_scale": decoders.as_tensor("F32", [[0.5], [2.0]]),
    }
    stored = decoders.Stored(leaves, codes * np.array([[0.5], [2.0]]), {})
    assert np.array_equal(decoded(convert(stored, 128)), stored.weight)


@pytest.mark.parametrize(
    ("group", "columns", "stored_as", "landed"),
    [
        (32, 64, 32, 32),
        (96, 192, 96, 32),
        (128, 256, 128, 128),
        (256, 512, 256, 128),
        (-1, 192, 192, 64),
        (-1, 160, 160, 32),
        (-1, 128, 128, 128),
        (-1, 384, ROW, 128),
    ],
)
def test_coarse_groups_land_on_kernels_exactly(group, columns, stored_as, landed):
    stored = decoders.packed_integers(np.random.default_rng(0), 5, columns, 4, group)
    found = convert(stored, columns)
    sizes = {stored_as, ROW} if group == -1 else {stored_as}
    assert found.scheme.group_size in sizes
    assert found.landed == Scheme("affine", 4, landed)
    assert np.array_equal(decoded(found), stored.weight)


@pytest.mark.parametrize("columns", [16, 48, 80])
def test_rows_that_32_does_not_divide_have_no_kernel(columns):
    assert landing(Scheme("affine", 4, ROW), columns) is None


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [None, mx.bfloat16, mx.float16])
@given(seed=seeds, symmetric=st.booleans())
@settings(max_examples=8)
def test_in_16_bits_only_the_offset_rounds(bits, dtype, seed, symmetric):
    """`exact_codes`: the codes are the producer's, β = -z·s is off by half a unit at most."""
    rng = np.random.default_rng(seed)
    stored = decoders.packed_integers(rng, 5, 128, bits, 32, symmetric=symmetric)
    plain, found = convert(stored, 128), convert(stored, 128, dtype=dtype)
    kind = dtype or mx.bfloat16
    assert found.arrays["scales"].dtype == found.arrays["biases"].dtype == kind
    assert mx.array_equal(found.arrays["weight"], plain.arrays["weight"])
    if kind == mx.bfloat16:
        assert mx.array_equal(found.arrays["scales"].astype(mx.float32), plain.arrays["scales"])
    exact = np.array(plain.arrays["biases"]).astype(np.float64)
    rounded = np.array(found.arrays["biases"].astype(mx.float32)).astype(np.float64)
    # float16's smallest steps are absolute.
    assert np.all(np.abs(rounded - exact) <= np.abs(exact) * HALF_ULP[kind] + 2.0**-25)


@pytest.mark.parametrize("index", ["trivial", "never set"])
def test_an_index_that_says_nothing_is_dropped(index):
    """compressed-tensors writes -1 where no order was chosen."""
    stored = decoders.packed_integers(np.random.default_rng(1), 3, 128, 4, 32)
    values = np.full(128, -1) if index == "never set" else np.arange(128) // 32
    stored.leaves["weight_g_idx"] = decoders.as_tensor("I32", values)
    found = convert(stored, 128)
    assert "permutation" not in found.arrays
    assert np.array_equal(decoded(found), stored.weight)


@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("bits", GPTQ_BITS)
@pytest.mark.parametrize("group", [32, 64, 128, 256, -1])
@given(
    seed=seeds,
    words=st.integers(1, 2),
    blocks=st.integers(1, 2),
    ordered=st.sampled_from([None, False, True]),
)
@settings(max_examples=6)
def test_gptq(version, bits, group, seed, words, blocks, ordered):
    columns = 256 * blocks if group == -1 else group * blocks
    rows = words * (32 if bits == 3 else 32 // bits)
    rng = np.random.default_rng(seed)
    stored = decoders.gptq(rng, rows, columns, bits, group, version=version, ordered=ordered)
    found = convert(stored, columns)
    assert (found.layout.name, found.layout.grade) == ("gptq", EXACT_CODES)
    assert_triple(found, rows, columns)
    assert np.array_equal(decoded(found), stored.weight)
    real = stored.leaves["g_idx"].array if ordered else None
    moved = real is not None and np.any(np.diff(real) < 0)
    assert ("permutation" in found.arrays) == bool(moved)


@pytest.mark.parametrize("bits", GPTQ_BITS)
def test_gptqs_first_format_wraps_a_zero_point_of_zero(bits):
    """z = 0 is stored as 2^bits - 1, and means 0 and not 2^bits."""
    rows = 32
    stored = decoders.gptq(np.random.default_rng(2), rows, 64, bits, 32)
    all_ones = np.full(stored.leaves["qzeros"].shape, -1, np.int32)
    stored.leaves["qzeros"] = decoders.Tensor("I32", all_ones)
    found = convert(stored, 64)
    assert np.array_equal(decoded(found), decoders.decode_gptq(stored.leaves, bits, 32, "gptq"))
    assert mx.abs(found.arrays["biases"]).max().item() == 0


@given(seed=seeds, eights=st.integers(1, 3), group=st.sampled_from([32, 64, 128]))
def test_awq(seed, eights, group):
    rows, columns = 8 * eights, 2 * group
    stored = decoders.awq(np.random.default_rng(seed), rows, columns, group)
    found = convert(stored, columns)
    assert (found.layout.name, found.layout.grade) == ("awq", EXACT_CODES)
    assert found.scheme == Scheme("affine", 4, group)
    assert_triple(found, rows, columns)
    assert np.array_equal(decoded(found), stored.weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: decoders.packed_integers(rng, 4, 128, 4, 32, ordered=True),
        lambda rng: decoders.gptq(rng, 32, 128, 4, 32, ordered=True),
    ],
    ids=["compressed-tensors", "gptq"],
)
def test_an_order_with_groups_of_unequal_size_is_refused(make):
    stored = make(np.random.default_rng(3))
    leaf = next(leaf for leaf in stored.leaves if leaf.endswith("g_idx"))
    uneven = np.r_[np.zeros(33), np.arange(33, 128) // 32].astype(np.int32)
    stored.leaves[leaf] = decoders.Tensor("I32", uneven[::-1].copy())
    with pytest.raises(ValueError, match="unequal size"):
        convert(stored, 128)


# --- floats ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS4)
@given(seed=seeds, rows=rows_of_any_number, blocks=st.integers(1, 4))
def test_four_bit_floats(form, seed, rows, blocks):
    columns = 32 * blocks
    stored = decoders.floats4(np.random.default_rng(seed), rows, columns, form)
    found = convert(stored, columns)
    assert (found.layout.name, found.layout.grade) == ("packed_float4", EXACT)
    assert_triple(found, rows, columns)
    if form == "divided":
        # 1 / g rounds once, to float32.
        assert np.allclose(decoded(found), stored.weight, rtol=2.0**-24, atol=0)
    else:
        assert np.array_equal(decoded(found), stored.weight)


@pytest.mark.parametrize("exponent", [-14, 0, 3])
def test_dividing_by_a_power_of_two_is_exact(exponent):
    factor = 2.0**exponent
    stored = decoders.floats4(np.random.default_rng(4), 4, 64, "divided", factor=factor)
    assert np.array_equal(decoded(convert(stored, 64)), stored.weight)


@pytest.mark.parametrize("form", FORMS4)
def test_every_code_and_every_scale_of_four_bit_floats(form):
    """All 16 codes under all scales: 254 of E4M3 that are numbers, and E8M0's up to 2^125."""
    scales = np.arange(1, 253) if form == "mxfp4" else np.r_[0:127, 128:255]
    size = 32 if form == "mxfp4" else 16
    stored = decoders.floats4(np.random.default_rng(0), scales.size, 32, form, factor=0.5)
    main = "weight" if form == "multiplied" else "weight_packed"
    pairs = np.arange(0, 16, 2) | (np.arange(1, 16, 2) << 4)
    stored.leaves[main] = decoders.as_tensor("U8", np.tile(pairs, (scales.size, 2)))
    dtype = stored.leaves["weight_scale"].dtype
    spread = np.repeat(scales[:, None], 32 // size, axis=1)
    stored.leaves["weight_scale"] = decoders.as_tensor(dtype, spread)
    expected = decoders.decode_floats4(stored.leaves, size)
    # float32 has no normal numbers below 2^-126.
    assert np.allclose(decoded(convert(stored, 32)), expected, rtol=0, atol=2.0**-126)


@pytest.mark.parametrize("form", decoders.FLOAT8_FORMS)
@given(
    seed=seeds,
    rows=rows_of_any_number,
    blocks=st.integers(1, 4),
    scale_dtype=st.sampled_from(["F32", "BF16", "F16"]),
)
@settings(max_examples=20)
def test_eight_bit_floats_per_tensor_and_per_row(form, seed, rows, blocks, scale_dtype):
    columns = 32 * blocks
    stored = decoders.floats8(np.random.default_rng(seed), rows, columns, form, scale_dtype)
    found = convert(stored, columns)
    assert (found.layout.name, found.layout.grade) == ("float8", EXACT)
    assert_triple(found, rows, columns)
    assert set(found.arrays["scales"].flatten().tolist()) == {127}
    assert np.array_equal(decoded(found), stored.weight)


def test_every_code_of_eight_bit_floats():
    stored = decoders.floats8(np.random.default_rng(0), 8, 32, "tensor")
    codes = np.r_[0:127, 128:255, 0, 0].astype(np.uint8).reshape(8, 32)
    stored.leaves["weight"] = decoders.Tensor("F8_E4M3", codes)
    expected = decoders.decode_floats8(stored.leaves)
    assert np.array_equal(decoded(convert(stored, 32)), expected)


#: Rows and columns around blocks of 64 and 128: whole, short at an edge, and less than one.
SIZES = st.sampled_from([1, 3, 63, 64, 65, 127, 128, 129, 192, 200, 256, 300])
WIDTHS = st.sampled_from([32, 64, 96, 128, 160, 192, 256, 288, 320])
BLOCKS = st.sampled_from([(128, 128), (64, 64), (64, 128), (1, 128), (32, 32)])


@pytest.mark.parametrize("scale_dtype", ["F32", "BF16", "U8", "F8_E8M0"])
@given(seed=seeds, rows=SIZES, columns=WIDTHS, block=BLOCKS)
@settings(max_examples=15)
def test_blocks_of_powers_of_two_are_exact(scale_dtype, seed, rows, columns, block):
    rng = np.random.default_rng(seed)
    stored = decoders.blocks8(rng, rows, columns, block, powers=True, scale_dtype=scale_dtype)
    if recognise(group_of(stored.leaves)).name == "float8":
        return  # One row or one block: the scale is the tensor's, tested above.
    found = convert(stored, columns)
    assert (found.layout.name, found.layout.grade) == ("float8_blocks", LOSSY)
    assert_triple(found, rows, columns)
    assert np.array_equal(decoded(found), stored.weight)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, None])
@given(seed=seeds, rows=SIZES, columns=WIDTHS, block=BLOCKS)
@settings(max_examples=15)
def test_blocks_of_any_scale_become_dense(dtype, seed, rows, columns, block):
    """Rounded once, to the dtype asked for: bfloat16 where none is."""
    stored = decoders.blocks8(np.random.default_rng(seed), rows, columns, block, powers=False)
    if recognise(group_of(stored.leaves)).name == "float8":
        return
    found = convert(stored, columns, powers=False, dtype=dtype)
    assert set(found.arrays) == {"weight"}
    assert found.arrays["weight"].dtype == (dtype or mx.bfloat16)
    if dtype is mx.float32:
        assert np.array_equal(decoded(found), stored.weight.astype(np.float32))
    else:
        bound = HALF_ULP[mx.bfloat16]
        assert np.allclose(decoded(found), stored.weight, rtol=bound, atol=0)


@pytest.mark.parametrize("byte", [0, 1, 127, 254])
def test_e8m0_bytes_are_taken_as_they_are(byte):
    """2^-127 is no normal float32: a way through logarithms would lose it."""
    rng = np.random.default_rng(5)
    stored = decoders.blocks8(rng, 128, 128, (64, 64), powers=True, scale_dtype="F8_E8M0")
    stored.leaves["weight_scale_inv"] = decoders.as_tensor("F8_E8M0", np.full((2, 2), byte))
    assert set(convert(stored, 128).arrays["scales"].flatten().tolist()) == {byte}


# --- layers ----------------------------------------------------------------------------------

FORMATS = {
    "ct 3-bit, ordered": lambda rng: decoders.packed_integers(
        rng, 48, 256, 3, 64, symmetric=False, ordered=True
    ),
    "ct 5-bit, per row": lambda rng: decoders.packed_integers(rng, 48, 256, 5, -1),
    "ct bytes": lambda rng: decoders.plain_integers(rng, 48, 256, 64, symmetric=False),
    "ct nvfp4": lambda rng: decoders.floats4(rng, 48, 256, "divided"),
    "ct mxfp4": lambda rng: decoders.floats4(rng, 48, 256, "mxfp4"),
    "modelopt nvfp4": lambda rng: decoders.floats4(rng, 48, 256, "multiplied"),
    "fp8 per tensor": lambda rng: decoders.floats8(rng, 48, 256, "tensor [1]"),
    "fp8 per row": lambda rng: decoders.floats8(rng, 48, 256, "row [o, 1]"),
    "fp8 in blocks": lambda rng: decoders.blocks8(rng, 48, 256, (32, 128), powers=True),
    "gptq, ordered": lambda rng: decoders.gptq(rng, 48, 256, 4, 32, ordered=True),
    "gptq v2 8-bit": lambda rng: decoders.gptq(rng, 48, 256, 8, 128, version="gptq_v2"),
    "awq": lambda rng: decoders.awq(rng, 48, 256, 64),
}

#: Rows of input below and above this many take different kernels.
DENSE_ROWS = 4


def close(found, expected):
    """To 1e-5 of the largest entry: float32 sums in another order."""
    return np.abs(np.array(found) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rows", [1, DENSE_ROWS - 1, DENSE_ROWS, 9])
@pytest.mark.parametrize("dense_rows", [None, DENSE_ROWS])
def test_a_linear_computes_with_the_producers_weight(name, rows, dense_rows):
    rng = np.random.default_rng(6)
    stored = FORMATS[name](rng)
    found = convert(stored, 256)
    bias = rng.normal(size=48).astype(np.float32)
    x = rng.normal(size=(1, rows, 256)).astype(np.float32)
    arrays = {**found.arrays, "bias": mx.array(bias)}
    y = PackedLinear(found.landed, arrays, dense_rows)(mx.array(x))
    assert y.dtype == mx.float32
    # Were the bias added before the factor, it would all but vanish.
    assert close(y, x @ stored.weight.T + bias)


ROW_WISE = [name for name in FORMATS if "ordered" not in name]


@pytest.mark.parametrize("name", ROW_WISE)
@pytest.mark.parametrize("rows", [DENSE_ROWS - 1, DENSE_ROWS])
def test_an_embedding_returns_the_producers_rows(name, rows):
    rng = np.random.default_rng(7)
    stored = FORMATS[name](rng)
    found = convert(stored, 256)
    layer = PackedEmbedding(found.landed, dict(found.arrays), DENSE_ROWS, mx.float32)
    ids = mx.array([[0, 47, 3], [3, 3, 11]])
    assert layer(ids).shape == (2, 3, 256)
    assert close(layer(ids), stored.weight[np.array(ids)])
    x = rng.normal(size=(rows, 256)).astype(np.float32)
    assert close(layer.as_linear(mx.array(x)), x @ stored.weight.T)


@pytest.mark.parametrize("name", ROW_WISE)
@pytest.mark.parametrize("dense_rows", [None, 1], ids=["packed", "dense"])
def test_experts_compute_with_the_chosen_ones_weight(name, dense_rows):
    """Every expert has numbers of its own, its factor included."""
    rng = np.random.default_rng(8)
    experts = [FORMATS[name](rng) for _ in range(3)]
    found = [convert(each, 256) for each in experts]
    stacked = {leaf: mx.stack([one.arrays[leaf] for one in found]) for leaf in found[0].arrays}
    bias = rng.normal(size=(3, 48)).astype(np.float32)
    layer = PackedExperts(found[0].landed, {**stacked, "bias": mx.array(bias)}, dense_rows)
    x = rng.normal(size=(5, 1, 1, 256)).astype(np.float32)
    chosen = np.array([[0, 1], [2, 0], [1, 2], [2, 1], [0, 2]])
    y = np.array(layer(mx.array(x), mx.array(chosen)))
    assert y.shape == (5, 2, 1, 48)
    weights = np.stack([each.weight for each in experts])
    expected = np.einsum("ti,tkoi->tko", x[:, 0, 0], weights[chosen]) + bias[chosen]
    assert close(y[:, :, 0], expected)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_experts_in_16_bits_answer_with_either_kernel(dtype):
    """On a CPU MLX chooses among dense experts in float32 only: others stay packed."""
    found = convert(FORMATS["modelopt nvfp4"](np.random.default_rng(8)), 256)
    stacked = {leaf: mx.stack([array, array]) for leaf, array in found.arrays.items()}
    x = mx.random.normal((4, 1, 1, 256), key=mx.random.key(0)).astype(dtype)
    indices = mx.array([[0], [1], [1], [0]])
    answers = [
        PackedExperts(found.landed, dict(stacked), dense_rows)(x, indices)
        for dense_rows in (None, 1)
    ]
    assert {each.dtype for each in answers} == {dtype}
    # float16 is widened for the factor, and rounds once at the end.
    assert mx.allclose(*answers, rtol=2.0**-10, atol=1e-3)


@pytest.mark.parametrize("form", FORMS4)
def test_stacked_experts_convert_as_each_alone(form):
    rng = np.random.default_rng(9)
    experts = [decoders.floats4(rng, 8, 64, form) for _ in range(3)]
    group = group_of(
        {
            leaf: decoders.Tensor(
                tensor.dtype, np.stack([each.leaves[leaf].array for each in experts])
            )
            for leaf, tensor in experts[0].leaves.items()
        }
    )
    parts = {
        role: mx.stack([as_mlx(each.leaves[part.names[0].removeprefix("x.")]) for each in experts])
        for role, part in group.parts.items()
    }
    alone = [convert(each, 64) for each in experts]
    packing = Packing(alone[0].scheme, alone[0].landed, "", 64, mx.float32)
    found = CONVERTERS[recognise(group).name](parts, packing)
    assert set(found) == set(alone[0].arrays)
    for leaf, array in found.items():
        assert mx.array_equal(array, mx.stack([each.arrays[leaf] for each in alone]))
