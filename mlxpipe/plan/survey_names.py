"""What there is to decide where no architecture tells: from names, dtypes and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.naming.experts import PLACES, place_experts
from mlxpipe.naming.groups import Group
from mlxpipe.naming.names import EXPERTS, PathIndex, parse_expert
from mlxpipe.plan.survey import Subject, Survey, tied_head, unknown_packings
from mlxpipe.quant.forms import outputs
from mlxpipe.quant.layouts import (
    PACKED_ROLES,
    arrays_of,
    recognise,
)
from mlxpipe.quant.verify import FLOATS, Evidence


def survey_names(checkpoint: Checkpoint, groups: Mapping[str, Group]) -> Survey:
    """The modules that the tensors' names suggest, without asking any architecture."""
    placed = place_experts(groups, lambda path: path if _keeps_place(path) else None, outputs)
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
    others.update(tied_head(checkpoint, subjects) if "config.json" in checkpoint.files else {})
    problems = tuple(unknown_packings(placed))
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
