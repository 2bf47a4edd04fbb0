"""`matrix`: axes of settings, and every combination of them.

An axis is a dotted path with a list of values, or with values under labels of one's own; or any
other name with labels for several settings at once:

    matrix:
      perplexity.context: [256, 512]
      quantization.precedence: {trusting: metadata > config, careful: config > metadata}
      recipe:
        plain: {quantize: []}
        mixed: {quantize: [...], vars.tag: x}
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import product
from math import prod
from typing import Any, Protocol, TypeVar

from mlxpipe.errors import Diagnostic, Origin, UsageError, did_you_mean
from mlxpipe.spec.model import Spec
from mlxpipe.spec.problems import either, spell
from mlxpipe.spec.reader import read_yaml
from mlxpipe.spec.settings import Setting
from mlxpipe.spec.tree import Node, problem

MAX_COMBINATIONS = 1024
#: How a place says that its value was set by a combination.
MATRIX = "matrix"
_MAX_VALUE = 40
_MAX_LABEL = 100
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of an axis.

    Attributes:
        label: What it is called, alone unique within its axis.
        shown: What a record says of it: the value as written, or its label.
        settings: What it sets.
    """

    label: str
    shown: Any
    settings: tuple[Setting, ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """One key of `matrix`."""

    name: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Combination:
    """One choice on every axis.

    Attributes:
        label: Readable, unique in its matrix, and fit for a directory's name; "" without one.
        values: Axis -> what was chosen.
        labels: Axis -> what the choice is called.
        settings: What it sets, axis by axis.
    """

    label: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[Setting, ...] = ()


def read_axes(matrix: Node) -> tuple[list[Axis], list[Diagnostic]]:
    """The axes of a `matrix`, and what is wrong with it."""
    if not matrix.mapping:
        return [], [_wrong(matrix, "'matrix'", "a mapping of paths to lists of values", "")]
    axes, found = [], []
    for name, node in matrix.mapping.items():
        # null takes an axis away that an extended file has.
        if node.value is None:
            continue
        choices, problems = _choices(name, node)
        found += problems
        axes.append(Axis(name, choices))
    if (number := prod(len(axis.choices) for axis in axes)) > MAX_COMBINATIONS:
        message = f"the matrix has {number} combinations"
        expected = f"at most {MAX_COMBINATIONS}"
        found.append(problem(matrix, "out-of-range", message, key=True, expected=expected))
    return axes, found


def _is_path(name: str) -> bool:
    return "." in name or name in Spec.model_fields


def _choices(name: str, node: Node) -> tuple[tuple[Choice, ...], list[Diagnostic]]:
    bundles = bool(node.mapping) and not _is_path(name)
    if "${" in name:
        message = "a key cannot be interpolated"
        return (), [problem(node, "bad-interpolation", message, context="matrix", key=True)]
    if not node.mapping and not node.items:
        expected = "a list of values, or a mapping of labels to values"
        return (), [_wrong(node, f"'{name}'", expected, "matrix")]
    found = [_bad_label(label, each, name) for label, each in node.mapping.items()]
    problems = [each for each in found if each]
    if bundles:
        for label, each in node.mapping.items():
            if not isinstance(each.value, dict):
                expected = "a mapping of paths to values"
                problems.append(_wrong(each, f"'{label}'", expected, f"matrix.{name}"))
        made = [
            Choice(
                label, label, tuple(_setting(path, value) for path, value in each.mapping.items())
            )
            for label, each in node.mapping.items()
        ]
    elif node.mapping:
        made = [
            Choice(label, each.plain(), (_setting(name, each),))
            for label, each in node.mapping.items()
        ]
    else:
        where = node.origin("matrix", key=True)
        labels = _labels(name, [each.plain() for each in node.items])
        made = [
            Choice(label, each.plain(), (_setting(name, each, where),))
            for label, each in zip(labels, node.items, strict=True)
        ]
    return tuple(made), problems


def _setting(path: str, value: Node, where: Origin | None = None) -> Setting:
    return Setting(path, value.through(MATRIX), where or value.origin("matrix", key=True))


def _wrong(node: Node, subject: str, expected: str, context: str) -> Diagnostic:
    return problem(
        node, "wrong-type", f"{subject} has the wrong type", context=context, expected=expected
    )


def _bad_label(label: str, node: Node, name: str) -> Diagnostic | None:
    if _LABEL.fullmatch(label):
        return None
    expected = "at most 64 letters, digits, '.', '_' and '-'"
    message = f"{label!r} is no label"
    context = f"matrix.{name}"
    return problem(node, "bad-name", message, context=context, key=True, expected=expected)


def _labels(name: str, values: Sequence[Any]) -> list[str]:
    """A label for each value: the path's last key and the value, or a number where that is long."""
    short = name.rpartition(".")[2]
    slugs = [f"{short}-{_slug(value)}" if _slug(value) else "" for value in values]
    taken = Counter(slug.casefold() for slug in slugs)
    clear = all(slugs) and max(taken.values()) == 1
    return slugs if clear else [f"{short}-{number}" for number in range(1, len(values) + 1)]


def _slug(value: Any) -> str:
    """A scalar as a name, "" where it would not be readable."""
    if isinstance(value, (dict, list)):
        return ""
    text = value if isinstance(value, str) else spell(value)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-")
    return slug if len(slug) <= _MAX_VALUE else ""


def combine(axes: Sequence[Axis]) -> list[Combination]:
    """Every combination, the last axis varying fastest; one without a label if there is no axis."""
    if not axes:
        return [Combination()]
    chosen = list(product(*(axis.choices for axis in axes)))
    labels = ["_".join(choice.label for choice in choices) for choices in chosen]
    unique = len({label.casefold() for label in labels}) == len(labels)
    if not unique or max(map(len, labels)) > _MAX_LABEL:
        labels = [f"combination-{number}" for number in range(1, len(labels) + 1)]
    names = [axis.name for axis in axes]
    return [
        Combination(
            label,
            dict(zip(names, (choice.shown for choice in choices), strict=True)),
            dict(zip(names, (choice.label for choice in choices), strict=True)),
            tuple(setting for choice in choices for setting in choice.settings),
        )
        for label, choices in zip(labels, chosen, strict=True)
    ]


# --- choosing --------------------------------------------------------------------------------


def select(combinations: Sequence[Combination], only: Iterable[str]) -> list[Combination]:
    """The combinations that `--only` chooses.

    Args:
        combinations: Those of one matrix.
        only: Globs of labels, and `axis=value`. Those about one axis are alternatives, and so are
            the globs; a combination must satisfy each such group.

    Raises:
        UsageError: There is no matrix, no such axis, or nothing is chosen.
    """
    groups: dict[str, list[Callable[[Combination], bool]]] = {}
    for text in only:
        axis, equals, value = text.partition("=")
        if not combinations[0].label:
            raise _bad_choice("--only", text, "this spec has no matrix to choose from")
        test = _value_test(combinations, text, axis, value) if equals else _label_test(text)
        groups.setdefault(axis if equals else "", []).append(test)
    chosen = [
        each
        for each in combinations
        if all(any(test(each) for test in tests) for tests in groups.values())
    ]
    if not chosen:
        labels = [each.label for each in combinations]
        text = " --only ".join(only)
        near = did_you_mean(text, labels)
        raise _bad_choice("--only", text, "no combination fits", _listed(labels), near)
    return chosen


def _label_test(glob: str) -> Callable[[Combination], bool]:
    return lambda each: fnmatchcase(each.label, glob)


def _value_test(
    combinations: Sequence[Combination], text: str, axis: str, value: str
) -> Callable[[Combination], bool]:
    axes = list(combinations[0].values)
    if axis not in axes:
        near = did_you_mean(axis, axes)
        raise _bad_choice("--only", text, f"the matrix has no axis '{axis}'", either(axes), near)
    try:
        parsed = read_yaml(f"value: {value}").data.get("value")
    except UsageError:
        parsed = value

    def test(each: Combination) -> bool:
        shown = each.values[axis]
        same = type(shown) is type(parsed) and shown == parsed
        return same or value in (shown, each.labels[axis])

    if not any(map(test, combinations)):
        known = dict.fromkeys(spell(each.values[axis]) for each in combinations)
        raise _bad_choice("--only", text, f"'{axis}' has no such value", _listed(list(known)))
    return test


class _Labelled(Protocol):
    """A combination, or a spec that is one."""

    @property
    def label(self) -> str:
        """Its label, "" where there is no matrix."""


_T = TypeVar("_T", bound=_Labelled)


def shard(combinations: Sequence[_T], text: str) -> tuple[_T, ...]:
    """Part i of n, 1-based: every n-th combination, so that parts are disjoint and complete.

    Raises:
        UsageError: `text` is no `i/n` with 1 <= i <= n, or there is no matrix.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text, re.ASCII)
    number, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= number <= parts:
        raise _bad_choice("--shard", text, "this is no part of a whole", "i/n with 1 <= i <= n")
    if not combinations[0].label:
        raise _bad_choice("--shard", text, "this spec has no matrix to take a part of")
    return tuple(combinations[number - 1 :: parts])


def require_one(labels: Sequence[str]) -> UsageError:
    """The error of a command that works on one combination."""
    return UsageError(
        "several-combinations",
        f"the spec is a matrix of {len(labels)} combinations, and one is needed here",
        expected=_listed(labels),
        help="choose one with --only; `mlxpipe show --only` writes it as a spec of its own",
    )


def some(labels: Sequence[str]) -> str:
    """The first labels, and how many others there are."""
    more = f" and {len(labels) - 4} others" if len(labels) > 4 else ""
    return ", ".join(labels[:4]) + more


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 12} others" if len(names) > 12 else ""
    return "\n".join(names[:12]) + more


def _bad_choice(
    option: str, text: str, message: str, expected: str = "", near: str = ""
) -> UsageError:
    origin = Origin(f"{option} {text}")
    return UsageError("bad-choice", message, origin=origin, expected=expected, help=near)
