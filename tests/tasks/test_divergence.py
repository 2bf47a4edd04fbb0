"""Divergences against NumPy in float64."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.tasks.divergence import exp, kl_divergence, percentile, top1_agreement

seeds = st.integers(0, 2**32 - 1)


def logits(seed: int, shape=(5, 33), scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=shape).astype(np.float32)


def numpy_kl(reference: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    def log_softmax(x):
        x = x.astype(np.float64)
        return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))

    p, q = log_softmax(reference), log_softmax(candidate)
    return np.sum(np.exp(p) * (p - q), axis=-1)


@given(seeds, seeds)
def test_kl_divergence_is_that_of_the_definition(one, other):
    reference, candidate = logits(one), logits(other)
    found = kl_divergence(mx.array(reference), mx.array(candidate))
    assert found.shape == (5,)
    np.testing.assert_allclose(found, numpy_kl(reference, candidate), rtol=1e-4, atol=1e-5)


@given(seeds, st.floats(-50, 50))
def test_it_is_zero_where_predictions_are_equal(seed, shift):
    reference = mx.array(logits(seed))
    assert mx.all(kl_divergence(reference, reference) == 0).item()
    # Softmax does not see a shift.
    assert mx.max(kl_divergence(reference, reference + shift)).item() < 1e-4


def test_it_is_not_symmetric_and_the_reference_weighs():
    # p = (3/4, 1/4), q = (1/2, 1/2)
    skewed, even = mx.array([math.log(3.0), 0.0]), mx.array([0.0, 0.0])
    p_q = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    q_p = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert kl_divergence(skewed, even).item() == pytest.approx(p_q, rel=1e-5)
    assert kl_divergence(even, skewed).item() == pytest.approx(q_p, rel=1e-5)


def test_a_token_that_the_reference_rules_out_adds_nothing():
    ruled_out = mx.array([1.0, 2.0, -math.inf])
    assert kl_divergence(ruled_out, ruled_out).item() == 0
    assert kl_divergence(mx.array([1.0, 2.0, 3.0]), ruled_out).item() == math.inf


def test_sixteen_bits_are_widened_first():
    reference, candidate = (mx.array(logits(seed)).astype(mx.float16) for seed in (1, 2))
    widened = kl_divergence(reference.astype(mx.float32), candidate.astype(mx.float32))
    assert mx.array_equal(kl_divergence(reference, candidate), widened)


def test_agreement_looks_at_the_likeliest_token_alone():
    reference = mx.array([[0.0, 2.0, 1.0], [5.0, 1.0, 1.0]])
    candidate = mx.array([[0.5, 9.0, 8.0], [1.0, 1.5, 1.0]])
    assert top1_agreement(reference, candidate).tolist() == [True, False]


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 99))
def test_percentiles_are_numpys(values, percent):
    expected = np.percentile(np.array(values), percent)
    assert percentile(values, percent) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_an_infinite_value_does_not_make_percentiles_nan():
    assert percentile([0.0, 1.0, math.inf], 50) == 1.0
    assert percentile([0.0, 1.0, math.inf], 99) == math.inf


def test_the_perplexity_of_a_broken_model_is_infinite_not_an_error():
    assert exp(1.0) == math.e
    assert exp(1e4) == math.inf
    assert math.isnan(exp(math.nan))
