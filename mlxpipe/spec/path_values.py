"""The paths that a section of the spec holds, found by the types of its fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple, get_args

from mlxpipe.spec.values import PathUse, Section


class PathValue(NamedTuple):
    """One path.

    Attributes:
        keys: Where it stands, from the section down.
        text: The path as written.
        use: Whether it is read or written.
    """

    keys: tuple[str | int, ...]
    text: str
    use: PathUse


def path_values(section: Section, keys: tuple[str | int, ...] = ()) -> Iterator[PathValue]:
    """Every path of a section and of the sections inside it, in the order of the fields."""
    kind = type(section)
    for name in kind.model_fields:
        yield from _of_value(getattr(section, name), (*keys, name), _use(kind, name))


def _of_value(
    value: object, keys: tuple[str | int, ...], use: PathUse | None
) -> Iterator[PathValue]:
    if isinstance(value, Section):
        yield from path_values(value, keys)
    elif isinstance(value, str) and use is not None:
        yield PathValue(keys, value, use)
    elif isinstance(value, (tuple, Mapping)):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _of_value(item, (*keys, key), use)


@cache
def _use(kind: type[Section], name: str) -> PathUse | None:
    """What a field's type says of the paths it holds, None where it holds none."""
    field = kind.model_fields[name]
    return next(_marks((*field.metadata, field.annotation)), None)


def _marks(parts: tuple[Any, ...]) -> Iterator[PathUse]:
    for part in parts:
        if isinstance(part, PathUse):
            yield part
        else:
            yield from _marks((*getattr(part, "__metadata__", ()), *get_args(part)))
