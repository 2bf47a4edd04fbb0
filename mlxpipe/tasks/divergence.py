"""How far one model's predictions are from another's.

    KL(reference ‖ candidate) = Σ_v p_r(v) · (ln p_r(v) - ln p_c(v))        nats per token

p are softmaxes of the logits, computed in float32 (Kullback and Leibler, "On Information and
Sufficiency", 1951). Top-1 agreement is the share of places at which both models find the same
token likeliest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import quantiles

import mlx.core as mx

#: Places that are compared at once: each costs a few vectors of the vocabulary's size.
ROWS = 256


def log_softmax(logits: mx.array) -> mx.array:
    """Log-probabilities [..., V] in float32."""
    logits = logits.astype(mx.float32)
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def kl_divergence(reference: mx.array, candidate: mx.array) -> mx.array:
    """KL(reference ‖ candidate) of logits [..., V] -> [...], nats; float32.

    Tokens that the reference rules out (a logit of -inf) add nothing. Rounding can leave a sum a
    little below zero, where no divergence is; it is then 0.
    """
    return kl_of_log_probabilities(log_softmax(reference), log_softmax(candidate))


def kl_of_log_probabilities(reference: mx.array, candidate: mx.array) -> mx.array:
    """As `kl_divergence`, of what `log_softmax` gave."""
    p = mx.exp(reference)
    terms = mx.where(p > 0, p * (reference - candidate), 0.0)
    return mx.maximum(mx.sum(terms, axis=-1), 0.0)


def top1_agreement(reference: mx.array, candidate: mx.array) -> mx.array:
    """Whether the likeliest token is the same: logits [..., V] -> bool [...]."""
    return mx.argmax(reference, axis=-1) == mx.argmax(candidate, axis=-1)


def total(values: mx.array) -> float:
    """The sum of an array, evaluated."""
    return float(mx.sum(values).item())  # type: ignore[arg-type]


def exp(nats: float) -> float:
    """e^nats, infinite where that is beyond a float: broken models get there."""
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf


def percentile(values: Sequence[float], percent: int) -> float:
    """The value below which `percent` (1 to 99) of 100 lie, interpolated between neighbours."""
    if len(values) == 1:
        return values[0]
    if not all(math.isfinite(value) for value in values):
        # Interpolating towards an infinity would give NaN.
        return sorted(values)[math.ceil((len(values) - 1) * percent / 100)]
    return quantiles(values, n=100, method="inclusive")[percent - 1]
