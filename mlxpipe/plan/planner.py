"""How a plan is made, step by step, from headers and JSON alone.

The order: group the tensors, place packed experts, ask the architecture, trace its renaming, bind
names to parameters, gather claims, match them, judge each module, and add it all up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.source import open_source
from mlxpipe.errors import Diagnostic
from mlxpipe.naming import conventions
from mlxpipe.naming.experts import EXPERTS, PLACES, parse_expert, place_experts
from mlxpipe.naming.groups import Group, group_tensors
from mlxpipe.naming.names import PathIndex, Renaming, Rule, core
from mlxpipe.plan.matching import (
    Matched,
    Namespace,
    allowed,
    describe_unmatched,
    match_claims,
)
from mlxpipe.plan.plan import Parameter, Plan, PlannedModule, describe_loser
from mlxpipe.quant.claims import Claim, Reach, Reading
from mlxpipe.quant.gather import gather
from mlxpipe.quant.merge import Fate, Verdict, judge
from mlxpipe.quant.verify import FLOATS, Array, Evidence
from mlxpipe.spec import LoadedSpec

if TYPE_CHECKING:
    from mlxpipe.plan.binding import Binding

EXACT = "exact"


@dataclass(frozen=True, slots=True)
class Subject:
    """A module to decide, before anybody's claim is heard.

    Attributes:
        path: Module path.
        kind: As in `PlannedModule`.
        evidence: Its tensors.
        tensors: Their names in the checkpoint.
        weights: How many weights it has; 0 where unknown.
    """

    path: str
    kind: str
    evidence: Evidence
    tensors: tuple[str, ...]
    weights: int


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


def make_plan(loaded: LoadedSpec, *, architecture: bool = True) -> Plan:
    """Plan a spec: open its checkpoint and decide every module.

    Args:
        loaded: The spec.
        architecture: Ask mlx-lm's model class what it expects. Without it (`check`) MLX is not
            imported, and the arithmetic knows no `in_features`.

    Returns:
        The plan, sound or not: `Plan.require_sound` raises its problems.

    Raises:
        UsageError, SourceError: the spec's files or the checkpoint cannot be read.
        PlanError: names that collide, experts that differ, an unknown architecture.
    """
    return plan_checkpoint(loaded, open_source(loaded), architecture=architecture)


def plan_checkpoint(
    loaded: LoadedSpec, checkpoint: Checkpoint, *, architecture: bool = True
) -> Plan:
    """As `make_plan`, for a checkpoint that is open already."""
    naming = loaded.spec.naming
    renaming = Renaming(tuple(Rule(rule.match, rule.replace) for rule in naming.rules))
    grouping = group_tensors(
        checkpoint.tensors, conventions.select(naming.conventions), renaming, naming.drop
    )
    survey = (
        _survey_architecture(checkpoint, grouping.groups)
        if architecture
        else _survey_names(checkpoint, grouping.groups)
    )
    reading = gather(loaded, checkpoint, survey.groups)
    namespace = Namespace(tuple(survey.subjects), survey.index, renaming, survey.others)
    matched = match_claims(reading.claims, namespace)
    modules = _judge_all(survey.subjects, matched, checkpoint, loaded)
    return _assemble(loaded, checkpoint, survey, reading, matched, modules, grouping.dropped)


def _judge_all(
    subjects: Mapping[str, Subject],
    matched: Matched,
    checkpoint: Checkpoint,
    loaded: LoadedSpec,
) -> dict[str, PlannedModule]:
    precedence = loaded.spec.quantization.precedence
    modules = {}
    for path, subject in subjects.items():
        verdict = judge(path, matched.by_module.get(path, ()), subject.evidence, precedence)
        nbytes = sum(checkpoint.tensors[name].nbytes for name in subject.tensors)
        modules[path] = PlannedModule(
            path, subject.kind, verdict, EXACT, subject.tensors, nbytes, subject.weights
        )
    return modules


# --- what there is to decide -----------------------------------------------------------------


def _survey_architecture(checkpoint: Checkpoint, groups: Mapping[str, Group]) -> Survey:
    """The modules of mlx-lm's architecture, with the tensors that feed them."""
    from mlxpipe.architecture.lineage import trace_sanitize
    from mlxpipe.architecture.skeleton import build_skeleton
    from mlxpipe.plan.binding import bind

    skeleton = build_skeleton(checkpoint.config.data)
    placed = place_experts(groups, PathIndex(skeleton.modules).find)
    canonical = {
        group.canonical(role): (part.dtype, part.shape)
        for group in placed.values()
        for role, part in group.parts.items()
    }
    binding = bind(skeleton, trace_sanitize(skeleton.model, canonical), placed)
    subjects = {
        path: _subject(path, module.kind.value, module.weight, binding)
        for path, module in skeleton.modules.items()
        if module.quantisable and f"{path}.weight" in binding.arrays
    }
    others = {
        path: f"a {module.class_name}, which cannot be quantised"
        for path, module in skeleton.modules.items()
        if not module.quantisable
    }
    homes = {
        group.canonical(role): path
        for path, group in placed.items()
        for role in group.parts
    }
    left_out = {homes[name] for name in binding.unloaded}
    others.update((path, "not loaded by this architecture") for path in left_out)
    others.update(_tied_head(checkpoint, subjects))
    unloaded = tuple(
        name
        for canonical_name in binding.unloaded
        for name in placed[homes[canonical_name]].parts[
            canonical_name_role(placed[homes[canonical_name]], canonical_name)
        ].names
    )
    return Survey(
        skeleton.name,
        subjects,
        PathIndex(subjects, _aliases(binding.parameters, homes, subjects)),
        others,
        placed,
        binding.parameters,
        binding.problems,
        binding.notes,
        unloaded,
    )


