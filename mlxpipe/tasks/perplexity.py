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
from mlxpipe.tasks.progress import progress
from mlxpipe.tasks.windows import Window, WindowedText, negative_log_likelihoods, read_windows


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Measure a text. Metrics: perplexity, tokens (scored), bits_per_byte."""
    task = context.loaded.spec.tasks[number]
    assert isinstance(task, PerplexityTask)
    text = read_windows(context, task, number)
    with (
        context.reporter.bar("perplexity", len(text.windows), "windows") as advance,
        progress(folder) as steps,
    ):
        for window in text.windows[len(steps.rows) :]:
            steps.add({"nats": negative_log_likelihood(context.model, text, window)})
            advance(len(steps.rows))
    nats = sum(step["nats"] for step in steps.rows)
    tokens = sum(window.targets for window in text.windows)
    size = sum(text.scored_bytes(window) for window in text.windows)
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
