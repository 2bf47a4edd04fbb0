"""A completion, put together from the pieces that a library streams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mlxpipe.tasks.base import Reporter


class Piece(NamedTuple):
    """What a library streams at once.

    Attributes:
        text: The next text, which may be empty.
        token: The next token, None where only text was left.
        ended: Whether the model ended its answer.
    """

    text: str
    token: int | None
    ended: bool


@dataclass(frozen=True, slots=True)
class Completion:
    """One line of the output.

    Attributes:
        prompt: The prompt as the spec has it, before any chat template.
        text: What was generated.
        tokens: Its ids, the end-of-sequence token excluded.
        finish_reason: `stop` or `length`.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    finish_reason: str


def collect(
    prompt: str, pieces: Iterable[Piece], stops: Sequence[str], reporter: Reporter
) -> Completion:
    """Everything up to an end token, a stop text or the last piece, told as it comes."""
    text = ""
    tokens: list[int] = []
    reason = "length"
    for piece in pieces:
        if piece.token is not None:
            tokens.append(piece.token)
        before, (text, stopped) = text, _until_stop(text, piece.text, stops)
        reporter.text(text[len(before) :])
        if piece.ended or stopped:
            reason = "stop"
            break
    reporter.text("\n")
    return Completion(prompt, text, tuple(tokens), reason)


def _until_stop(before: str, piece: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text so far, cut before the earliest stop text, and whether there is one."""
    whole = before + piece
    # A stop text may have begun before this piece, but not ended there.
    found = [at for stop in stops if (at := whole.find(stop, max(0, len(before) - len(stop)))) >= 0]
    return (whole[: min(found)], True) if found else (whole, False)
