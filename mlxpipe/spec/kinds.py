"""The types of a spec's fields, walked along a path of keys and indexes."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag
from pydantic.fields import FieldInfo

from mlxpipe.spec.values import RelativePath, Words


def unwrap(kind: Any) -> tuple[Any, str]:
    """The type inside Annotated and Optional, and its words (the outermost win)."""
    kind, metadata = _peel(kind)
    words = [item.text for item in metadata if isinstance(item, Words)]
    return kind, words[0] if words else ""


def is_path(kind: Any) -> bool:
    """Whether the values of a type are paths of files."""
    return any(isinstance(item, RelativePath) for item in _peel(kind)[1])


def _peel(kind: Any) -> tuple[Any, list[Any]]:
    """The type inside Annotated and Optional, and its annotations, the strongest first."""
    found: list[Any] = []
    while True:
        if isinstance(kind, FieldInfo):
            metadata, kind = kind.metadata, kind.annotation
        elif get_origin(kind) is Annotated:
            kind, *metadata = get_args(kind)
        elif is_union(kind) and type(None) in get_args(kind):
            rest = [arm for arm in get_args(kind) if arm is not type(None)]
            kind, metadata = Union[tuple(rest)], []  # noqa: UP007
        else:
            return kind, found
        found += reversed(metadata)


def is_union(kind: Any) -> bool:
    """Whether it is a union of types."""
    return get_origin(kind) in (Union, UnionType)


def is_model(kind: Any) -> bool:
    """Whether it is a section of the spec."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def arm(union: Any, tag: Any) -> Any:
    """The arm of a tagged union, None where no arm has that tag."""
    for each in get_args(union):
        tags = [item.tag for item in get_args(each)[1:] if isinstance(item, Tag)]
        core, _ = unwrap(each)
        if not tags and is_model(core):
            tags = list(get_args(core.model_fields["type"].annotation))
        if tag in tags:
            return each
    return None


def key_type(kind: Any) -> Any:
    """The type of a mapping's keys."""
    return get_args(kind)[0] if get_origin(kind) is dict else None


def child(kind: Any, part: Any) -> Any:
    """The type of a key's or an index's value, None where the model knows none."""
    if is_model(kind):
        return kind.model_fields.get(part)
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        return arguments[0]
    return arguments[1] if get_origin(kind) is dict else None


def below(kind: Any, part: str | int, tag: Any = None) -> Any:
    """The bare type of a key's or an index's value.

    Args:
        kind: The bare type of the collection, None where it is not known.
        part: The key or index.
        tag: What the value says its `type` is, which chooses the arm of a union.
    """
    return settled(child(kind, part), tag)


def settled(kind: Any, tag: Any = None) -> Any:
    """The bare type of a field, of a union the arm that `tag` names."""
    bare, _ = unwrap(kind)
    return unwrap(arm(bare, tag))[0] if is_union(bare) and tag is not None else bare
