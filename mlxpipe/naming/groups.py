"""From tensor names to groups: the tensors of one layer, under canonical roles.

Everything here works on names, dtypes and shapes. A checkpoint may hold some 370,000 tensors, so
each name is taken apart once and nothing is done per tensor that could be done per group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from mlxpipe.errors import Origin, PlanError
from mlxpipe.naming.conventions import CONVENTIONS, MAIN_LEAVES, Convention
from mlxpipe.naming.names import ANY_EXPERT, EXPERTS, Renaming, matches

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


class Run(NamedTuple):
    """Rows of a weight: `range(start, stop, step)` of its output features."""

    start: int
    stop: int
    step: int = 1


class Part(NamedTuple):
    """One role of a group: where its values come from.

    Attributes:
        dtype: safetensors dtype.
        shape: The shape after stacking.
        names: The checkpoint's tensors; several are stacked along a new first axis.
        stacked: Whether `names` are experts to stack, even if there is only one.
    """

    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """The tensors at one path of the checkpoint.

    Attributes:
        path: Canonical path, after the user's rules.
        parts: Role (`weight`, `scales`, …, or a parameter's own leaf such as `A_log`) -> part.
        convention: The row that named the companions, "" where there are none.
        rows: What is taken of a fused layer; () for all. Producers pack along either axis, so it is
            cut when it is in MLX's layout.
        others: Groups whose rows follow, where the architecture fuses the checkpoint's parts.
        stored: The path in the checkpoint, where a placed group has another.
    """

    path: str
    parts: Mapping[str, Part]
    convention: str = ""
    rows: tuple[Run, ...] = ()
    others: tuple[Group, ...] = ()
    stored: str = ""

    @property
    def packed(self) -> bool:
        """Whether there is a weight and it is packed: it has scales."""
        return "weight" in self.parts and "scales" in self.parts

    def names(self, role: str) -> tuple[str, ...]:
        """The checkpoint's tensors of a role, those of `others` included."""
        own = self.parts[role].names if role in self.parts else ()
        return own + tuple(name for other in self.others for name in other.names(role))

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


_DTYPE, _SHAPE = attrgetter("dtype"), attrgetter("shape")

#: Tensors that share a stem: leaf -> tensor.
Leaves = dict[str, TensorLike]


class _Hook(NamedTuple):
    """One way in which a leaf may hang on a main tensor.

    Attributes:
        convention: The row's name.
        role: The role it gives.
        bases: What follows the stem in the main tensor's name: `.weight`, or nothing.
        dtypes: The main tensor's dtypes.
        beside: Leaves of the row's scales, one of which must be there; () for scales themselves.
            Rows share leaves (`global_scale`, `bias`), and the scales tell whose a leaf is.
    """

    convention: str
    role: str
    bases: tuple[str, ...]
    dtypes: frozenset[str]
    beside: tuple[str, ...]


class _Home(NamedTuple):
    """Where a companion belongs: what follows the stem in its main tensor's name, and its role."""

    suffix: str
    role: str
    convention: str


@dataclass(frozen=True, slots=True)
class _Homes:
    """The companions among a stem's leaves.

    Attributes:
        by_leaf: Leaf -> where it belongs, for every leaf that is a companion.
        inner: Whether there are some, and their main tensors are all among the leaves.
        outer: Whether there are some of the tensor whose whole name is the stem.
    """

    by_leaf: Mapping[str, _Home]
    inner: bool
    outer: bool


class _Companions:
    """Finds the companions among a stem's leaves; equal sets of leaves are looked at once."""

    def __init__(self, hooks: Mapping[str, list[_Hook]]) -> None:
        self._hooks = hooks
        self._known: dict[tuple[Any, ...], _Homes] = {}
        self._outer_leaves = frozenset(
            leaf for leaf, ways in hooks.items() if any("" in hook.bases for hook in ways)
        )

    def of(self, stem: str, leaves: Leaves, stems: Mapping[str, Leaves]) -> _Homes:
        """Where a stem's leaves belong; one value for all stems with the same leaves and dtypes."""
        dtype = None
        if not self._outer_leaves.isdisjoint(leaves):
            parent, _, last = stem.rpartition(".")
            outer = stems.get(parent, {}).get(last)
            dtype = None if outer is None else outer.dtype
        key = (dtype, tuple(leaves), tuple(map(_DTYPE, leaves.values())))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._find(leaves, dtype)
        return found

    def _find(self, leaves: Leaves, outer: str | None) -> _Homes:
        homes: dict[str, _Home] = {}
        for leaf in leaves:
            found = (_home(hook, leaves, outer) for hook in self._hooks.get(leaf, ()))
            home = next((home for home in found if home is not None), None)
            if home is not None:
                homes[leaf] = home
        below = [bool(home.suffix) for home in homes.values()]
        return _Homes(homes, bool(below) and all(below), not all(below))


def _home(hook: _Hook, leaves: Leaves, outer: str | None) -> _Home | None:
    """Where a leaf belongs if it hangs on as `hook` says.

    `outer` is the dtype of the tensor whose whole name is the stem, if there is one.
    """
    if hook.beside and not any(leaf in leaves for leaf in hook.beside):
        return None
    for suffix in hook.bases:
        main = leaves.get(suffix[1:]) if suffix else None
        dtype = main.dtype if main is not None else None if suffix else outer
        if dtype in hook.dtypes:
            return _Home(suffix, hook.role, hook.convention)
    return None


class _Draft:
    """Groups in the making.

    Args:
        renaming: The user's rules.
        drop: Globs of tensors to leave aside.
        outer: Names of main tensors whose companions hang on their whole name.
    """

    def __init__(self, renaming: Renaming, drop: tuple[str, ...], outer: set[str]) -> None:
        self.dropped: list[str] = []
        self.ignored: list[str] = []
        self._renaming = renaming
        self._drop = drop
        self._outer = outer
        self._parts: dict[str, dict[str, Part]] = {}
        self._conventions: dict[str, str] = {}
        self._experts: dict[str, dict[int, tuple[str, Leaves, _Homes]]] = {}

    def groups(self) -> dict[str, Group]:
        """The groups, by path."""
        return {
            path: Group(path, parts, self._conventions.get(path, ""))
            for path, parts in self._parts.items()
        }

    def add_stem(self, stem: str, leaves: Leaves, found: _Homes) -> None:
        """Add a stem's tensors to the groups they belong to."""
        homes = found.by_leaf
        mains = {home.suffix[1:] for home in homes.values() if home.suffix}
        for leaf, tensor in leaves.items():
            name = f"{stem}.{leaf}" if stem else leaf
            home = homes.get(leaf)
            base = stem + home.suffix if home else name
            renamed = self._renaming.tensor(base)
            if self._is_dropped(name, base, renamed):
                self.dropped.append(name)
            elif home is not None and home.role == IGNORED:
                self.ignored.append(name)
            else:
                whole = home is not None or leaf in mains or name in self._outer
                path, role = _split_main(renamed, whole=whole)
                part = Part(tensor.dtype, tensor.shape, (name,))
                self._add(path, home.role if home else role, part, home)

    def keep_expert(self, stem: str, leaves: Leaves, found: _Homes) -> bool:
        """Keep a packed expert until all of its projection are known.

        Returns:
            Whether the stem is one, and no rule of the user's concerns it.
        """
        if not found.inner or self._renaming.rules:
            return False
        block, _, rest = stem.partition(EXPERTS)
        index, dot, projection = rest.partition(".")
        if not dot or not index.isdecimal():
            return False
        if self._drop and self._is_dropped(stem, f"{stem}.weight"):
            return False
        path = f"{block}{EXPERTS}{ANY_EXPERT}.{projection}"
        self._experts.setdefault(path, {})[int(index)] = (stem, leaves, found)
        return True

    def settle_experts(self) -> None:
        """Experts that are complete and alike become one group, others one each."""
        for path, experts in self._experts.items():
            if _are_alike(experts):
                self._add_stack(
                    path, [experts[index][0] for index in range(len(experts))], *experts[0][1:]
                )
            else:
                for member in experts.values():
                    self.add_stem(*member)

    def _add_stack(self, path: str, stems: Sequence[str], leaves: Leaves, found: _Homes) -> None:
        homes = found.by_leaf
        for leaf, tensor in leaves.items():
            names = tuple([f"{stem}.{leaf}" for stem in stems])
            home = homes.get(leaf)
            if home is not None and home.role == IGNORED:
                self.ignored += names
                continue
            main = home is None and leaf in MAIN_LEAVES
            role = home.role if home else "weight" if main else leaf
            part = Part(tensor.dtype, (len(stems), *tensor.shape), names, stacked=True)
            self._add(path, role, part, home)

    def _add(self, path: str, role: str, part: Part, home: _Home | None) -> None:
        parts = self._parts.setdefault(path, {})
        if role in parts:
            raise _collision(f"{path}.{role}", parts[role].names[0], part.names[0])
        parts[role] = part
        if home is not None:
            self._conventions[path] = home.convention

    def _is_dropped(self, *names: str) -> bool:
        return any(matches(glob, name) for glob in self._drop for name in names)


def _are_alike(experts: Mapping[int, tuple[str, Leaves, _Homes]]) -> bool:
    """Whether experts are numbered from 0 without a gap and stored in the same form."""
    if any(index not in experts for index in range(len(experts))):
        return False
    _, first, homes = experts[0]
    shapes = list(map(_SHAPE, first.values()))
    # Equal leaves and dtypes have one `_Homes`, so only the shapes are left to compare.
    return all(
        found is homes and list(map(_SHAPE, leaves.values())) == shapes
        for _, leaves, found in experts.values()
    )


def group_tensors(
    tensors: Mapping[str, TensorLike],
    conventions: Sequence[Convention] = CONVENTIONS,
    renaming: Renaming | None = None,
    drop: Iterable[str] = (),
) -> Grouping:
    """Sort a checkpoint's tensors into groups.

    Experts of one projection that are packed alike become one group, whose path has `*` for their
    number, so that what follows is done once for all of them.

    Args:
        tensors: Name -> dtype and shape, sorted by name.
        conventions: The rows to try, in order.
        renaming: The user's rules.
        drop: Globs of tensors to leave aside, matched before and after renaming.

    Raises:
        PlanError: two tensors that normalise to one name.
    """
    stems = _by_stem(tensors)
    companions = _Companions(_hooks(conventions))
    homes = {stem: companions.of(stem, leaves, stems) for stem, leaves in stems.items()}
    outer = {stem for stem, found in homes.items() if found.outer}
    draft = _Draft(renaming or Renaming(), tuple(drop), outer)
    for stem, leaves in stems.items():
        found = homes[stem]
        if EXPERTS not in stem or not draft.keep_expert(stem, leaves, found):
            draft.add_stem(stem, leaves, found)
    draft.settle_experts()
    return Grouping(draft.groups(), tuple(draft.dropped), tuple(draft.ignored))


def _by_stem(tensors: Mapping[str, TensorLike]) -> dict[str, Leaves]:
    stems: dict[str, Leaves] = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        leaves = stems.get(stem)
        if leaves is None:
            leaves = stems[stem] = {}
        leaves[leaf] = tensor
    return stems


def _hooks(conventions: Sequence[Convention]) -> dict[str, list[_Hook]]:
    """Leaf -> the ways it may hang on a main tensor, in the order of the rows."""
    table: dict[str, list[_Hook]] = {}
    for row in conventions:
        bases = tuple(form.removeprefix("{}") for form in row.bases)
        for leaf, role in row.companions.items():
            beside = () if role == "scales" else row.scales
            table.setdefault(leaf, []).append(_Hook(row.name, role, bases, row.dtypes, beside))
    return table


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
