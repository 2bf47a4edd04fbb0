"""What there is to decide: the modules, their tensors and the names they go by.

With an architecture the modules are mlx-lm's, and its `sanitize` tells which tensors feed them.
Without one (`check`, which needs no MLX) the tensors' names suggest them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from math import prod
from typing import TYPE_CHECKING

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.tables import powers_of_two
from mlxpipe.errors import Diagnostic, Origin
from mlxpipe.naming.experts import expert_paths, place_experts
from mlxpipe.naming.groups import Group
from mlxpipe.naming.names import PathIndex, core
from mlxpipe.plan.apart import all_tensors, describe_dequantised, describe_left_out, left_out
from mlxpipe.plan.plan import Parameter
from mlxpipe.quant.forms import mlx_form, outputs, share
from mlxpipe.quant.layouts import (
    LAYOUTS,
    LOSSY,
    PACKED_ROLES,
    Layout,
    arrays_of,
    recognise,
)
from mlxpipe.quant.verify import Array, Evidence

if TYPE_CHECKING:
    from mlxpipe.architecture.skeleton import Module, Skeleton
    from mlxpipe.plan.binding import Binding

#: Leaves of a packed module's parameters that make its weight.
WEIGHT_LEAVES = ("weight", "scales", "biases", "global_scale", "multiplier", "permutation")


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
        unpacked: Columns of the module's weight where the stored one is dequantised while loading,
            because the architecture wants it transposed or computed with; 0 elsewhere.
        stored: Path of its group before it was placed, "" where that is `group`.
        experts: Paths in the checkpoint of the experts that it stacks, by number; where they are
            stacked there too, those that they would have.
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
    unpacked: int = 0
    stored: str = ""
    experts: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every path that a key may call it by."""
        one = self.tensors[0].rpartition(".")[0] if self.tensors and not self.experts else ""
        named = (self.path, self.group, self.stored, one)
        return tuple(dict.fromkeys(name for name in named if name))


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


@dataclass(frozen=True, slots=True)
class _Placed:
    """The groups as they go into `sanitize`.

    Attributes:
        groups: Path -> group, at the architecture's paths where they could be told.
        blocks: Groups whose blocks of FP8 stay packed -> whether that is exact.
        unpacked: Groups that are dense there -> their columns.
        dequantised: Those of them that are packed in the checkpoint.
        given: Path -> name -> array.
    """

    groups: Mapping[str, Group]
    blocks: Mapping[str, bool]
    unpacked: Mapping[str, int]
    dequantised: Collection[str]
    given: Mapping[str, Mapping[str, Array]]

    @property
    def arrays(self) -> dict[str, Array]:
        """Name -> array, of all groups."""
        return {name: array for arrays in self.given.values() for name, array in arrays.items()}

    @property
    def homes(self) -> dict[str, str]:
        """Name -> path of its group."""
        return {name: path for path, arrays in self.given.items() for name in arrays}


def survey_architecture(
    checkpoint: Checkpoint,
    groups: Mapping[str, Group],
    *,
    requantise: bool = False,
    vision: bool = False,
) -> Survey:
    """The modules of the library's architecture, with the tensors that feed them.

    Args:
        checkpoint: The open checkpoint.
        groups: Its tensors by path.
        requantise: Whether blocks of FP8 that mxfp8 cannot hold exactly are requantised to it.
        vision: Plan the whole vision-language model rather than the language model alone.
    """
    from mlxpipe.architecture.skeleton import build_skeleton

    skeleton = build_skeleton(checkpoint.config.data, vision=vision)
    left = {} if vision else left_out(checkpoint.config.data, skeleton.modules, groups)
    kept = {path: group for path, group in groups.items() if path not in left}
    placed = _place(checkpoint, skeleton, kept, requantise=requantise)
    homes = placed.homes
    binding, norm_notes = _bind(checkpoint, skeleton, placed)
    subjects = {
        path: _subject(module, binding, placed.groups, homes, placed.blocks, placed.unpacked)
        for path, module in skeleton.modules.items()
        if module.quantisable and f"{path}.weight" in binding.arrays
    }
    dequantised = [path for path in subjects if subjects[path].group in placed.dequantised]
    set_aside = (all_tensors(groups[path]) for path in left)
    unused = (_tensors(placed.groups[homes[name]], name) for name in binding.unloaded)
    return Survey(
        skeleton.name,
        subjects,
        PathIndex(subjects, _aliases(binding.parameters, homes, subjects)),
        {**tied_head(checkpoint, subjects), **_others(skeleton, binding, homes), **left},
        placed.groups,
        binding.parameters,
        (*unknown_packings(placed.groups), *binding.problems),
        (
            *describe_left_out(left, groups),
            *describe_dequantised(dequantised),
            *binding.notes,
            *norm_notes,
        ),
        tuple(chain(*set_aside, *unused)),
        skeleton,
    )


def _place(
    checkpoint: Checkpoint, skeleton: Skeleton, groups: Mapping[str, Group], *, requantise: bool
) -> _Placed:
    """Groups at the architecture's paths, in the form in which `sanitize` gets them."""
    from mlxpipe.plan.placing import place_strays

    # Packed layers are placed before `sanitize` sees them: it knows the originals' dense tensors.
    placing = place_strays(
        skeleton, place_experts(groups, PathIndex(skeleton.modules).find, outputs)
    )
    blocks = _packed_blocks(checkpoint, placing.groups, requantise=requantise)
    unpacked = {**_dense_blocks(placing.groups, blocks), **placing.unpacked}
    given = {
        path: {group.canonical(role): array for role, array in form.items()}
        for path, group in placing.groups.items()
        for form in (mlx_form(group, unpacked.get(path)),)
    }
    return _Placed(placing.groups, blocks, unpacked, placing.unpacked, given)


