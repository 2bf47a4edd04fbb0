"""Packed experts under the names and shapes of the architecture's expert layers.

mlx-lm's `sanitize` stacks dense experts and, for many families, packed ones. It splits no packed
fused projection and knows nothing of a factor per expert, so packed experts are placed here, before
`sanitize` sees them; dense ones are left to it. Two kinds of places are tables: where an expert
layer may live below the block, and what producers call its projections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from mlxpipe.errors import Origin, PlanError
from mlxpipe.naming.groups import Group, Part, Run
from mlxpipe.naming.names import ANY_EXPERT, EXPERTS, parse_expert, rewrap

#: Where an architecture keeps the projection `{p}` of the block at `{b}`.
PLACES = (
    "{b}.switch_mlp.{p}",
    "{b}.experts.{p}",
    "{b}.experts.switch_glu.{p}",
    "{b}.experts.switch_mlp.{p}",
)

#: What stands between the block and the projection in those places, the longest first.
OWNERS = (".experts.switch_glu", ".experts.switch_mlp", ".switch_mlp", ".experts")

#: Mixtral's names of the projections.
PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

#: A fused projection -> its parts, in the order of their rows.
FUSED = {"gate_up_proj": ("gate_proj", "up_proj")}

#: What a stacked group's path has in the place of `.experts.` and a number.
STACKED = f"{EXPERTS}{ANY_EXPERT}."

#: What finds the module meant by a path: `PathIndex.find`.
Find = Callable[[str], str | None]

#: How many output features a group's weight has: producers' layouts differ in where they are.
Outputs = Callable[[Group], int]


def collapse_path(path: str) -> str:
    """The path with the expert's number replaced: `b.experts.7.up_proj` -> `b.experts.up_proj`."""
    name = parse_expert(path)
    return f"{name.block}{EXPERTS}{name.projection}" if name else path


def any_expert(path: str) -> str:
    """The path as that of a group of all experts: `b.experts.7.up_proj` -> `b.experts.*.up_proj`.

    It is unchanged where it names no single expert.
    """
    name = parse_expert(path)
    return path if name is None or name.index is None else f"{name.block}{STACKED}{name.projection}"


def expert_paths(path: str, count: int) -> tuple[str, ...]:
    """What the experts of a stacked layer would be called one by one; () where it cannot be told.

    `b.switch_mlp.up_proj` -> `b.experts.0.up_proj` and so on.
    """
    block, _, projection = path.rpartition(".")
    owner = next((each for each in OWNERS if block.endswith(each)), None)
    if owner is None:
        return ()
    stem = block[: -len(owner)]
    return tuple(f"{stem}{EXPERTS}{number}.{projection}" for number in range(count))


def targets(path: str, find: Find) -> tuple[str, ...]:
    """The modules that a collapsed expert path feeds: one, several for a fused one, or none."""
    name = parse_expert(path)
    if name is None:
        return ()
    projection = PROJECTIONS.get(name.projection, name.projection)
    whole = _locate(name.block, projection, find)
    if whole is not None:
        return (whole,)
    parts = [_locate(name.block, part, find) for part in FUSED.get(projection, ())]
    return tuple(part for part in parts if part is not None)


def _locate(block: str, projection: str, find: Find) -> str | None:
    candidates = (find(place.format(b=block, p=projection)) for place in PLACES)
    return next((path for path in candidates if path is not None), None)


def place_experts(groups: Mapping[str, Group], find: Find, outputs: Outputs) -> dict[str, Group]:
    """Groups with packed experts stacked, split and renamed to the architecture's modules.

    Args:
        groups: Path -> group, as `group_tensors` made them.
        find: Finds the module meant by a path.
        outputs: Counts the rows of a fused weight.

    Raises:
        PlanError: experts of one projection that differ in their tensors, or a gap in their
            numbers; two groups for one module.
    """
    placed: dict[str, Group] = {}
    members: dict[str, dict[int, Group]] = {}
    for path, group in groups.items():
        name = parse_expert(path) if group.packed else None
        if name is None:
            add_group(placed, group)
        elif STACKED in path:
            _place_stack(placed, group, find, outputs)
        elif name.index is None:
            _place(placed, group, find, outputs)
        else:
            members.setdefault(collapse_path(path), {})[name.index] = group
    for path, experts in members.items():
        if targets(path, find):
            _place(placed, stack(path, experts), find, outputs)
        else:
            placed.update((group.path, group) for group in experts.values())
    return placed


