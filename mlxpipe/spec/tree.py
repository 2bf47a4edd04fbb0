"""A spec's data while it is composed: every value with the place it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlxpipe.errors import Diagnostic, Origin, UsageError
from mlxpipe.spec.kinds import below, is_model
from mlxpipe.spec.positions import Document, Mark, Path, Place, Positions, TextFile
from mlxpipe.spec.reader import MAX_DEPTH, MAX_NODES

#: What a spec says about its own composition; none of it is left when it is validated.
COMPOSING_KEYS = ("extends", "vars", "matrix")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and where it came from.

    Attributes:
        value: A mapping of nodes, a tuple of nodes, or a scalar.
        place: Where it stands; its file is always set.
        base: The directory that a relative path begins from, as seen from the spec's own; "" is
            the spec's own.
    """

    value: Any
    place: Place = field(repr=False)
    base: str = ""

    def origin(self, context: str = "", *, key: bool = False) -> Origin:
        """Where the value (or its key) stands."""
        mark = self.place.key if key and self.place.key else self.place.value
        return self.file.at(mark, context)

    @property
    def file(self) -> TextFile:
        """What the value stands in."""
        assert self.place.file is not None
        return self.place.file

    @property
    def mapping(self) -> Mapping[str, Node]:
        """The members, none where this is no mapping."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def items(self) -> tuple[Node, ...]:
        """The items, none where this is no list."""
        return self.value if isinstance(self.value, tuple) else ()

    @property
    def tag(self) -> Any:
        """What a mapping says its `type` is."""
        told = self.mapping.get("type")
        return told.value if told is not None else None

    def plain(self) -> Any:
        """The plain data."""
        if isinstance(self.value, dict):
            return {key: each.plain() for key, each in self.value.items()}
        return (
            [each.plain() for each in self.value] if isinstance(self.value, tuple) else self.value
        )

    def through(self, via: str) -> Node:
        """The same, with a word on how every value of it came here."""
        place = self.place._replace(via=(*self.place.via, via))
        return Node(_each(self.value, lambda node: node.through(via)), place, self.base)


def _each(value: Any, action: Callable[[Node], Node]) -> Any:
    if isinstance(value, dict):
        return {key: action(each) for key, each in value.items()}
    return tuple(map(action, value)) if isinstance(value, tuple) else value


def from_document(document: Document, base: str = "") -> Node:
    """The tree of a document that was read."""
    positions = document.positions
    file = TextFile(positions.file, positions.lines)

    def node(value: Any, path: Path) -> Node:
        place = positions.places.get(path, Place(Mark(1, 1)))._replace(file=file)
        if isinstance(value, dict):
            value = {key: node(each, (*path, key)) for key, each in value.items()}
        elif isinstance(value, list):
            value = tuple(node(each, (*path, index)) for index, each in enumerate(value))
        return Node(value, place, base)

    return node(document.data, ())


def from_value(value: Any, name: str) -> Node:
    """The tree of a value that stands in no file, only under a name."""
    place = Place(Mark(1, 1), None, TextFile(name))
    if isinstance(value, Mapping):
        value = {str(key): from_value(each, name) for key, each in value.items()}
    elif isinstance(value, (list, tuple)):
        value = tuple(from_value(each, name) for each in value)
    return Node(value, place)


def to_document(root: Node, written: Document) -> Document:
    """A composed tree as a document; `written` is the spec's own."""
    places: dict[Path, Place] = {}

    def note(node: Node, path: Path) -> None:
        places[path] = node.place
        for part, each in _parts(node):
            note(each, (*path, part))

    note(root, ())
    positions = Positions(written.positions.file, written.positions.lines, places)
    return Document(root.plain(), positions, written.text)


def _parts(node: Node) -> Iterable[tuple[str | int, Node]]:
    return node.mapping.items() if node.mapping else enumerate(node.items)


def merge(under: Node, over: Node, kind: Any) -> Node:
    """Mappings merge deeply, anything else replaces; `over` wins.

    Keys that exclude each other (`source.path` and `source.hub`) replace each other as well.
    """
    if not isinstance(under.value, dict) or not isinstance(over.value, dict):
        return over
    gone = displaced(kind, over.mapping, under.mapping)
    merged = {key: each for key, each in under.mapping.items() if key not in gone}
    for key, each in over.mapping.items():
        inner = below(kind, key, each.tag)
        merged[key] = merge(merged[key], each, inner) if key in merged else each
    return replace(over, value=merged)


def displaced(kind: Any, given: Mapping[str, Node], present: Iterable[str]) -> set[str]:
    """The keys of `present` that exclude those of `given`, and what belongs to them."""
    if not is_model(kind):
        return set()
    said = {key for key, each in given.items() if each.value is not None}
    groups = [group for group in kind.exactly_one if said & set(group)]
    if not groups:
        return set()
    others = {key for group in kind.exactly_one if group not in groups for key in group}
    orphans = {key for key, owner in kind.belongs_to.items() if owner in others}
    return (set(present) & (others | orphans)) - said


def put(root: Node, path: Path, new: Node, kind: Any) -> Node:
    """The tree with the value at a path replaced; mappings on the way are made."""
    if not path:
        return replace(new, place=new.place._replace(key=None))
    part, rest = path[0], path[1:]
    if isinstance(part, int):
        items = list(root.items)
        items[part] = put(items[part], rest, new, below(kind, part, items[part].tag))
        return replace(root, value=tuple(items))
    gone = displaced(kind, {part: new}, root.mapping)
    members = {key: each for key, each in root.mapping.items() if key not in gone}
    present = members.get(part) or replace(new, value={})
    members[part] = put(present, rest, new, below(kind, part, present.tag))
    return replace(root, value=members)


def at(root: Node, path: Path) -> Node | None:
    """The node at a path, None where there is none."""
    node: Node | None = root
    for part in path:
        if node is None:
            return None
        if isinstance(part, int):
            node = node.items[part] if part < len(node.items) else None
        else:
            node = node.mapping.get(part)
    return node


def check_size(root: Node) -> None:
    """Refuses what the reader would refuse if it were written out, as variables make it possible.

    Raises:
        UsageError: Too many values, or nested too deeply.
    """
    waiting, count = [(root, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if count > MAX_NODES:
            raise _too_much(root, "too-many-values", f"more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            raise _too_much(root, "too-deep", f"values are nested deeper than {MAX_DEPTH} levels")
        waiting += ((each, depth + 1) for _, each in _parts(node))


def _too_much(root: Node, code: str, message: str) -> UsageError:
    return UsageError(code, f"{message}, once variables are put in", origin=root.origin())


def problem(
    node: Node, code: str, message: str, *, context: str = "", **details: Any
) -> Diagnostic:
    """A finding about a node."""
    key = details.pop("key", False)
    return Diagnostic(code, message, node.origin(context, key=key), **details)
