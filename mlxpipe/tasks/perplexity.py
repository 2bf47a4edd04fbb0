"""Perplexity over a text, in the windows of `tasks.windows`.

perplexity    = exp(sum of -ln p / scored tokens)
bits_per_byte = sum of -log2 p / UTF-8 bytes of the scored tokens
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mlxpipe.spec import PerplexityTask
from mlxpipe.tasks.base import Context, Outcome
from mlxpipe.tasks.divergence import exp, total
from mlxpipe.tasks.windows import Window, WindowedText, negative_log_likelihoods, read_windows


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Measure a text. Metrics: perplexity, tokens (scored), bits_per_byte."""
    task = context.loaded.spec.tasks[number]
    assert isinstance(task, PerplexityTask)
    text = read_windows(context, task, number)
    nats = 0.0
    tokens = size = 0
    with context.reporter.bar("perplexity", len(text.windows), "windows") as advance:
        for done, window in enumerate(text.windows, 1):
            nats += negative_log_likelihood(context.model, text, window)
            tokens += window.targets
            size += text.scored_bytes(window)
            advance(done)
    return Outcome(
        {
            "perplexity": exp(nats / tokens),
            "tokens": tokens,
            "bits_per_byte": nats / math.log(2) / size if size else math.nan,
            "windows": len(text.windows),
        }
    )


def negative_log_likelihood(model: Any, text: WindowedText, window: Window) -> float:
    """Sum of -ln p over the scored tokens of one window, in float32."""
    tokens = text.tokens(window)
    first = text.first(window)
    logits = model(tokens[:, :-1])[0, first - 1 :]
    return total(negative_log_likelihoods(logits, tokens[0, first:]))
