"""The types of single values, and the base of every section.

Each type carries `Words`: what a person would call it, for the `expected` line of an error.
"""

from __future__ import annotations

import re
import warnings
from enum import Enum
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticKnownError

from mlxpipe.spec.problems import Problem, either, refusal

REGEX_PREFIX = "re:"
MAX_INT = 2**31 - 1


class Words(NamedTuple):
    """What to call the values of a type."""

    text: str


class RelativePath(NamedTuple):
    """Marks a type whose values are paths, relative to the file that writes them."""


class PathUse(Enum):
    """What a path of the spec is for; each path-valued type carries one.

    A task's paths of the first kind are inputs: locks and fingerprints hold their contents.
    """

    READ = "read"
    WRITE = "write"


class Section(BaseModel):
    """A mapping of the spec: frozen, no unknown keys, no coercion.

    Attributes:
        exactly_one: Groups of keys; one group, and only one, must be given.
        belongs_to: Keys that make sense only beside another key.
    """

    # Deferred: the validators cost 50 ms, which a program that only imports us should not pay.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )

    exactly_one: ClassVar[tuple[tuple[str, ...], ...]] = ()
    belongs_to: ClassVar[dict[str, str]] = {}

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        given = [[key for key in group if self._given(key)] for group in self.exactly_one]
        present = [keys[0] for keys in given if keys]
        if self.exactly_one and not present:
            names = either([" / ".join(group) for group in self.exactly_one])
            raise refusal(Problem("missing-key", f"one of {names} is needed here", key=True))
        if len(present) > 1:
            raise refusal(_exclusive(present[1], present[0], self.exactly_one))
        for key, owner in self.belongs_to.items():
            if self._given(key) and not self._given(owner):
                message = f"{key!r} belongs to {owner!r}, which is not given"
                raise refusal(Problem("exclusive-keys", message, (key,), key=True))
        return self

    def _given(self, key: str) -> bool:
        return getattr(self, key) is not None


def _exclusive(key: str, first: str, groups: tuple[tuple[str, ...], ...]) -> Problem:
    names = either([" / ".join(group) for group in groups])
    message = f"{key!r} and {first!r} exclude each other"
    return Problem("exclusive-keys", message, (key,), key=True, expected=f"exactly one of {names}")


def _compiled(pattern: str, offset: int = 0) -> re.Pattern[str]:
    # A pattern whose meaning a later Python will change is refused as well, hence the filter.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return re.compile(pattern[offset:])
        except (re.error, Warning, OverflowError, RecursionError) as problem:
            where = getattr(problem, "pos", None)
            span = None if where is None else (where + offset, 1)
            raise refusal(
                _bad_pattern(pattern, str(getattr(problem, "msg", problem)), span)
            ) from None


def _bad_pattern(pattern: str, reason: str, span: tuple[int, int] | None = None) -> Problem:
    message = "this is not a regular expression"
    return Problem("bad-pattern", message, span=span, text=pattern, label=reason)


def _check_regex(pattern: str) -> str:
    _compiled(pattern)
    return pattern


def _check_module_pattern(pattern: str) -> str:
    if pattern.startswith(REGEX_PREFIX):
        _compiled(pattern, len(REGEX_PREFIX))
    return pattern


def _check_glob(pattern: str) -> str:
    if pattern.startswith(REGEX_PREFIX):
        label = "only globs (*, ?, [...]) are read here"
        message = "a regular expression where a glob is expected"
        raise refusal(Problem("bad-pattern", message, label=label))
    return pattern


def check_replacement(pattern: str, replacement: str) -> None:
    """Refuses a replacement that names a group which `pattern` does not have."""
    try:
        # `sub` parses the replacement before it looks for a match.
        re.compile(pattern).sub(replacement, "")
    except (re.error, IndexError) as problem:
        where = getattr(problem, "pos", None)
        span = None if where is None else (where, 1)
        reason = str(getattr(problem, "msg", problem))
        message = "this replacement does not fit its pattern"
        found = Problem("bad-pattern", message, span=span, text=replacement, label=reason)
        raise refusal(found) from None


def only(*kinds: type) -> BeforeValidator:
    """Literals compare by value, and 1 == True == 1.0: this tells them apart."""

    def check(value: Any) -> Any:
        if type(value) not in kinds:
            raise PydanticKnownError("literal_error", {"expected": ""})
        return value

    return BeforeValidator(check)


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_PATH = r"^[^\x00]+$"
_PATH_SCHEMA = {"type": "string", "minLength": 1, "pattern": _PATH}

Text = Annotated[str, Field(min_length=1), Words("a text")]
Name = Annotated[
    str,
    Field(pattern=_NAME, max_length=128),
    Words("a name of letters, digits, '.', '_' and '-' that begins with a letter or digit"),
]
Identifier = Annotated[
    str,
    Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=128),
    Words("a name of letters, digits and '_'"),
]
PathText = Annotated[
    str, Field(min_length=1, pattern=_PATH), Words("a path"), RelativePath(), PathUse.READ
]
OutputPath = Annotated[
    str, Field(min_length=1, pattern=_PATH), Words("a path"), RelativePath(), PathUse.WRITE
]
HubName = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$"),
    Words("a repository as org/name"),
]
Regex = Annotated[Text, AfterValidator(_check_regex), Words("a regular expression")]
ModulePattern = Annotated[
    Text,
    AfterValidator(_check_module_pattern),
    Words(f"a glob over module paths, or {REGEX_PREFIX} and a regular expression"),
]
Glob = Annotated[Text, AfterValidator(_check_glob), Words("a glob")]
Globs = Annotated[tuple[Glob, ...], Strict(False), Words("a list of globs")]
Texts = Annotated[tuple[Text, ...], Strict(False), Words("a list of texts")]
OneOrMoreTexts = Annotated[
    tuple[Text, ...],
    Strict(False),
    Field(min_length=1),
    BeforeValidator(_one_or_more),
    Words("a text or a list of texts"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            ]
        }
    ),
]
OneOrMorePaths = Annotated[
    tuple[PathText, ...],
    Strict(False),
    Field(min_length=1),
    BeforeValidator(_one_or_more),
    Words("a path or a list of paths"),
    RelativePath(),
    WithJsonSchema(
        {"anyOf": [_PATH_SCHEMA, {"type": "array", "items": _PATH_SCHEMA, "minItems": 1}]}
    ),
]
Count = Annotated[int, Field(ge=1, le=MAX_INT)]
CountOrZero = Annotated[int, Field(ge=0, le=MAX_INT)]
Seed = Annotated[int, Field(ge=0, le=2**64 - 1)]
