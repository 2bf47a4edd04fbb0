"""What there is to decide: the modules, their tensors and the names they go by.

With an architecture the modules are mlx-lm's, and its `sanitize` tells which tensors feed them.
Without one (`check`, which needs no MLX) the tensors' names suggest them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.tables import powers_of_two
from mlxpipe.errors import Diagnostic, Origin
from mlxpipe.naming.experts import PLACES, place_experts
from mlxpipe.naming.groups import Group
from mlxpipe.naming.names import EXPERTS, PathIndex, core, parse_expert
from mlxpipe.plan.plan import Parameter
from mlxpipe.quant.layouts import (
    LAYOUTS,
    LOSSY,
    PACKED_ROLES,
    Layout,
    arrays_of,
    recognise,
)
from mlxpipe.quant.verify import FLOATS, Array, Evidence

if TYPE_CHECKING:
    from mlxpipe.architecture.skeleton import Module, Skeleton
    from mlxpipe.plan.binding import Binding

#: Leaves of a packed module's parameters that make its weight.
WEIGHT_LEAVES = ("weight", "scales", "biases", "global_scale", "multiplier")


@dataclass(frozen=True, slots=True)
class Subject:
    """A module to decide, before anybody's claim is heard.

    Attributes:
        path: Module path.
        kind: As in `PlannedModule`.
        evidence: Its tensors, in MLX's terms.
        tensors: Their names in the checkpoint.
        weights: How many weights it has; 0 where unknown.
        nbytes: Bytes of its weight and companions.
        layout: How its producer packs it, None for a dense weight.
        group: Path of its group in the checkpoint.
        roles: The roles its group has.
        packed_blocks: Where it has blocks of FP8: True if mxfp8 holds them exactly, False if they
            are requantised to it, None if they become a dense weight.
    """

    path: str
    kind: str
    evidence: Evidence
    tensors: tuple[str, ...]
    weights: int
    nbytes: int
    layout: Layout | None = None
    group: str = ""
    roles: frozenset[str] = frozenset()
    packed_blocks: bool | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Every path that a key may call it by."""
        stored = self.tensors[0].rpartition(".")[0] if self.tensors else ""
        return tuple(dict.fromkeys(name for name in (self.path, self.group, stored) if name))


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is to decide.

    Attributes:
        architecture: mlx-lm's module, None without one.
        subjects: The modules, by path.
        index: Finds the module meant by a path.
        others: Paths that exist without a scheme to decide -> what they are.
        groups: The tensors' groups, placed.
        parameters: Where each parameter comes from.
        problems: What does not fit.
        notes: What was left over.
        unloaded: Tensors that nothing uses.
        skeleton: The architecture, None without one.
    """

    architecture: str | None
    subjects: Mapping[str, Subject]
    index: PathIndex
    others: Mapping[str, str]
    groups: Mapping[str, Group]
    parameters: Mapping[str, Parameter]
    problems: tuple[Diagnostic, ...] = ()
    notes: tuple[Diagnostic, ...] = ()
    unloaded: tuple[str, ...] = ()
    skeleton: Skeleton | None = None


def survey_architecture(
    checkpoint: Checkpoint, groups: Mapping[str, Group], *, requantise: bool = False
) -> Survey:
    """The modules of mlx-lm's architecture, with the tensors that feed them.

    Args:
        checkpoint: The open checkpoint.
        groups: Its tensors by path.
        requantise: Whether blocks of FP8 that mxfp8 cannot hold exactly are requantised to it.
    """
    from mlxpipe.architecture.lineage import trace_sanitize
    from mlxpipe.architecture.skeleton import build_skeleton
    from mlxpipe.plan.binding import bind

    skeleton = build_skeleton(checkpoint.config.data)
    placed = place_experts(groups, PathIndex(skeleton.modules).find)
    blocks = _packed_blocks(checkpoint, placed, requantise=requantise)
    given = {
        path: _canonical(group, packed_blocks=path in blocks) for path, group in placed.items()
    }
    homes = {name: path for path, arrays in given.items() for name in arrays}
    lineages = trace_sanitize(
        skeleton.model,
        {name: (a.dtype, a.shape) for arrays in given.values() for name, a in arrays.items()},
    )
    binding = bind(skeleton, lineages, placed, homes)
    subjects = {
        path: _subject(module, binding, placed, homes, blocks)
        for path, module in skeleton.modules.items()
        if module.quantisable and f"{path}.weight" in binding.arrays
    }
    return Survey(
        skeleton.name,
        subjects,
        PathIndex(subjects, _aliases(binding.parameters, homes, subjects)),
        {**_others(skeleton, binding, homes), **_tied_head(checkpoint, subjects)},
        placed,
        binding.parameters,
        (*_unknown_packings(placed), *binding.problems),
        binding.notes,
        tuple(name for each in binding.unloaded for name in _tensors(placed[homes[each]], each)),
        skeleton,
    )


def _others(skeleton: Skeleton, binding: Binding, homes: Mapping[str, str]) -> dict[str, str]:
    """Paths that exist and have no scheme to decide -> what they are."""
    plain = {
        path: f"a {module.class_name}, which cannot be quantised"
        for path, module in skeleton.modules.items()
        if not module.quantisable
    }
    return plain | {homes[name]: "not loaded by this architecture" for name in binding.unloaded}


def _packed_blocks(
    checkpoint: Checkpoint, groups: Mapping[str, Group], *, requantise: bool
) -> dict[str, bool]:
    """Groups whose blocks of FP8 stay packed, as mxfp8 -> whether that holds them exactly.

    It does where all scales are powers of two; others are packed only where the spec wants it.
    """
    packed = {}
    for path, group in groups.items():
        layout = recognise(group)
        if layout is not None and layout.grade == LOSSY:
            exact = bool(powers_of_two(checkpoint, group.parts["scales"].names))
            if exact or requantise:
                packed[path] = exact
    return packed


def _canonical(group: Group, *, packed_blocks: bool) -> dict[str, Array]:
    """What goes to the architecture for a group: name -> dtype and shape."""
    arrays = arrays_of(group)
    layout = recognise(group)
    if layout is None or layout.name == "mlx":
        return {group.canonical(role): array for role, array in arrays.items()}
    amounts = layout.amounts_to(arrays)
    if layout.grade == LOSSY and not packed_blocks:
        amounts = {"weight": Array("BF16", arrays["weight"].shape)}
    rest = {role: array for role, array in arrays.items() if role not in PACKED_ROLES}
    return {group.canonical(role): array for role, array in {**amounts, **rest}.items()}


def _tensors(group: Group, canonical: str) -> tuple[str, ...]:
    """The checkpoint's tensors behind a canonical name of a group."""
    named = {group.canonical(role): part.names for role, part in group.parts.items()}
    return named.get(canonical, ())


