"""Bit streams: against a decoder that reads bit by bit, and against MLX's own packing."""

from __future__ import annotations

import decoders
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.graph.layouts import pack, unpack

BITS = (2, 3, 4, 5, 6, 8)

seeds = st.integers(0, 2**32 - 1)


def codes_of(seed, bits, *shape):
    return decoders.random_codes(np.random.default_rng(seed), bits, *shape)


def words_of(codes, bits):
    """The stream of each row, bit by bit."""
    return decoders.pack_rows(codes, bits).view(np.uint32)


@pytest.mark.parametrize("bits", BITS)
@given(seed=seeds, rows=st.integers(1, 3), blocks=st.integers(1, 5))
def test_codes_are_packed_as_a_stream_of_bits(bits, seed, rows, blocks):
    codes = codes_of(seed, bits, rows, 32 * blocks)
    packed = pack(mx.array(codes.astype(np.uint32)), bits)
    assert packed.dtype == mx.uint32
    assert np.array_equal(np.array(packed), words_of(codes, bits))


@pytest.mark.parametrize("bits", BITS)
@given(seed=seeds, rows=st.integers(1, 3), count=st.integers(1, 100))
def test_any_number_of_codes_is_read_from_a_stream(bits, seed, rows, count):
    """Zero points are as many as there are rows, which need not fill a word."""
    codes = codes_of(seed, bits, rows, count)
    found = unpack(mx.array(words_of(codes, bits)), bits, count)
    assert np.array_equal(np.array(found), codes)


@pytest.mark.parametrize("bits", BITS)
@given(seed=seeds, lead=st.lists(st.integers(1, 3), max_size=3), blocks=st.integers(1, 4))
def test_unpacking_undoes_packing_whatever_the_leading_axes(bits, seed, lead, blocks):
    codes = mx.array(codes_of(seed, bits, *lead, 32 * blocks).astype(np.uint32))
    packed = pack(codes, bits)
    assert packed.shape == (*lead, bits * blocks)
    assert mx.array_equal(unpack(packed, bits, 32 * blocks), codes)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("code", ["lowest", "highest"])
def test_the_extreme_codes(bits, code):
    value = 0 if code == "lowest" else (1 << bits) - 1
    packed = pack(mx.full((1, 64), value, dtype=mx.uint32), bits)
    assert set(packed.flatten().tolist()) == {0 if code == "lowest" else 0xFFFFFFFF}
    assert set(unpack(packed, bits, 64).flatten().tolist()) == {value}


@pytest.mark.parametrize("bits", BITS)
@given(seed=seeds, rows=st.integers(1, 3), blocks=st.integers(1, 4))
def test_mlx_reads_our_words_as_the_codes(bits, seed, rows, blocks):
    """With unit scales and no offset, what MLX dequantises are the codes themselves."""
    codes = codes_of(seed, bits, rows, 32 * blocks)
    unit = mx.ones((rows, blocks))
    packed = pack(mx.array(codes.astype(np.uint32)), bits)
    found = mx.dequantize(packed, unit, mx.zeros_like(unit), group_size=32, bits=bits)
    assert np.array_equal(np.array(found), codes)


@pytest.mark.parametrize("bits", BITS)
@given(seed=seeds, rows=st.integers(1, 3), blocks=st.integers(1, 3))
def test_we_read_mlxs_words_and_write_them_again(bits, seed, rows, blocks):
    weight = mx.array(np.random.default_rng(seed).normal(size=(rows, 64 * blocks)))
    words, scales, biases = mx.quantize(weight.astype(mx.float32), group_size=64, bits=bits)
    codes = unpack(words, bits, 64 * blocks)
    assert np.array_equal(np.array(codes), decoders.unpack_rows(np.array(words), bits, 64 * blocks))
    assert mx.array_equal(pack(codes, bits), words)
    spread = [mx.repeat(each, 64, axis=-1) for each in (scales, biases)]
    found = codes.astype(mx.float32) * spread[0] + spread[1]
    assert mx.allclose(found, mx.dequantize(words, scales, biases, group_size=64, bits=bits))
