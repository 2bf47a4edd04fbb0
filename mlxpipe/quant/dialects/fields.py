"""Typed access to a declaration, and findings instead of exceptions.

A dialect is a generator of claims and findings. Where a field is not what its producer writes, the
accessor raises `UnreadableError`, which `attempt` turns into one finding at that place.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlxpipe.errors import Diagnostic, Origin
from mlxpipe.quant.claims import Block, Claim, Reading

#: What a dialect yields.
Item = Claim | Diagnostic

MALFORMED = "malformed-quantization"

#: Code of the note that a checkpoint wants its key-value cache quantised.
CACHE_PRECISION = "kv-cache-precision"

#: Code of the note on a tensor that scales such a cache.
CACHE_SCALE = "cache-scale"


class UnreadableError(Exception):
    """A declaration that cannot be read; never leaves this package.

    Attributes:
        finding: What is wrong and where.
    """

    def __init__(self, finding: Diagnostic) -> None:
        super().__init__(finding.message)
        self.finding = finding


def refuse(code: str, message: str, origin: Origin, **details: Any) -> UnreadableError:
    """The exception for a finding of severity `error`."""
    return UnreadableError(Diagnostic(code, message, origin=origin, **details))


def malformed(origin: Origin, key: str, value: Any, expected: str) -> UnreadableError:
    """The exception for a value of the wrong kind."""
    return refuse(
        MALFORMED,
        f"'{key}' is not what its producer writes",
        origin,
        found=spell(value),
        expected=expected,
    )


def spell(value: Any) -> str:
    """A JSON value for a message, shortened."""
    return f"{value!r:.60}"


def attempt(make: Callable[..., Iterable[Item] | None], *arguments: Any) -> Iterator[Item]:
    """What `make(*arguments)` yields, and the finding that stopped it, if one did."""
    try:
        yield from make(*arguments) or ()
    except UnreadableError as error:
        yield error.finding


def collect(make: Callable[[Fields, str], Iterable[Item]], block: Block, source: str) -> Reading:
    """What a dialect makes of a block, as one reading."""
    listed = list(attempt(lambda: make(Fields(block), source)))
    return Reading(
        tuple(item for item in listed if isinstance(item, Claim)),
        tuple(item for item in listed if isinstance(item, Diagnostic)),
    )


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping of a declaration whose values are checked as they are asked for.

    A key with null counts as omitted, as producers serialise their defaults.
    """

    block: Block

    def __post_init__(self) -> None:
        if not isinstance(self.block.data, Mapping):
            raise malformed(self.at(), "quantization_config", self.block.data, "a mapping")

    def at(self, *below: str) -> Origin:
        """The origin of a place below the mapping."""
        return self.block.locate(below)

    def has(self, key: str) -> bool:
        """Whether a key is there and not null."""
        return self.block.data.get(key) is not None

    def key(self, *names: str) -> str:
        """The first of several spellings that is there; the first one if none is."""
        return next((name for name in names if self.has(name)), names[0])

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number; an omitted one without default is a finding."""
        if not self.has(key):
            if default is None:
                raise refuse(
                    "missing-field",
                    f"'{key}' is omitted, and the scheme cannot be told without it",
                    self.at(),
                    help="say it with a rule in the spec's quantization.overrides",
                )
            return default
        value = self.block.data[key]
        if isinstance(value, bool) or not isinstance(value, int):
            raise malformed(self.at(key), key, value, "a whole number")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.block.data[key] if self.has(key) else default
        if not isinstance(value, bool):
            raise malformed(self.at(key), key, value, "true or false")
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self.block.data[key] if self.has(key) else default
        if not isinstance(value, str):
            raise malformed(self.at(key), key, value, "a string")
        return value

    def below(self, key: str) -> Fields:
        """A mapping in the mapping; empty where it is omitted."""
        value = self.block.data[key] if self.has(key) else {}
        if not isinstance(value, Mapping):
            raise malformed(self.at(key), key, value, "a mapping")
        return Fields(Block(value, lambda below: self.at(key, *below)))

    def names(self, key: str) -> Iterator[tuple[str, Origin]]:
        """The strings of a list with their places; none where it is omitted."""
        value = self.block.data[key] if self.has(key) else []
        if not isinstance(value, list):
            raise malformed(self.at(key), key, value, "a list of names")
        for number, name in enumerate(value):
            origin = self.at(key, str(number))
            if not isinstance(name, str) or not name:
                raise malformed(origin, key, name, "a name")
            yield name, origin


def checked_regex(pattern: str, origin: Origin, spelt: str) -> str:
    """The pattern, once it is known to compile.

    Args:
        pattern: The regular expression.
        origin: Its place.
        spelt: How the source spells it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as problem:
        raise refuse(
            "malformed-pattern",
            f"'{spelt:.60}' is no regular expression: {problem}",
            origin,
            help="correct the pattern, or declare the paths in the spec's quantization.overrides",
        ) from None
    return pattern


def cache_note(fields: Fields, *keys: str) -> Iterator[Diagnostic]:
    """A note where the checkpoint asks for a quantised key-value cache."""
    for key in keys:
        if fields.has(key):
            yield Diagnostic(
                CACHE_PRECISION,
                "the checkpoint asks for a quantised key-value cache; "
                "the cache is kept in full precision",
                origin=fields.at(key),
                found=spell(fields.block.data[key]),
                severity="note",
            )