def _unknown_packings(groups: Mapping[str, Group]) -> Iterator[Diagnostic]:
    for group in groups.values():
        if group.packed and recognise(group) is None:
            arrays = ", ".join(f"{role} {array}" for role, array in arrays_of(group).items())
            yield Diagnostic(
                "unknown-packing",
                f"the tensors of '{group.path}' are packed in no way that is known",
                origin=Origin(group.parts["weight"].names[0]),
                module=group.path,
                found=arrays,
                expected="one of the layouts: " + ", ".join(row.name for row in LAYOUTS),
            )


def _subject(
    module: Module,
    binding: Binding,
    groups: Mapping[str, Group],
    homes: Mapping[str, str],
    blocks: Mapping[str, bool],
) -> Subject:
    path, arrays = module.path, binding.arrays
    group = groups[homes[binding.parameters[f"{path}.weight"].inputs[0]]]
    layout = recognise(group)
    roles = {role: arrays.get(f"{path}.{role}") for role in ("weight", "scales", "biases")}
    if layout is not None and layout.grade == LOSSY:
        roles = {"biases": None, **layout.amounts_to(arrays_of(group))}
    weight = roles["weight"]
    assert weight is not None
    names = [f"{path}.{leaf}" for leaf in WEIGHT_LEAVES if f"{path}.{leaf}" in binding.parameters]
    own = (tensor for name in names for tensor in binding.parameters[name].tensors)
    packed = PACKED_ROLES if layout is not None and layout.name != "mlx" else frozenset()
    foreign = [part for role, part in group.parts.items() if role in packed]
    stored = [Array(part.dtype, part.shape) for part in foreign] or [arrays[name] for name in names]
    return Subject(
        path,
        module.kind.value,
        Evidence(weight, roles["scales"], roles["biases"], module.weight[-1]),
        tuple(dict.fromkeys((*own, *(name for part in foreign for name in part.names)))),
        prod(module.weight),
        sum(array.nbytes for array in stored),
        layout,
        group.path,
        frozenset(group.parts),
        blocks.get(group.path),
    )