def canonical_name_role(group: Group, name: str) -> str:
    """The role that a canonical name has in its group."""
    return next(role for role in group.parts if group.canonical(role) == name)


def _subject(path: str, kind: str, weight: tuple[int, ...], binding: Binding) -> Subject:
    leaves = ("weight", "scales", "biases", "global_scale", "multiplier")
    names = [f"{path}.{leaf}" for leaf in leaves if f"{path}.{leaf}" in binding.parameters]
    arrays = binding.arrays
    evidence = Evidence(
        arrays[f"{path}.weight"],
        arrays.get(f"{path}.scales"),
        arrays.get(f"{path}.biases"),
        weight[-1],
    )
    tensors = tuple(t for name in names for t in binding.parameters[name].tensors)
    return Subject(path, kind, evidence, tensors, prod(weight))


def _aliases(
    parameters: Mapping[str, Parameter], homes: Mapping[str, str], subjects: Iterable[str]
) -> dict[str, str]:
    """Paths of the checkpoint -> the module their weight becomes."""
    aliases = {}
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


def _survey_names(checkpoint: Checkpoint, groups: Mapping[str, Group]) -> Survey:
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
    return Survey(None, subjects, PathIndex(subjects, aliases), others, placed, {})


def _keeps_place(path: str) -> bool:
    name = parse_expert(path)
    return name is not None and "." not in name.projection


def _looks_linear(dtype: str, shape: tuple[int, ...]) -> bool:
    return dtype in FLOATS and len(shape) in (2, 3)


def _named_subject(path: str, group: Group) -> Subject:
    arrays = {
        role: Array(group.parts[role].dtype, group.parts[role].shape)
        for role in ("weight", "scales", "biases")
        if role in group.parts
    }
    evidence = Evidence(arrays["weight"], arrays.get("scales"), arrays.get("biases"))
    names = tuple(name for role in arrays for name in group.parts[role].names)
    weights = prod(arrays["weight"].shape) if evidence.dense else 0
    return Subject(path, "weight", evidence, names, weights)


