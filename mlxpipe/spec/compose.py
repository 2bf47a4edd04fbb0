"""From a spec as written to the specs it stands for, without `extends`, `vars` and `matrix`.

The order: extended files are merged under the spec; a combination of the matrix is set; what the
command line sets is set, and wins; `${…}` is replaced; paths of extended files become relative to
the spec. Every value keeps the place it came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlxpipe.errors import Diagnostic, UsageError
from mlxpipe.spec.extends import read_bases
from mlxpipe.spec.interpolation import interpolate
from mlxpipe.spec.matrix import Axis, Combination, combine, read_axes, select
from mlxpipe.spec.paths import rebase
from mlxpipe.spec.positions import Document
from mlxpipe.spec.settings import Setting, apply, locate
from mlxpipe.spec.tree import COMPOSING_KEYS, Node, check_size, problem, to_document


@dataclass(frozen=True, slots=True)
class Composed:
    """One spec that a file stands for.

    Attributes:
        document: The plain data, every value with its place.
        combination: The combination of the matrix.
        found: What is wrong so far.
        failed: (file, line, column) of texts that could not be interpolated: what validation
            says of them is void.
    """

    document: Document
    combination: Combination
    found: tuple[Diagnostic, ...]
    failed: frozenset[tuple[str, int | None, int | None]]


def compose(
    written: Document,
    path: Path,
    settings: Sequence[Setting] = (),
    only: Iterable[str] = (),
) -> list[Composed]:
    """Every spec that a file stands for, in the order of its matrix.

    Args:
        written: The spec as read.
        path: Its file.
        settings: What the command line sets.
        only: Which combinations; default: all.

    Raises:
        UsageError: as `read_bases`; whatever is wrong with the matrix or with what chooses from
            it. What is wrong with one combination is left in its `found`.
    """
    root = read_bases(written, path)
    axes = _axes(root, settings)
    combinations = select(combine(axes), tuple(only))
    plain = replace(root, value={k: v for k, v in root.mapping.items() if k != "matrix"})
    return [_composed(plain, written, path.parent, each, settings) for each in combinations]


def _axes(root: Node, settings: Sequence[Setting]) -> list[Axis]:
    matrix = root.mapping.get("matrix")
    if matrix is None or matrix.value is None:
        return []
    axes, found = read_axes(matrix)
    if found:
        raise UsageError.several(found)
    # What the command line sets is no axis any more.
    fixed = [locate(root, setting.path) for setting in settings]
    return [axis for axis in axes if not _is_fixed(root, axis.name, fixed)]


def _is_fixed(root: Node, name: str, fixed: list[tuple[str | int, ...] | None]) -> bool:
    path = locate(root, name)
    return path is not None and any(each == path[: len(each)] for each in fixed if each)


def _composed(
    root: Node,
    written: Document,
    directory: Path,
    combination: Combination,
    settings: Sequence[Setting],
) -> Composed:
    found = _variables(root)
    tree, wrong = apply(root, (*combination.settings, *settings))
    tree, bad, failed = interpolate(tree, os.environ)
    members = {key: each for key, each in tree.mapping.items() if key not in COMPOSING_KEYS}
    tree = replace(tree, value=members)
    check_size(tree)
    document = to_document(rebase(tree, directory), written)
    return Composed(document, combination, (*found, *wrong, *bad), frozenset(failed))


def _variables(root: Node) -> list[Diagnostic]:
    variables = root.mapping.get("vars")
    if variables is None or variables.value is None or isinstance(variables.value, dict):
        return []
    expected = "a mapping of names to values"
    return [problem(variables, "wrong-type", "'vars' has the wrong type", expected=expected)]