def _aliases(
    parameters: Mapping[str, Parameter], homes: Mapping[str, str], subjects: Iterable[str]
) -> dict[str, str]:
    """Paths of the checkpoint -> the module their weight becomes."""
    aliases: dict[str, str] = {}
    for path in subjects:
        for name in parameters[f"{path}.weight"].inputs:
            aliases.setdefault(homes[name], path)
    return aliases


def _tied_head(checkpoint: Checkpoint, subjects: Iterable[str]) -> dict[str, str]:
    """`lm_head`, where the output projection is the embedding: an override of it is dead."""
    config = checkpoint.config.data
    text = config.get("text_config")
    tied = config.get("tie_word_embeddings") or (
        isinstance(text, dict) and text.get("tie_word_embeddings")
    )
    absent = all(core(path) != "lm_head" for path in subjects)
    return {"lm_head": "tied to the embedding"} if tied or absent else {}


def survey_names(checkpoint: Checkpoint, groups: Mapping[str, Group]) -> Survey:
    """The modules that the tensors' names suggest, without asking any architecture."""
    placed = place_experts(groups, lambda path: path if _keeps_place(path) else None)
    subjects = {}
    others = {}
    for path, group in placed.items():
        weight = group.parts.get("weight")
        if weight is None or not (group.packed or _looks_linear(weight.dtype, weight.shape)):
            others[path] = "no weight that could be quantised"
            continue
        subjects[path] = _named_subject(path, group)
    aliases = {
        place.format(b=name.block, p=name.projection): path
        for path in subjects
        if EXPERTS in path and (name := parse_expert(path)) is not None and name.index is None
        for place in PLACES
    }
    others.update(_tied_head(checkpoint, subjects) if "config.json" in checkpoint.files else {})
    problems = tuple(_unknown_packings(placed))
    return Survey(None, subjects, PathIndex(subjects, aliases), others, placed, {}, problems)


def _keeps_place(path: str) -> bool:
    name = parse_expert(path)
    return name is not None and "." not in name.projection


def _looks_linear(dtype: str, shape: tuple[int, ...]) -> bool:
    return dtype in FLOATS and len(shape) in (2, 3)


def _named_subject(path: str, group: Group) -> Subject:
    layout = recognise(group)
    arrays = arrays_of(group)
    known = layout.amounts_to(arrays) if layout else arrays
    evidence = Evidence(known["weight"], known.get("scales"), known.get("biases"))
    names = tuple(
        name for role, part in group.parts.items() if role in PACKED_ROLES for name in part.names
    )
    weights = prod(arrays["weight"].shape) if evidence.dense else 0
    roles = frozenset(group.parts)
    nbytes = sum(arrays[role].nbytes for role in PACKED_ROLES & arrays.keys())
    return Subject(path, "weight", evidence, names, weights, nbytes, layout, path, roles)
