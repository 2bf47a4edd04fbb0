"""`${vars.name}`, `${env:NAME}` and `${env:NAME:-default}` in the texts of a spec.

A text that is one `${vars.…}` and nothing else takes the variable's value, whatever its type; in
a longer text scalars are spelled as in YAML. What the environment gives is always a text. `$${` is
a `${` that is meant as such.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlxpipe.errors import Diagnostic, did_you_mean
from mlxpipe.spec.positions import Path, part_of
from mlxpipe.spec.reader import MAX_BYTES, MAX_DEPTH
from mlxpipe.spec.tree import Node, at

_MARK = "${"
_TOKEN = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"vars((?:\.[A-Za-z0-9_-]+)+)")
_ENVIRONMENT = re.compile(r"env:([A-Za-z_][A-Za-z0-9_]*)(:-(.*))?", re.DOTALL)
_FORMS = "${vars.NAME}, ${env:NAME} or ${env:NAME:-DEFAULT}"
_ESCAPE = "write $${ for a ${ that is meant as such"


def escape(text: str) -> str:
    """A text that interpolation gives back as it is."""
    return text.replace(_MARK, "$" + _MARK)


def references(root: Node) -> set[str]:
    """The names of the variables that the texts of a tree refer to, given or not."""
    if isinstance(root.value, str):
        found = (_VARIABLE.fullmatch(token[1] or "") for token in _TOKEN.finditer(root.value))
        return {each[1].split(".")[1] for each in found if each}
    members = (*root.mapping.values(), *root.items)
    return set().union(*(references(each) for each in members))


def interpolate(
    root: Node, environment: Mapping[str, str]
) -> tuple[Node, list[Diagnostic], set[tuple[str, int | None, int | None]]]:
    """A tree with every `${…}` replaced.

    Args:
        root: The tree; its `vars` are the variables.
        environment: What `${env:…}` reads.

    Returns:
        The tree, what is wrong, and the (file, line, column) of each text that stayed as it was
        because something is wrong with it.
    """
    variables = root.mapping.get("vars")
    work = _Interpolation(variables.mapping if variables else {}, environment)
    for name in work.variables:
        work.variable(name)
    members = {
        key: each if key == "vars" else work.node(each, (key,))
        for key, each in root.mapping.items()
    }
    for key, each in root.mapping.items():
        work.check_key(key, each, ())
    return replace(root, value=members), work.found, work.failed


class _BadReferenceError(Exception):
    """A reference that cannot be replaced; told already, or told by `finding`."""

    def __init__(self, finding: Diagnostic | None = None) -> None:
        super().__init__()
        self.finding = finding


@dataclass(slots=True)
class _Interpolation:
    variables: Mapping[str, Node]
    environment: Mapping[str, str]
    found: list[Diagnostic] = field(default_factory=list)
    failed: set[tuple[str, int | None, int | None]] = field(default_factory=set)
    done: dict[str, Node] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    active: list[str] = field(default_factory=list)

    def node(self, node: Node, path: Path) -> Node:
        """The node with its texts, and those below it, replaced."""
        if isinstance(node.value, str):
            return self._text(node, path) if _MARK in node.value else node
        if isinstance(node.value, tuple):
            items = tuple(self.node(each, (*path, i)) for i, each in enumerate(node.value))
            return replace(node, value=items)
        if not isinstance(node.value, dict):
            return node
        for key, each in node.value.items():
            self.check_key(key, each, path)
        members = {key: self.node(each, (*path, key)) for key, each in node.value.items()}
        return replace(node, value=members)

    def check_key(self, key: str, node: Node, path: Path) -> None:
        """Refuses `${…}` in a key."""
        if _MARK in key:
            origin = node.origin(_dotted(path), key=True)
            message = "a key cannot be interpolated"
            self.found.append(Diagnostic("bad-interpolation", message, origin, help=_ESCAPE))
            self.failed.add((origin.file, origin.line, origin.column))

    def variable(self, name: str) -> Node | None:
        """A variable with its own references replaced, None where they are wrong."""
        if name not in self.done and name not in self.broken:
            before = len(self.failed)
            self.active.append(name)
            done = self.node(self.variables[name], ("vars", name))
            self.active.pop()
            if len(self.failed) > before:
                self.broken.add(name)
            else:
                self.done[name] = done
        return self.done.get(name)

    def _text(self, node: Node, path: Path) -> Node:
        text = node.value
        tokens = list(_TOKEN.finditer(text))
        try:
            values = [self._value(node, token, path) for token in tokens]
        except _BadReferenceError as bad:
            if bad.finding:
                self.found.append(bad.finding)
            origin = node.origin()
            self.failed.add((origin.file, origin.line, origin.column))
            return node
        first = values[0] if tokens[0].start() == 0 else None
        via = tuple(way for each in values for way in each.via)
        place = node.place._replace(via=(*node.place.via, *via))
        base = node.base if first is None or first.base is None else first.base
        if len(tokens) == 1 and tokens[0][0] == text:
            return Node(values[0].value, place, base)
        if sum(len(each.text) for each in values) > MAX_BYTES:
            return self._too_long(node, path)
        parts, end = [], 0
        for token, value in zip(tokens, values, strict=True):
            parts += [text[end : token.start()], value.text]
            end = token.end()
        return Node("".join(parts) + text[end:], place, base)

    def _too_long(self, node: Node, path: Path) -> Node:
        message = f"this text becomes longer than {MAX_BYTES >> 20} MiB"
        origin = node.origin(_dotted(path[:-1]))
        self.found.append(Diagnostic("too-long", message, origin))
        self.failed.add((origin.file, origin.line, origin.column))
        return node

    def _value(self, node: Node, token: re.Match[str], path: Path) -> _Value:
        if token[0] == "$" + _MARK:
            return _Value(_MARK)
        inside = token[1]
        if token[2] and (named := _VARIABLE.fullmatch(inside)):
            return self._variable(node, token, path, named[1][1:])
        if token[2] and (named := _ENVIRONMENT.fullmatch(inside)):
            return self._environment(node, token, path, named)
        message = "this ${ has no closing }" if not token[2] else f"unknown reference {token[0]}"
        raise self._bad(
            node, token, path, "bad-interpolation", message, expected=_FORMS, help=_ESCAPE
        )

    def _variable(self, node: Node, token: re.Match[str], path: Path, name: str) -> _Value:
        top, *rest = name.split(".")
        if len(self.active) > MAX_DEPTH:
            message = f"variables refer to each other over more than {MAX_DEPTH} levels"
            raise self._bad(node, token, path, "too-deep", message)
        if top in self.active:
            chain = " > ".join((*self.active[self.active.index(top) :], top))
            message = "a variable cannot refer to itself"
            raise self._bad(node, token, path, "variable-cycle", message, found=chain)
        if top not in self.variables:
            raise self._unknown(node, token, path, top, self.variables, "")
        value = self.variable(top)
        if value is None:
            raise _BadReferenceError
        for number, part in enumerate(rest):
            below = at(value, (int(part) if value.items and part.isdecimal() else part,))
            if below is None:
                near = value.mapping or [str(index) for index in range(len(value.items))]
                before = ".".join((top, *rest[:number])) + "."
                raise self._unknown(node, token, path, part, near, before)
            value = below
        whole = token[0] == node.value
        if not whole and (value.value is None or isinstance(value.value, (dict, tuple))):
            kind = "nothing" if value.value is None else "a list or a mapping"
            message = f"'vars.{name}' is {kind}, which cannot stand within a text"
            raise self._bad(node, token, path, "wrong-type", message)
        where = str(value.origin())
        return _Value(value.value, (f"vars.{name} at {where}", *value.place.via), value.base)

    def _unknown(
        self, node: Node, token: re.Match[str], path: Path, name: str, known: Any, before: str
    ) -> _BadReferenceError:
        label = did_you_mean(name, known)
        message = f"there is no variable 'vars.{before}{name}'"
        advice = "" if label else "declare it under 'vars'"
        advice += f", or --set vars.{name}=…" if advice and not before else ""
        return self._bad(node, token, path, "unknown-variable", message, label=label, help=advice)

    def _environment(
        self, node: Node, token: re.Match[str], path: Path, named: re.Match[str]
    ) -> _Value:
        name, default = named[1], named[3]
        # As in a shell, `:-` also stands in for a variable that is set to nothing.
        value = self.environment.get(name)
        if value:
            return _Value(value, (f"env {name}",))
        if named[2] is not None:
            return _Value(default, (f"env {name}, which is not set",))
        if value is not None:
            return _Value(value, (f"env {name}",))
        message = f"the environment variable {name} is not set"
        advice = f"set it, or give a default: ${{env:{name}:-…}}"
        raise self._bad(node, token, path, "unset-variable", message, help=advice)

    def _bad(
        self,
        node: Node,
        token: re.Match[str],
        path: Path,
        code: str,
        message: str,
        **details: Any,
    ) -> _BadReferenceError:
        width = token.end() - token.start()
        mark = part_of(node.file, node.place.value, node.value, token.start(), width)
        origin = node.file.at(mark, _dotted(path[:-1]))
        return _BadReferenceError(Diagnostic(code, message, origin, **details))


@dataclass(frozen=True, slots=True)
class _Value:
    """What a reference stands for; `base` is None where it is the referring text's own."""

    value: Any
    via: tuple[str, ...] = ()
    base: str | None = None

    @property
    def text(self) -> str:
        return str(self.value).lower() if isinstance(self.value, bool) else str(self.value)


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))
