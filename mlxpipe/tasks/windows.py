"""A text as windows of tokens, for every task that reads one.

The text is cut into windows of `context` tokens that start `stride` apart. In each window the
tokens that no earlier window scored are scored, the first token of the text excepted, for it has no
context; where windows do not overlap, neither has the first token of each. With `bos` every window
begins with that token (it counts towards `context`), and then its first text token is scored too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import mlx.core as mx

from mlxpipe.errors import UsageError
from mlxpipe.spec import TextTask
from mlxpipe.tasks.base import Context
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

    @property
    def targets(self) -> int:
        """How many tokens are scored."""
        return self.stop - self.scored


@dataclass(frozen=True, slots=True)
class WindowedText:
    """A text, its tokens and its windows.

    Attributes:
        text: The text.
        ids: Its token ids, without special tokens.
        spans: Each token's span of characters.
        windows: At least one.
        bos: The token that windows begin with, None for none.
    """

    text: str = field(repr=False)
    ids: list[int] = field(repr=False)
    spans: list[tuple[int, int]] = field(repr=False)
    windows: list[Window]
    bos: int | None

    def tokens(self, window: Window) -> mx.array:
        """A window's tokens [1, T], the BOS token included."""
        lead = [] if self.bos is None else [self.bos]
        return mx.array([*lead, *self.ids[window.start : window.stop]])[None]

    def first(self, window: Window) -> int:
        """Where the first scored token is in `tokens(window)`."""
        return window.scored - window.start + (self.bos is not None)

    def scored_bytes(self, window: Window) -> int:
        """UTF-8 bytes of the scored tokens."""
        begin, end = self.spans[window.scored][0], self.spans[window.stop - 1][1]
        return len(self.text[begin:end].encode())


def read_windows(context: Context, task: TextTask, number: int) -> WindowedText:
    """The text that task `number` names, tokenised and cut.

    Raises:
        UsageError: as `read_text`; `no-bos`, `too-short`.
    """
    text = read_text(context.loaded.resolve(task.data), context.origin(number, "data"))
    ids, spans = tokenise(context.tokenizer, text)
    bos = _bos(context, task, number)
    stride = task.stride or task.context
    windows = list(cut_windows(len(ids), task.context, stride, bos is not None))[: task.windows]
    if not windows:
        raise UsageError(
            "too-short",
            f"{task.data} has too few tokens to score one",
            origin=context.origin(number, "data"),
            found=f"{len(ids)} tokens",
        )
    return WindowedText(text, ids, spans, windows, bos)


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


def negative_log_likelihoods(logits: mx.array, targets: mx.array) -> mx.array:
    """-ln p of each target, in float32.

    Args:
        logits: [n, V], each row a prediction.
        targets: [n], the token that came.
    """
    logits = logits.astype(mx.float32)
    picked = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return mx.logsumexp(logits, axis=-1) - picked


def _bos(context: Context, task: TextTask, number: int) -> int | None:
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
