"""Perplexity over a text, in windows.

The text is cut into windows of `context` tokens that start `stride` apart. In each window the
tokens that no earlier window scored are scored, the first token of the text excepted, for it has no
context; where windows do not overlap, neither has the first token of each. With `bos` every window
begins with that token (it counts towards `context`), and then its first text token is scored too.

    perplexity    = exp(sum of -ln p / scored tokens)
    bits_per_byte = sum of -log2 p / UTF-8 bytes of the scored tokens
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxpipe.errors import UsageError
from mlxpipe.spec import PerplexityTask
from mlxpipe.tasks.base import Context, Outcome
from mlxpipe.tasks.texts import read_text


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a text's tokens.

    Attributes:
        start: Index of its first token.
        stop: Index after its last.
        scored: Index of the first token that is scored.
    """

    start: int
    stop: int
    scored: int


def cut_windows(count: int, context: int, stride: int, bos: bool) -> Iterator[Window]:
    """Windows over `count` tokens, each with at least one token to score."""
    room = context - bos
    step = min(stride, room)
    done = 0
    for start in range(0, count, step):
        stop = min(start + room, count)
        first = start if bos else start + 1
        scored = max(first, done)
        if scored < stop:
            yield Window(start, stop, scored)
        done = stop
        if stop == count:
            return


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Measure a text. Metrics: perplexity, tokens (scored), bits_per_byte."""
    task = context.loaded.spec.tasks[number]
    assert isinstance(task, PerplexityTask)
    text = read_text(context.loaded.resolve(task.data), context.origin(number, "data"))
    ids, spans = tokenise(context.tokenizer, text)
    bos = _bos(context, task, number)
    windows = list(
        cut_windows(len(ids), task.context, task.stride or task.context, bos is not None)
    )[: task.windows]
    if not windows:
        raise UsageError(
            "too-short",
            f"{task.data} has too few tokens to score one",
            origin=context.origin(number, "data"),
            found=f"{len(ids)} tokens",
        )
    nats = 0.0
    tokens = size = 0
    with context.reporter.bar("perplexity", len(windows), "windows") as advance:
        for done, window in enumerate(windows, 1):
            nats += negative_log_likelihood(context.model, ids, window, bos)
            tokens += window.stop - window.scored
            size += len(text[spans[window.scored][0] : spans[window.stop - 1][1]].encode())
            advance(done)
    return Outcome(
        {
            "perplexity": math.exp(nats / tokens),
            "tokens": tokens,
            "bits_per_byte": nats / math.log(2) / size if size else math.nan,
            "windows": len(windows),
        }
    )


def tokenise(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids without special tokens, and each token's span of characters in `text`.

    A tokenizer that knows no spans (the slow ones) gives equal shares, so that bytes per token are
    then those of the whole text.
    """
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    if getattr(inner, "is_fast", False):
        encoded = inner(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), [tuple(span) for span in encoded["offset_mapping"]]
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    marks = [round(place * len(text) / max(1, len(ids))) for place in range(len(ids) + 1)]
    return ids, list(pairwise(marks))


def _bos(context: Context, task: PerplexityTask, number: int) -> int | None:
    """The token that windows begin with, or None."""
    token: int | None = context.tokenizer.bos_token_id
    if task.bos is None:
        beginning = context.tokenizer.encode("a")[:1]
        return token if token is not None and beginning == [token] else None
    if task.bos and token is None:
        raise UsageError(
            "no-bos", "the tokenizer has no BOS token", origin=context.origin(number, "bos")
        )
    return token if task.bos else None


def negative_log_likelihood(
    model: Any, ids: Sequence[int], window: Window, bos: int | None
) -> float:
    """Sum of -ln p over the scored tokens of one window, in float32."""
    lead = [] if bos is None else [bos]
    tokens = mx.array([*lead, *ids[window.start : window.stop]])[None]
    first = window.scored - window.start + len(lead)
    logits = model(tokens[:, :-1])[0, first - 1 :].astype(mx.float32)
    targets = tokens[0, first:]
    picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return float(mx.sum(mx.logsumexp(logits, axis=-1) - picked).item())  # type: ignore[arg-type]
