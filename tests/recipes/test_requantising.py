"""One module's arrays under another scheme."""

from __future__ import annotations

import mlx.core as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxpipe.graph import recipe
from mlxpipe.graph.layouts import unpack
from mlxpipe.graph.recipe import apply, dense_weight
from mlxpipe.quant.modes import MODES, Scheme, packed_bytes

SCHEMES = [
    Scheme(mode.name, bits, size)
    for mode in MODES.values()
    for bits in mode.bits
    for size in mode.group_sizes
]
schemes = st.none() | st.sampled_from(SCHEMES)
dtypes = st.sampled_from([mx.float32, mx.bfloat16, mx.float16])


def weight(dtype: mx.Dtype = mx.bfloat16, *shape: int) -> mx.array:
    return mx.random.normal(shape or (8, 256), scale=0.05, key=mx.random.key(3)).astype(dtype)


def packed(scheme: Scheme | None, dense: mx.array) -> dict[str, mx.array]:
    return apply({"weight": dense}, None, scheme)


def values(arrays: dict[str, mx.array], scheme: Scheme | None) -> mx.array:
    if scheme is None:
        return arrays["weight"].astype(mx.float32)
    return dense_weight(arrays, scheme, mx.float32)


@settings(max_examples=80, deadline=None)
@given(schemes, schemes, dtypes)
def test_what_the_plan_counts_is_what_the_arrays_hold(stored, wanted, dtype):
    made = apply(packed(stored, weight(dtype)), stored, wanted)
    floats = 4 if dtype == mx.float32 and (stored is None or stored.mode == "affine") else 2
    assert sum(array.nbytes for array in made.values()) == packed_bytes(wanted, 8 * 256, floats)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_dense_weight_is_quantised_in_its_own_dtype(scheme):
    dense = weight()
    expected = mx.quantize(dense, scheme.group_size, scheme.bits, mode=scheme.mode)
    made = apply({"weight": dense, "bias": mx.ones(8)}, None, scheme)
    assert mx.array_equal(made["bias"], mx.ones(8)).item()
    for role, array in zip(("weight", "scales", "biases"), expected, strict=False):
        assert made[role].dtype == array.dtype
        assert mx.array_equal(made[role], array).item()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_same_scheme_changes_nothing(scheme):
    arrays = packed(scheme, weight())
    made = apply(arrays, scheme, scheme)
    assert made.keys() == arrays.keys()
    assert all(made[role] is arrays[role] for role in made)


@pytest.mark.parametrize("scheme", [each for each in SCHEMES if MODES[each.mode].byte_scales])
def test_modes_with_scales_of_a_byte_are_dequantised_exactly(scheme):
    arrays = packed(scheme, weight())
    made = apply(arrays, scheme, None)
    assert made["weight"].dtype == mx.bfloat16
    assert mx.array_equal(values(made, None), values(arrays, scheme)).item()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(SCHEMES), st.sampled_from(SCHEMES))
def test_packed_weights_are_requantised_from_their_values(stored, wanted):
    before = packed(stored, weight())
    made = apply(before, stored, wanted)
    if stored == wanted:
        return
    codes, *_ = mx.quantize(
        values(before, stored), wanted.group_size, wanted.bits, mode=wanted.mode
    )
    assert mx.array_equal(made["weight"], codes).item()
    floats = [array.dtype for role, array in made.items() if role != "weight"]
    assert set(floats) == {mx.uint8 if MODES[wanted.mode].byte_scales else mx.bfloat16}


def test_offsets_and_scales_of_16_bits_are_multiplied_in_float32():
    affine = Scheme("affine", 4, 64)
    arrays = packed(affine, weight())
    codes = unpack(arrays["weight"], 4, 256).astype(mx.float32).reshape(8, 4, 64)
    scales, offsets = (arrays[role].astype(mx.float32)[..., None] for role in ("scales", "biases"))
    exact = (scales * codes + offsets).reshape(8, 256)
    assert mx.allclose(values(arrays, affine), exact, rtol=1e-6, atol=1e-9).item()
    dense = apply(arrays, affine, None)["weight"]
    assert mx.array_equal(dense, values(arrays, affine).astype(mx.bfloat16)).item()


def test_a_tensor_scale_is_part_of_what_is_requantised():
    nvfp4 = Scheme("nvfp4", 4, 16)
    arrays = packed(nvfp4, weight()) | {"multiplier": mx.array(3.0)}
    made = apply(arrays, nvfp4, Scheme("affine", 8, 32))
    assert "multiplier" not in made
    wanted = 3.0 * values(packed(nvfp4, weight()), nvfp4)
    assert (values(made, Scheme("affine", 8, 32)) - wanted).abs().max().item() < 0.01


def test_experts_are_scaled_one_by_one():
    nvfp4 = Scheme("nvfp4", 4, 16)
    dense = weight(mx.bfloat16, 3, 8, 64)
    arrays = packed(nvfp4, dense) | {"multiplier": mx.array([1.0, 2.0, 4.0])}
    made = apply(arrays, nvfp4, None)["weight"].astype(mx.float32)
    wanted = values(packed(nvfp4, dense), nvfp4) * mx.array([1.0, 2.0, 4.0])[:, None, None]
    assert mx.array_equal(made, wanted.astype(mx.bfloat16).astype(mx.float32)).item()


def test_sorted_columns_are_put_back():
    affine = Scheme("affine", 8, 32)
    order = mx.random.permutation(mx.arange(256), key=mx.random.key(1))
    dense = weight(mx.float32)
    arrays = packed(affine, dense[:, order]) | {"permutation": order}
    made = apply(arrays, affine, None)
    assert "permutation" not in made
    # The step of 8 bits over a group of 32.
    assert (made["weight"] - dense).abs().max().item() < 0.4 / 255


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_slices_give_what_the_whole_gives(scheme, monkeypatch):
    dense = weight(mx.bfloat16, 3, 7, 128)
    expected = packed(scheme, dense)
    monkeypatch.setattr(recipe, "SLICE_WEIGHTS", 512)
    made = packed(scheme, dense)
    assert made.keys() == expected.keys()
    assert all(mx.array_equal(made[role], expected[role]).item() for role in made)


def test_memory_stays_near_a_slice(monkeypatch):
    monkeypatch.setattr(recipe, "SLICE_WEIGHTS", 1 << 14)
    dense = weight(mx.bfloat16, 1024, 256)
    mx.eval(dense)
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    made = packed(Scheme("nvfp4", 4, 16), dense)
    result = sum(array.nbytes for array in made.values())
    assert mx.get_peak_memory() - before < 2 * result + 100 * recipe.SLICE_WEIGHTS
