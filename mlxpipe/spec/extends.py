"""`extends`: the files a spec is built on, read and merged."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlxpipe.errors import UsageError
from mlxpipe.spec.model import Spec
from mlxpipe.spec.paths import below
from mlxpipe.spec.positions import Document
from mlxpipe.spec.reader import read_yaml
from mlxpipe.spec.tree import Node, from_document, merge

MAX_DEPTH = 16
MAX_FILES = 64


def read_bases(document: Document, path: Path) -> Node:
    """A spec's tree with everything it extends merged under it.

    Args:
        document: The spec as read.
        path: The spec's file; `extends` starts from its directory.

    Returns:
        The tree without `extends`. Each value knows its file, and the directory of that file
        relative to the spec's.

    Raises:
        UsageError: at the line that extends: a missing or unreadable file, a cycle, or too many.
    """
    return _Reading(path.parent).merged(document, path, "", (_identity(path),))


@dataclass(slots=True)
class _Reading:
    directory: Path
    files: list[Path] = field(default_factory=list)

    def merged(self, document: Document, path: Path, base: str, chain: tuple[str, ...]) -> Node:
        own = from_document(document, base)
        extends = own.mapping.get("extends")
        own = replace(own, value={k: v for k, v in own.mapping.items() if k != "extends"})
        if extends is None:
            return own
        under: Node | None = None
        for named in _named(extends):
            tree = self._base(named, path, base, chain)
            under = tree if under is None else merge(under, tree, Spec)
        return own if under is None else merge(under, own, Spec)

    def _base(self, named: Node, path: Path, base: str, chain: tuple[str, ...]) -> Node:
        target = _target(named, path)
        if (identity := _identity(target)) in chain:
            names = " > ".join(Path(each).name for each in (*chain, identity))
            raise _error(named, "extends-cycle", "a spec cannot extend itself", found=names)
        self.files.append(target)
        if len(chain) > MAX_DEPTH or len(self.files) > MAX_FILES:
            limit = f"at most {MAX_DEPTH} levels and {MAX_FILES} files"
            raise _error(named, "too-deep", "too many files extend each other", expected=limit)
        try:
            document = read_yaml(target)
        except UsageError as error:
            raise _located(error, named) from None
        folder = os.path.dirname(named.value)  # noqa: PTH120
        folder = below(base, folder, self.directory) if folder else base
        return self.merged(document, target, folder, (*chain, identity))


def _named(extends: Node) -> tuple[Node, ...]:
    named = extends.items if isinstance(extends.value, tuple) else (extends,)
    for each in named:
        if not isinstance(each.value, str) or not each.value:
            raise _error(
                each,
                "wrong-type",
                "'extends' has the wrong type",
                expected="the path of a spec, or a list of paths",
            )
        if "${" in each.value:
            message = "a path in 'extends' cannot be interpolated"
            raise _error(each, "bad-interpolation", message, help="write the path out")
    return named


def _target(named: Node, path: Path) -> Path:
    try:
        written = Path(named.value)
        target = written.expanduser() if named.value.startswith("~") else written
    except RuntimeError:
        message = f"there is no home directory for {named.value!r}"
        raise _error(named, "no-home-directory", message, help="write the path out") from None
    if "\0" in named.value:
        raise _error(named, "bad-name", "this is not a path")
    return path.parent / target


def _identity(path: Path) -> str:
    return os.path.realpath(path)


def _error(node: Node, code: str, message: str, **details: str) -> UsageError:
    return _located(UsageError(code, message, **details), node)


def _located(error: UsageError, named: Node) -> UsageError:
    """A file that cannot be read is wrong where it is named; its text is wrong where it is."""
    found = [
        item if item.origin else replace(item, origin=named.origin("extends"))
        for item in error.diagnostics
    ]
    located = UsageError.several(found)
    assert isinstance(located, UsageError)
    return located