def _place_stack(placed: dict[str, Group], group: Group, find: Find, outputs: Outputs) -> None:
    """A group of experts stacked already, or each of them where nobody wants them stacked."""
    path = group.path.replace(STACKED, EXPERTS)
    if targets(path, find):
        _place(placed, replace(group, path=path), find, outputs)
        return
    for number in range(group.parts["weight"].shape[0]):
        parts = {
            role: Part(part.dtype, part.shape[1:], (part.names[number],))
            for role, part in group.parts.items()
        }
        add_group(
            placed,
            Group(group.path.replace(STACKED, f"{EXPERTS}{number}."), parts, group.convention),
        )


def _place(placed: dict[str, Group], group: Group, find: Find, outputs: Outputs) -> None:
    for part in split(group, targets(group.path, find), outputs):
        add_group(placed, part)


def add_group(placed: dict[str, Group], group: Group) -> None:
    """Put a group under its path.

    Raises:
        PlanError: `name-collision`, where another group is there.
    """
    earlier = placed.setdefault(group.path, group)
    if earlier is not group:
        raise PlanError(
            "name-collision",
            f"two groups of tensors feed '{group.path}'",
            origin=Origin(_first_name(group)),
            found=f"also '{_first_name(earlier)}'",
            help="drop one of them with naming.drop",
        )


def _first_name(group: Group) -> str:
    part = group.parts.get("weight") or next(iter(group.parts.values()))
    return part.names[0]


def stack(path: str, experts: Mapping[int, Group]) -> Group:
    """One group of E experts' groups, every part with a new first axis of length E.

    Raises:
        PlanError: a missing number, or experts that differ in roles, dtypes or shapes.
    """
    first = next(iter(experts.values()))
    missing = next((index for index in range(len(experts)) if index not in experts), None)
    if missing is not None:
        raise PlanError(
            "missing-expert",
            f"expert {missing} of '{path}' is missing",
            origin=Origin(first.parts["weight"].names[0]),
            found=f"{len(experts)} experts, the highest number being {max(experts)}",
            expected="experts numbered from 0 without a gap",
        )
    reference = experts[0]
    for index, group in experts.items():
        _require_alike(path, reference, index, group)
    ordered = [experts[index] for index in range(len(experts))]
    parts = {
        role: Part(
            part.dtype,
            (len(ordered), *part.shape),
            tuple(group.parts[role].names[0] for group in ordered),
            stacked=True,
        )
        for role, part in reference.parts.items()
    }
    return Group(path, parts, reference.convention)


def _require_alike(path: str, reference: Group, index: int, group: Group) -> None:
    ours, theirs = _form(reference), _form(group)
    if ours == theirs:
        return
    raise PlanError(
        "unequal-experts",
        f"the experts of '{path}' are not stored alike, and a stacked layer needs one scheme",
        origin=Origin(group.parts["weight"].names[0]),
        found=f"expert {index}: {_spell(theirs)}",
        expected=f"as expert 0: {_spell(ours)}",
        help="requantise the checkpoint with one scheme for all experts of a layer",
    )


def _form(group: Group) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {role: (part.dtype, part.shape) for role, part in group.parts.items()}


def _spell(form: Mapping[str, tuple[str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{role} {dtype} {list(shape)}" for role, (dtype, shape) in form.items())


def split(group: Group, modules: tuple[str, ...], outputs: Outputs) -> Iterator[Group]:
    """The group renamed to its module, or its rows divided evenly among several.

    It keeps the wrappers of the checkpoint's names: a `sanitize` may tell a whole namespace by
    them, and drop what is in another.

    Raises:
        PlanError: rows that cannot be divided evenly.
    """
    if not modules:
        yield group
    elif len(modules) == 1:
        yield replace(group, path=rewrap(modules[0], group.path), stored=group.path)
    else:
        size = _even_share(group, outputs(group), len(modules))
        for number, module in enumerate(modules):
            run = Run(number * size, (number + 1) * size)
            path = rewrap(module, group.path)
            yield replace(group, path=path, rows=(run,), stored=group.path)


def _even_share(group: Group, rows: int, count: int) -> int:
    if rows % count:
        name = group.parts["weight"].names[0]
        raise PlanError(
            "uneven-fusion",
            f"the {rows} rows of '{name}' do not divide into {count} projections",
            origin=Origin(name),
        )
    return rows // count
