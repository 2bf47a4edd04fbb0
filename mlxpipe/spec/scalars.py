"""Plain scalars as YAML 1.2's core schema reads them.

PyYAML resolves YAML 1.1, where `no` is false, `12:30:00` a number and `017` fifteen; a spec must
not depend on that, so the table below replaces its resolver in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_INT_DIGITS = 40


class ScalarRule(NamedTuple):
    """One row of the core schema: what matches `pattern` (whole) is a `tag`."""

    tag: str
    pattern: re.Pattern[str]
    first: str
    convert: Callable[[str], Any]


def _special(text: str) -> float:
    return float(text.replace(".", ""))


_DIGITS = "0123456789"

CORE_SCHEMA: tuple[ScalarRule, ...] = tuple(
    ScalarRule(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$", re.ASCII), first, convert)
    for tag, pattern, first, convert in (
        ("null", r"~|null|Null|NULL|", "~nN", lambda text: None),
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text[0] in "tT"),
        ("int", r"[-+]?[0-9]+", "-+" + _DIGITS, int),
        ("int", r"0o[0-7]+", "0", lambda text: int(text[2:], 8)),
        ("int", r"0x[0-9a-fA-F]+", "0", lambda text: int(text[2:], 16)),
        (
            "float",
            r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?",
            "-+." + _DIGITS,
            float,
        ),
        ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.", _special),
    )
)


def rule_for(text: str) -> ScalarRule | None:
    """The first rule that reads the plain scalar `text`, None where it is a string."""
    for rule in CORE_SCHEMA:
        if rule.pattern.fullmatch(text):
            return rule
    return None


def plain_value(text: str) -> Any:
    """The value of a plain (unquoted) scalar.

    Raises:
        OverflowError: A whole number of more than `MAX_INT_DIGITS` digits; Python would take
            quadratic time for it, and nothing in a spec is that large.
    """
    rule = rule_for(text)
    if rule is None:
        return text
    if rule.tag.endswith(":int") and len(text) > MAX_INT_DIGITS:
        raise OverflowError(text[:MAX_INT_DIGITS])
    return rule.convert(text)