def _bind(
    checkpoint: Checkpoint, skeleton: Skeleton, placed: _Placed
) -> tuple[Binding, Iterable[Diagnostic]]:
    """What `sanitize` makes of the groups, norms shifted as their values say."""
    from mlxpipe.architecture.lineage import trace_sanitize
    from mlxpipe.plan.binding import bind
    from mlxpipe.plan.norms import settle_norms

    arrays = placed.arrays
    lineages = trace_sanitize(
        skeleton, {name: (array.dtype, array.shape) for name, array in arrays.items()}
    )
    binding = bind(skeleton, lineages, placed.groups, placed.homes)
    norms = settle_norms(skeleton.name, checkpoint, binding.parameters, arrays)
    parameters = {**binding.parameters, **norms.parameters}
    return replace(binding, parameters=parameters), norms.notes


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


def _dense_blocks(groups: Mapping[str, Group], packed: Mapping[str, bool]) -> dict[str, int]:
    """Groups of FP8 in blocks that become dense weights -> their columns."""
    return {
        path: group.parts["weight"].shape[-1]
        for path, group in groups.items()
        if path not in packed and (layout := recognise(group)) is not None and layout.grade == LOSSY
    }


def _tensors(group: Group, canonical: str) -> tuple[str, ...]:
    """The checkpoint's tensors behind a canonical name of a group."""
    named = {group.canonical(role): group.names(role) for role in group.parts}
    return named.get(canonical, ())


def unknown_packings(groups: Mapping[str, Group]) -> Iterator[Diagnostic]:
    """Packed groups whose arrays are of no known layout."""
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
    unpacked: Mapping[str, int],
) -> Subject:
    path, arrays = module.path, binding.arrays
    group = groups[homes[binding.parameters[f"{path}.weight"].inputs[0]]]
    layout = recognise(group)
    roles = {role: arrays.get(f"{path}.{role}") for role in ("weight", "scales", "biases")}
    if layout is not None and (layout.grade == LOSSY or group.path in unpacked):
        roles = {"scales": None, "biases": None, **layout.amounts_to(arrays_of(group))}
    weight = roles["weight"]
    assert weight is not None
    names = [f"{path}.{leaf}" for leaf in WEIGHT_LEAVES if f"{path}.{leaf}" in binding.parameters]
    own = (tensor for name in names for tensor in binding.parameters[name].tensors)
    own_form = layout is None or (layout.name == "mlx" and group.path not in unpacked)
    packed = frozenset() if own_form else PACKED_ROLES
    foreign = [role for role in group.parts if role in packed]
    return Subject(
        path,
        module.kind.value,
        Evidence(
            weight, roles["scales"], roles["biases"], unpacked.get(group.path, module.weight[-1])
        ),
        tuple(dict.fromkeys((*own, *(name for role in foreign for name in group.names(role))))),
        prod(module.weight),
        round(_fed(module, group, unpacked) * _stored_bytes(group, foreign))
        or sum(arrays[name].nbytes for name in names),
        layout,
        group.path,
        frozenset(group.parts),
        blocks.get(group.path),
        unpacked=module.weight[-1] if group.path in unpacked else 0,
        stored=group.stored,
        experts=_experts(module, group) if module.kind.value == "experts" else (),
    )


def _experts(module: Module, group: Group) -> tuple[str, ...]:
    count, part = module.weight[0], group.parts.get("weight")
    if part is not None and part.stacked and len(part.names) == count:
        return tuple(name.rpartition(".")[0] for name in part.names)
    return expert_paths(group.stored or group.path, count) or expert_paths(module.path, count)


def _fed(module: Module, group: Group, unpacked: Mapping[str, int]) -> float:
    """Which part of a group a module takes, where the group is dequantised for several."""
    width = unpacked.get(group.path)
    if not width:
        return 1.0
    return prod(module.weight) / prod(mlx_form(group, width)["weight"].shape)


def _stored_bytes(group: Group, roles: Iterable[str]) -> int:
    """Bytes of the producer's tensors that a group takes."""
    listed = list(roles)
    own = sum(Array(group.parts[role].dtype, group.parts[role].shape).nbytes for role in listed)
    return round(own * share(group)) + sum(_stored_bytes(other, listed) for other in group.others)


def _aliases(
    parameters: Mapping[str, Parameter], homes: Mapping[str, str], subjects: Iterable[str]
) -> dict[str, str]:
    """Paths of the checkpoint -> the module their weight becomes."""
    aliases: dict[str, str] = {}
    for path in subjects:
        for name in parameters[f"{path}.weight"].inputs:
            aliases.setdefault(homes[name], path)
    return aliases


def tied_head(checkpoint: Checkpoint, subjects: Iterable[str]) -> dict[str, str]:
    """`lm_head`, where the output projection is the embedding: an override of it is dead."""
    config = checkpoint.config.data
    text = config.get("text_config")
    tied = config.get("tie_word_embeddings") or (
        isinstance(text, dict) and text.get("tie_word_embeddings")
    )
    absent = all(core(path) != "lm_head" for path in subjects)
    return {"lm_head": "tied to the embedding"} if tied or absent else {}