# --- adding it up ----------------------------------------------------------------------------


def _assemble(
    loaded: LoadedSpec,
    checkpoint: Checkpoint,
    survey: Survey,
    reading: Reading,
    matched: Matched,
    modules: Mapping[str, PlannedModule],
    dropped: tuple[str, ...],
) -> Plan:
    rules = loaded.spec.quantization
    conflicts = (*reading.conflicts, *_losers(modules, Fate.CONFLICT))
    unmatched = _unmatched(loaded, survey, matched)
    verdicts = [module.verdict for module in modules.values()]
    problems = [
        *(finding for finding in reading.findings if finding.severity == "error"),
        *survey.problems,
        *(verdict.problem for verdict in verdicts if verdict.problem is not None),
        *(_not_quantisable(claim, what) for claim, what in matched.elsewhere if claim.scheme
          and "cannot be quantised" in what and claim.reach is Reach.PATH),
    ]
    notes = [
        *(finding for finding in reading.findings if finding.severity != "error"),
        *survey.notes,
        *(warning for verdict in verdicts for warning in verdict.warnings),
        *(_dead(claim, what) for claim, what in matched.elsewhere if "cannot" not in what),
    ]
    if rules.on_conflict == "error":
        problems += conflicts
    if rules.on_unmatched == "error":
        problems += unmatched
    unloaded = (*dropped, *survey.unloaded)
    lost = set(unloaded)
    return Plan(
        name=loaded.name,
        source=checkpoint.label,
        architecture=survey.architecture,
        precedence=tuple(rules.precedence),
        modules=modules,
        parameters=survey.parameters,
        groups=survey.groups,
        problems=tuple(replace(problem, severity="error") for problem in problems),
        conflicts=() if rules.on_conflict == "ignore" else conflicts,
        stale=_losers(modules, Fate.STALE),
        unmatched=() if rules.on_unmatched == "ignore" else unmatched,
        notes=tuple(notes),
        unloaded=unloaded,
        total_tensors=len(checkpoint.tensors),
        nbytes=sum(t.nbytes for name, t in checkpoint.tensors.items() if name not in lost),
    )


def _losers(modules: Mapping[str, PlannedModule], fate: Fate) -> tuple[Diagnostic, ...]:
    return tuple(
        describe_loser(path, module.verdict, judged)
        for path, module in modules.items()
        for judged in module.verdict.with_fate(fate)
        if module.verdict.problem is None
    )


def _unmatched(loaded: LoadedSpec, survey: Survey, matched: Matched) -> tuple[Diagnostic, ...]:
    rules = loaded.spec.quantization
    renaming = Renaming(tuple(Rule(each.match, each.replace) for each in loaded.spec.naming.rules))
    known = [*survey.subjects, *survey.others]
    return tuple(
        replace(
            describe_unmatched(claim, known),
            severity="error" if rules.on_unmatched == "error" else "warning",
        )
        for claim in matched.unmatched
        if not allowed(claim, (*rules.allow_unmatched, *loaded.spec.naming.drop), renaming.key)
    )


def _not_quantisable(claim: Claim, what: str) -> Diagnostic:
    return Diagnostic(
        "not-quantisable",
        f"{claim.source} declares '{claim.pattern}' {claim}, but it is {what}",
        origin=claim.origin,
        module=claim.pattern,
        help="remove the entry, or override it with dense: true",
    )


def _dead(claim: Claim, what: str) -> Diagnostic:
    return Diagnostic(
        "dead-override",
        f"'{claim.pattern}' ({claim.source}: {claim}) has no effect: {what}",
        origin=claim.origin,
        module=claim.pattern,
        severity="note",
    )


def open_verdicts(plan: Plan) -> list[Verdict]:
    """The modules that nothing decided, for want of an architecture."""
    return [module.verdict for module in plan.modules.values() if module.verdict.open]
