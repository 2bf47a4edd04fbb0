"""From tensor names to groups: the tensors of one layer, under canonical roles.

Everything here works on names, dtypes and shapes. A checkpoint may hold some 370,000 tensors, so
each name is taken apart once and nothing is done per tensor that could be done per group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from mlxpipe.errors import Diagnostic, Origin, PlanError
from mlxpipe.naming.conventions import CONVENTIONS, MAIN_LEAVES, Convention
from mlxpipe.naming.names import Renaming, matches

#: The leaf under which a role is handed to the architecture.
CANONICAL_LEAF: Mapping[str, str] = {"amax": "global_scale"}


#: The role of companions that are left aside.
IGNORED = "ignored"


class TensorLike(Protocol):
    """What grouping needs to know of a tensor."""

    @property
    def dtype(self) -> str:
        """The safetensors dtype name."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in the header."""


class Part(NamedTuple):
    """One role of a group: where its values come from.

    Attributes:
        dtype: safetensors dtype.
        shape: The shape after stacking and slicing.
        names: The checkpoint's tensors; several are stacked along a new first axis.
        stacked: Whether `names` are experts to stack (even if there is only one).
        rows: (start, stop, step) taken along the output axis, or None for all.
    """

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool = False
    rows: tuple[int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The tensors at one path of the checkpoint.

    Attributes:
        path: Canonical path, after the user's rules.
        parts: Role (`weight`, `scales`, …, or a parameter's own leaf such as `A_log`) -> part.
        convention: The row that named the companions, "" where there are none.
    """

    path: str
    parts: Mapping[str, Part]
    convention: str = ""

    @property
    def packed(self) -> bool:
        """Whether the weight is packed: it has scales."""
        return "scales" in self.parts

    def canonical(self, role: str) -> str:
        """The name under which a role goes to the architecture."""
        leaf = CANONICAL_LEAF.get(role, role)
        return f"{self.path}.{leaf}" if self.path else leaf


@dataclass(frozen=True, slots=True)
class Grouping:
    """All groups of a checkpoint, and what was left aside.

    Attributes:
        groups: Path -> group, in the order of the checkpoint's names.
        dropped: Tensors that the spec's `naming.drop` named.
        ignored: Companions that say nothing about the weights.
    """

    groups: Mapping[str, Group]
    dropped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()


class _Home(NamedTuple):
    """Where a tensor belongs: the main tensor's name and the role on it."""

    base: str
    role: str
    convention: str


def group_tensors(
    tensors: Mapping[str, TensorLike],
    conventions: Sequence[Convention] = CONVENTIONS,
    renaming: Renaming | None = None,
    drop: Iterable[str] = (),
) -> Grouping:
    """Sort a checkpoint's tensors into groups.

    Args:
        tensors: Name -> dtype and shape, sorted by name.
        conventions: The rows to try, in order.
        renaming: The user's rules.
        drop: Globs of tensors to leave aside, matched before and after renaming.

    Raises:
        PlanError: two tensors that normalise to one name.
    """
    renaming = renaming or Renaming()
    drop = tuple(drop)
    leaves = _leaf_table(conventions)
    homes: dict[str, _Home] = {}
    mains: set[str] = set()
    for name in tensors:
        home = _companion_home(name, tensors, leaves)
        if home is not None:
            homes[name] = home
            mains.add(home.base)
    found: dict[str, dict[str, Part]] = {}
    origins: dict[str, str] = {}
    dropped: list[str] = []
    ignored: list[str] = []
    for name, tensor in tensors.items():
        home = homes.get(name)
        base = home.base if home else name
        renamed = renaming.tensor(base) if renaming.rules else base
        if drop and any(matches(glob, each) for glob in drop for each in (name, base, renamed)):
            dropped.append(name)
            continue
        path, role = _split_main(renamed, whole=base in mains)
        if home is not None:
            role = home.role
            origins[path] = home.convention
        parts = found.setdefault(path, {})
        if role == IGNORED:
            ignored.append(name)
            continue
        if role in parts:
            raise _collision(f"{path}.{role}", parts[role].names[0], name)
        parts[role] = Part(tensor.dtype, tensor.shape, (name,))
    groups = {path: Group(path, parts, origins.get(path, "")) for path, parts in found.items()}
    return Grouping(groups, tuple(dropped), tuple(ignored))


def _leaf_table(conventions: Sequence[Convention]) -> dict[str, list[tuple[Convention, str]]]:
    table: dict[str, list[tuple[Convention, str]]] = {}
    for row in conventions:
        for leaf, role in row.companions.items():
            table.setdefault(leaf, []).append((row, role))
    return table


def _companion_home(
    name: str,
    tensors: Mapping[str, TensorLike],
    leaves: Mapping[str, list[tuple[Convention, str]]],
) -> _Home | None:
    stem, _, leaf = name.rpartition(".")
    for row, role in leaves.get(leaf, ()):
        # Rows share leaves (`global_scale`, `bias`): the scales beside it tell whose it is.
        if not any(f"{stem}.{scales}" in tensors for scales in row.scales):
            continue
        for form in row.bases:
            base = form.format(stem)
            main = tensors.get(base)
            if main is not None and main.dtype in row.dtypes:
                return _Home(base, role, row.name)
    return None


def _split_main(name: str, *, whole: bool) -> tuple[str, str]:
    """(path, role) of a main tensor or a parameter.

    A packed tensor without `.weight` (`experts.gate_up_proj`) is a module of its own, hence
    `whole`; a dense one stays a parameter of its parent.
    """
    path, _, leaf = name.rpartition(".")
    if not whole:
        return path, leaf
    return (path, "weight") if leaf in MAIN_LEAVES else (name, "weight")


def _collision(canonical: str, first: str, second: str) -> PlanError:
    return PlanError(
        "name-collision",
        f"two tensors normalise to '{canonical}'",
        origin=Origin(first),
        found=f"'{first}' and '{second}'",
        expected="one tensor for each canonical name",
        help="drop one of them with naming.drop, or narrow the rule in naming.rules",
    )


def tensor_paths(groups: Iterable[Group]) -> dict[str, str]:
    """Name of every tensor -> path of its group."""
    return {
        name: group.path for group in groups for part in group.parts.values() for name in part.names
    }


def unused(groups: Mapping[str, Group], used: Iterable[str]) -> list[Diagnostic]:
    """A finding for each group whose tensors nothing consumed."""
    known = set(used)
    return [
        Diagnostic(
            "unused-tensor",
            f"no module wants '{name}'",
            origin=Origin(name),
            help="allow it with naming.drop if that is fine, or rename it with naming.rules",
        )
        for group in groups.values()
        for part in group.parts.values()
        for name in part.names
        if name not in known
    ]
