"""Schemes, their completion, and the arithmetic that judges them."""

from __future__ import annotations

import mlx.core as mx
import pytest
from builders import AFFINE_4_64, AFFINE_8_32, AFFINE_8_64, MXFP4, MXFP8, NVFP4, evidence, raw
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.quant.modes import MODES, Scheme, complete
from mlxpipe.quant.verify import Array, Evidence, arithmetic, contradiction, solutions

EVERY = [
    Scheme(mode.name, bits, size)
    for mode in MODES.values()
    for bits in mode.bits
    for size in mode.group_sizes
]


@pytest.mark.parametrize(
    ("declared", "scheme"),
    [
        ((None, None, None), AFFINE_4_64),
        ((None, 8, None), AFFINE_8_64),
        ((None, 8, 32), AFFINE_8_32),
        (("nvfp4", None, None), NVFP4),
        (("mxfp4", None, 32), MXFP4),
        (("mxfp8", 8, None), MXFP8),
        (("affine", 4, 64), AFFINE_4_64),
    ],
)
def test_omitted_mode_is_affine_and_omitted_sizes_are_the_modes_own(declared, scheme):
    assert complete(*declared) == scheme


@pytest.mark.parametrize(
    ("declared", "word"),
    [
        (("int4", None, None), "int4"),
        ((None, 7, None), "7"),
        ((None, None, 16), "16"),
        ((None, None, 256), "256"),
        (("nvfp4", 8, None), "8"),
        (("mxfp4", None, 64), "64"),
        (("mxfp8", 4, 32), "4"),
    ],
)
def test_a_scheme_that_no_kernel_takes_is_refused(declared, word):
    with pytest.raises(ValueError, match=word):
        complete(*declared)


# --- pack arithmetic -------------------------------------------------------------------------


def packed(scheme: Scheme, width: int, dtype=mx.float16, lead=(2,)) -> Evidence:
    """The evidence of what `mx.quantize` really makes."""
    parts = mx.quantize(
        mx.zeros((*lead, width), dtype),
        group_size=scheme.group_size,
        bits=scheme.bits,
        mode=scheme.mode,
    )
    arrays = [Array(tensor.dtype, tensor.shape) for tensor in map(raw, parts)]
    return Evidence(*arrays, *[None] * (3 - len(arrays)), in_features=width)


@given(
    st.sampled_from(EVERY),
    st.integers(1, 6),
    st.sampled_from([mx.float16, mx.float32]),
    st.sampled_from([(2,), (3, 2)]),
)
def test_the_arithmetic_finds_exactly_the_scheme_that_mlx_packed(scheme, groups, dtype, lead):
    found = packed(scheme, 32 * groups * max(1, scheme.group_size // 32), dtype, lead)
    assert solutions(found) == (scheme,)
    assert [other for other in EVERY if not contradiction(other, found)] == [scheme]


@given(st.sampled_from(EVERY), st.integers(1, 6))
def test_without_in_features_all_that_share_the_product_remain(scheme, groups):
    found = packed(scheme, 32 * groups * max(1, scheme.group_size // 32))
    blind = Evidence(found.weight, found.scales, found.biases)
    answers = solutions(blind)
    assert scheme in answers
    assert {one.bits * one.group_size for one in answers} == {scheme.bits * scheme.group_size}
    if scheme.mode != "affine":
        assert answers == (scheme,)


def test_the_indistinguishable_ones_by_name():
    answers = solutions(evidence(AFFINE_4_64, 8, 128, known=False))
    assert [(one.bits, one.group_size) for one in answers] == [(2, 128), (4, 64), (8, 32)]


@given(
    st.one_of(st.none(), st.sampled_from(EVERY)),
    st.builds(
        Evidence,
        st.builds(
            Array,
            st.sampled_from(["U32", "U8", "F16", "I32"]),
            st.lists(st.integers(0, 200), max_size=3).map(tuple),
        ),
        st.none()
        | st.builds(
            Array,
            st.sampled_from(["U8", "F16", "F8_E4M3"]),
            st.lists(st.integers(0, 20), max_size=3).map(tuple),
        ),
        st.none() | st.just(Array("F16", (8, 2))),
        st.none() | st.integers(1, 500),
    ),
)
def test_any_shapes_get_an_answer_or_a_reason(scheme, found):
    reason = contradiction(scheme, found)
    assert bool(reason) == (scheme not in solutions(found) if scheme else not found.dense)
    assert all(arithmetic(found))


@pytest.mark.parametrize(
    ("scheme", "found", "numbers"),
    [
        (NVFP4, evidence(MXFP4, 8, 128), "group_size = 128/4 = 32, not 16"),
        (MXFP4, evidence(MXFP8, 8, 128), "bits = 32·32/128 = 8, not 4"),
        (AFFINE_8_64, evidence(AFFINE_4_64, 8, 128), "bits = 32·16/128 = 4, not 8"),
        (AFFINE_8_64, evidence(AFFINE_4_64, 8, 128, known=False), "32·16/2 = 256, not 512"),
        (AFFINE_4_64, evidence(NVFP4, 8, 128), "floating point, these are U8"),
        (NVFP4, evidence(AFFINE_8_64, 8, 128), "one byte, these are F16"),
        (AFFINE_4_64, evidence(None, 8, 128), "dense: F16 [8, 128]"),
        (None, evidence(AFFINE_4_64, 8, 128), "packed: U32 [8, 16]"),
        (AFFINE_4_64, Evidence(Array("U32", (8, 16))), "no scales"),
        (
            AFFINE_4_64,
            Evidence(Array("U32", (8, 16)), Array("F16", (8, 2)), None, 128),
            "affine has biases, here there are none",
        ),
        (
            AFFINE_4_64,
            Evidence(Array("U32", (8, 16)), Array("F16", (4, 2)), Array("F16", (4, 2)), 128),
            "differ in their rows",
        ),
    ],
)
def test_a_contradiction_is_told_in_numbers(scheme, found, numbers):
    assert numbers in contradiction(scheme, found)
