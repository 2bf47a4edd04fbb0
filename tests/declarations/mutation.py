"""A mutation: what was changed, what the declarations are then, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from bases import Base, Declarations
from hypothesis import strategies as st

Value = TypeVar("Value")

#: Hypothesis' way to ask for a value.
Draw = Callable[[st.SearchStrategy[Any]], Any]


class Must(Enum):
    """What a mutation must lead to. Whatever it is, other logits are never right."""

    STAY = "the same logits, whatever else is moved"
    LOAD = "the same logits, where nothing else is changed"
    FAIL = "an error"
    EITHER = "the same logits or an error"


@dataclass(frozen=True)
class Expectation:
    """What a mutation must lead to.

    Attributes:
        must: Which of the two ends is right.
        codes: The errors that are right.
        names: What the error must name: a module path without wrappers, or a word.
    """

    must: Must
    codes: frozenset[str] = frozenset()
    names: str = ""


STAYS = Expectation(Must.STAY)
LOADS = Expectation(Must.LOAD)
EITHER = Expectation(Must.EITHER)


def fails(*codes: str, names: str = "") -> Expectation:
    """An error with one of these codes that names something."""
    return Expectation(Must.FAIL, frozenset(codes), names)


@dataclass(frozen=True)
class Mutation:
    """One change.

    Attributes:
        kind: Its row in the table of counts.
        detail: What exactly was changed.
        expected: What must come of it alone.
        after: The declarations with the change.
    """

    kind: str
    detail: str
    expected: Expectation
    after: Declarations = field(repr=False)


#: Makes a mutation of some declarations of a base, or None where it does not apply to them.
Kind = Callable[[Draw, Base, Declarations], Mutation | None]


def pick(draw: Draw, choices: Any) -> Any:
    """One of some choices."""
    return draw(st.sampled_from(list(choices)))


def some(draw: Draw, items: list[Value]) -> list[Value]:
    """One of some items, or all of them."""
    return [pick(draw, items)] if draw(st.booleans()) else items


def together(mutations: tuple[Mutation, ...]) -> Expectation:
    """What several mutations must lead to, one made after the other.

    Where two of them interfere (a wrong entry that is then removed) only the law remains.
    """
    telling = [each.expected for each in mutations if each.expected.must is not Must.STAY]
    if not telling:
        return STAYS
    return telling[0] if len(telling) == 1 else EITHER
