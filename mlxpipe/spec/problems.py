"""How a model's validators say what is wrong, in our words, through pydantic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic_core import PydanticCustomError

PROBLEM_TYPE = "mlxpipe_problem"


@dataclass(frozen=True, slots=True)
class Problem:
    """What a validator found; `diagnose` adds the file, line and column.

    Attributes:
        code: A stable kebab-case name.
        message: One sentence without a full stop.
        at: Keys and indexes from the value that was validated.
        key: Point at the key rather than at the value.
        span: Offset and length of the guilty part of a text value.
        text: The text value that `span` counts in.
        label: A few words beside the caret.
        found: What was there.
        expected: What should have been there.
        help: What to do about it.
    """

    code: str
    message: str
    at: tuple[str | int, ...] = ()
    key: bool = False
    span: tuple[int, int] | None = None
    text: str = ""
    label: str = ""
    found: str = ""
    expected: str = ""
    help: str = ""


def refusal(*problems: Problem) -> PydanticCustomError:
    """The exception that carries problems through pydantic."""
    message = "; ".join(problem.message for problem in problems)
    return PydanticCustomError(PROBLEM_TYPE, "{message}", {"message": message, "found": problems})


def spell(value: object) -> str:
    """A value as it would be written in YAML, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def either(words: Sequence[object]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    spelled = [word if isinstance(word, str) else spell(word) for word in words]
    return " or ".join([", ".join(spelled[:-1]), spelled[-1]] if len(spelled) > 1 else spelled)
