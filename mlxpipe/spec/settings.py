"""Values put into a spec from outside it: `--set path=value`, and the settings of a matrix.

A path is dotted: keys of mappings, indexes of lists, and ids of tasks (`tasks.gen.max_tokens`).
`vars` can be set like anything else, and are, before they are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, get_origin

from mlxpipe.errors import Diagnostic, Origin, UsageError, did_you_mean
from mlxpipe.spec.interpolation import references
from mlxpipe.spec.kinds import below, is_model, settled
from mlxpipe.spec.model import Spec
from mlxpipe.spec.positions import Path
from mlxpipe.spec.reader import read_yaml
from mlxpipe.spec.tasks import default_ids
from mlxpipe.spec.tree import Node, from_value, put

#: Nobody looks further for what they meant to set, and a list can be very long.
MAX_KNOWN = 2000
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Setting:
    """A value for a path.

    Attributes:
        path: The dotted path.
        value: The value, with its origin.
        where: The origin of the path, for a message about it.
    """

    path: str
    value: Node
    where: Origin


def parse_setting(text: str) -> Setting:
    """A `path=value` of the command line; the value is read as YAML.

    Raises:
        UsageError: No `=`, no path, or a value that is not strict YAML.
    """
    path, equals, value = text.partition("=")
    name = "--set " + (text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…")
    where = Origin(name)
    if not equals or not path.strip():
        message = "a setting is a path and a value"
        expected = "path=value, such as model.dtype=float32"
        raise UsageError("bad-setting", message, origin=where, expected=expected)
    return Setting(path.strip(), from_value(_yaml(value, where), name), where)


def _yaml(text: str, where: Origin) -> Any:
    try:
        data = read_yaml(f"value: {text}", where.file).data
    except UsageError as error:
        # Its line and column are those of a text that nobody wrote.
        told = [replace(item, origin=where) for item in error.diagnostics]
        raise UsageError.several(told) from None
    if list(data) != ["value"]:
        message = "a setting is one value on one line"
        raise UsageError("bad-setting", message, origin=where, help="put the value in quotes")
    return data["value"]


def as_settings(given: Mapping[str, Any] | Iterable[Setting] | None) -> tuple[Setting, ...]:
    """Settings from Python's values by dotted path, or as they are."""
    if not isinstance(given, Mapping):
        return tuple(given or ())
    return tuple(
        Setting(path, from_value(value, f"set {path}"), Origin(f"set {path}"))
        for path, value in given.items()
    )


def apply(root: Node, settings: Iterable[Setting]) -> tuple[Node, list[Diagnostic]]:
    """The tree with settings in place, one after the other, and what is wrong with them."""
    found = []
    for setting in settings:
        path = locate(root, setting.path)
        if path is None:
            found.append(_unknown(root, setting))
        else:
            root = put(root, path, setting.value, Spec)
    return root, found


def _unknown(root: Node, setting: Setting) -> Diagnostic:
    message = f"there is nothing to set at '{setting.path}'"
    if setting.path.partition(".")[0] in ("extends", "matrix"):
        advice = "choose combinations with --only" if setting.path[0] == "m" else ""
        message = f"'{setting.path}' cannot be set"
        return Diagnostic("unknown-path", message, setting.where, help=advice)
    label = did_you_mean(setting.path, islice(known_paths(root), MAX_KNOWN))
    return Diagnostic("unknown-path", message, setting.where, help=label)


def locate(root: Node, dotted: str) -> Path | None:
    """The path that a dotted one names, None where there is no such place.

    Members of mappings that the spec leaves out are there, items of lists are not.
    """
    path: list[str | int] = []
    node: Node | None = root
    kind: Any = Spec
    parts = dotted.split(".")
    if parts[0] == "vars":
        return _variable(root, parts)
    for part in parts:
        key = _key(node, kind, part)
        if key is None:
            return None
        path.append(key)
        node = _member(node, key)
        kind = below(kind, key, node.tag if node else None)
    return tuple(path)


def _variable(root: Node, parts: list[str]) -> Path | None:
    """A variable that is declared or used, or a value below one that is declared."""
    variables = root.mapping.get("vars")
    declared = variables.mapping if variables else {}
    if len(parts) < 2 or (parts[1] not in declared and parts[1] not in references(root)):
        return None
    node = declared.get(parts[1])
    path: list[str | int] = ["vars", parts[1]]
    for part in parts[2:]:
        key: str | int = int(part) if node and node.items and part.isdecimal() else part
        node = _member(node, key)
        if node is None:
            return None
        path.append(key)
    return tuple(path)


def _key(node: Node | None, kind: Any, part: str) -> str | int | None:
    """The key or index that a part of a dotted path names, None where nothing has it."""
    if is_model(kind):
        return part if part in kind.model_fields else None
    if get_origin(kind) is dict:
        return part
    items = node.items if node else ()
    if part.isascii() and part.isdecimal() and len(part) < 10 and int(part) < len(items):
        return int(part)
    return _by_id(items, kind, part)


def _by_id(items: tuple[Node, ...], kind: Any, part: str) -> int | None:
    ids = _ids(items, kind)
    return ids.index(part) if part in ids else None


def _ids(items: tuple[Node, ...], kind: Any) -> list[str]:
    """The ids of tasks, given or by default; none for other lists."""
    if kind != settled(Spec.model_fields["tasks"]):
        return []
    given = (each.mapping.get("id") for each in items)
    return default_ids(
        [(each and each.value, item.tag) for each, item in zip(given, items, strict=True)]
    )


def _member(node: Node | None, key: str | int) -> Node | None:
    if node is None:
        return None
    if isinstance(key, int):
        return node.items[key] if key < len(node.items) else None
    return node.mapping.get(key)


def known_paths(root: Node) -> Iterator[str]:
    """Every dotted path that can be set, whether the spec says it or not."""
    variables = root.mapping.get("vars")
    names = {**(variables.mapping if variables else {}), **dict.fromkeys(references(root))}
    yield from (f"vars.{name}" for name in names)
    yield from _paths(root, Spec, "")


def _paths(node: Node | None, kind: Any, before: str) -> Iterator[str]:
    if is_model(kind):
        members: Iterable[tuple[str | int, str]] = ((key, key) for key in kind.model_fields)
    elif get_origin(kind) is dict:
        members = ((key, key) for key in (node.mapping if node else ()))
    else:
        items = node.items if node else ()
        members = enumerate(_ids(items, kind) or map(str, range(len(items))))
    for key, name in members:
        yield before + name
        inner = _member(node, key)
        yield from _paths(inner, below(kind, key, inner.tag if inner else None), f"{before}{name}.")
