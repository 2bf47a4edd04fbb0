"""What a plan tells of tensors that are not loaded, and of weights that do not stay packed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mlxpipe.errors import Diagnostic, Origin
from mlxpipe.naming.groups import Group
from mlxpipe.naming.leftovers import leftovers


def left_out(
    config: Mapping[str, Any], modules: Iterable[str], groups: Iterable[str]
) -> dict[str, str]:
    """Paths of groups that belong to no part of a model -> what they are.

    Args:
        config: config.json.
        modules: Paths of the architecture's modules.
        groups: Paths of the checkpoint's groups.
    """
    rule = leftovers(config, modules)
    found = {path: rule.reason(path) for path in groups}
    return {path: f"not loaded: {reason}" for path, reason in found.items() if reason}


def all_tensors(group: Group) -> tuple[str, ...]:
    """The checkpoint's tensors of a group, of all roles."""
    return tuple(name for role in group.parts for name in group.names(role))


def describe_left_out(left: Mapping[str, str], groups: Mapping[str, Group]) -> Iterator[Diagnostic]:
    """One note for each part that is left out."""
    for reason in dict.fromkeys(left.values()):
        paths = [path for path in left if left[path] == reason]
        names = [name for path in paths for name in all_tensors(groups[path])]
        yield Diagnostic(
            "left-out", f"{_some(names)} {reason}", origin=Origin(names[0]), severity="note"
        )


def describe_dequantised(paths: Sequence[str]) -> Iterator[Diagnostic]:
    """A note on modules whose weights do not stay packed, if there are any."""
    if paths:
        yield Diagnostic(
            "dequantised",
            f"{_some(paths)} dequantised while loading",
            module=paths[0],
            found="mlx-lm transposes the weight, or computes with it, before it is a parameter",
            severity="note",
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 1} more" if names[1:] else ""
    return f"'{names[0]}'{more}:"
