"""How a plan is made, step by step, from headers and JSON alone.

The order: group the tensors, survey what there is to decide, gather claims, match them, judge each
module, and add it all up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.files import collector_paused
from mlxpipe.checkpoint.source import open_source
from mlxpipe.errors import Diagnostic, MlxpipeError, Origin
from mlxpipe.naming import conventions
from mlxpipe.naming.groups import Group, Grouping, group_tensors
from mlxpipe.naming.names import Renaming, Rule, strip_leaf
from mlxpipe.plan.matching import (
    Matched,
    Namespace,
    allowed,
    describe_unmatched,
    match_claims,
)
from mlxpipe.plan.places import located, locating
from mlxpipe.plan.plan import Plan, PlannedModule, describe_loser
from mlxpipe.plan.recipe import Applied, apply_recipe
from mlxpipe.plan.survey import Subject, Survey, survey_architecture
from mlxpipe.plan.survey_names import survey_names
from mlxpipe.plan.variants import settle
from mlxpipe.quant.claims import Claim, Reach, Reading
from mlxpipe.quant.dialects.fields import CACHE_PRECISION, CACHE_SCALE
from mlxpipe.quant.gather import gather
from mlxpipe.quant.layouts import EXACT, LOSSY, landing
from mlxpipe.quant.merge import Fate, Verdict, judge
from mlxpipe.quant.modes import Scheme
from mlxpipe.quant.verify import arithmetic
from mlxpipe.spec import LoadedSpec

#: Why there may be no model class to ask; the headers can be planned all the same.
NO_ARCHITECTURE = frozenset({"unknown-architecture", "broken-architecture"})


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
        PlanError: names that collide, experts that differ.
    """
    with collector_paused():
        return plan_checkpoint(loaded, open_source(loaded), architecture=architecture)


def plan_checkpoint(
    loaded: LoadedSpec,
    checkpoint: Checkpoint,
    *,
    architecture: bool = True,
    vision: bool | None = None,
) -> Plan:
    """As `make_plan`, for a checkpoint that is open already.

    `vision` plans the whole vision-language model, or the language model alone; None: as the
    spec's tasks need it.
    """
    vision = loaded.spec.vision if vision is None else vision
    naming = loaded.spec.naming
    renaming = Renaming(tuple(Rule(rule.match, rule.replace) for rule in naming.rules))
    with locating(checkpoint):
        grouping = group_tensors(
            checkpoint.tensors, conventions.select(naming.conventions), renaming, naming.drop
        )
        survey, unverified = _survey(
            loaded, checkpoint, grouping.groups, architecture=architecture, vision=vision
        )
    reading = gather(loaded, checkpoint, survey.groups)
    names = {path: subject.names for path, subject in survey.subjects.items()}
    experts = {path: each.experts for path, each in survey.subjects.items() if each.experts}
    namespace = Namespace(names, survey.index, renaming, survey.others, experts)
    matched = match_claims(reading.claims, namespace, loaded.spec.quantization.precedence)
    modules = _judge_all(survey, matched, loaded, checkpoint)
    applied = apply_recipe(loaded, survey, namespace, modules)
    plan = _assemble(loaded, checkpoint, survey, reading, matched, applied, grouping)
    notes = (*_told(unverified), *plan.notes)
    return replace(plan, unverified=unverified, notes=notes, vision=vision)


def _survey(
    loaded: LoadedSpec,
    checkpoint: Checkpoint,
    groups: Mapping[str, Group],
    *,
    architecture: bool,
    vision: bool,
) -> tuple[Survey, tuple[Diagnostic, ...]]:
    """What there is to decide, and why no architecture could be asked, if it was wanted."""
    if not architecture:
        return survey_names(checkpoint, groups), ()
    try:
        requantise = loaded.spec.quantization.float8_blocks == "mxfp8"
        survey = survey_architecture(checkpoint, groups, requantise=requantise, vision=vision)
        return survey, ()
    except MlxpipeError as error:
        if error.diagnostics[0].code not in NO_ARCHITECTURE:
            raise
        return survey_names(checkpoint, groups), tuple(error.diagnostics)


def _told(unverified: Iterable[Diagnostic]) -> Iterator[Diagnostic]:
    """Why a plan could not be verified and what that leaves open, as warnings."""
    for reason in unverified:
        yield replace(reason, severity="warning")
        yield Diagnostic(
            "unverified",
            "planned from the headers alone: schemes are what the checkpoint declares, checked "
            "against shapes and dtypes",
            expected="an architecture, which would say the inputs of each module, the tensors that "
            "must be there and those that are renamed, stacked or left out",
            help="such a plan can be read, explained and compared, not run",
            severity="warning",
        )


def _judge_all(
    survey: Survey, matched: Matched, loaded: LoadedSpec, checkpoint: Checkpoint
) -> dict[str, PlannedModule]:
    precedence = loaded.spec.quantization.precedence
    modules = {}
    for path, subject in survey.subjects.items():
        verdict = judge(path, matched.by_module.get(path, ()), subject.evidence, precedence)
        variant, problem = settle(subject, verdict, survey.groups, checkpoint)
        modules[path] = _planned(subject, verdict, variant, problem)
    return modules


def _planned(
    subject: Subject, verdict: Verdict, variant: str, misstored: Diagnostic | None
) -> PlannedModule:
    layout = subject.layout
    landed, grade = _landing(subject, verdict)
    problem = verdict.problem or _unlandable(subject, verdict, landed, grade) or misstored
    return PlannedModule(
        subject.path,
        subject.kind,
        replace(verdict, problem=problem and _placed(problem, subject)),
        layout.name if layout else "",
        landed,
        variant,
        subject.group,
        grade,
        subject.tensors,
        subject.nbytes,
        subject.weights or _count_weights(subject, verdict.scheme),
    )


def _placed(problem: Diagnostic, subject: Subject) -> Diagnostic:
    """The problem, at the module's first tensor where no claim is to blame."""
    if problem.origin is not None or not subject.tensors:
        return problem
    return replace(problem, origin=Origin(subject.tensors[0]))


def _count_weights(subject: Subject, scheme: Scheme | None) -> int:
    """How many codes the packed weight holds; without an architecture only the scheme tells."""
    return 8 * subject.evidence.weight.nbytes // scheme.bits if scheme else 0


def _bytes(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    found = map(checkpoint.tensors.__getitem__, names)
    return sum([tensor[5] - tensor[4] for tensor in found])  # stop - start, 370,000 times


def _landing(subject: Subject, verdict: Verdict) -> tuple[Scheme | None, str]:
    """What MLX computes, and how faithful that is."""
    scheme, layout = verdict.scheme, subject.layout
    if scheme is None:
        return None, EXACT
    if layout is not None and layout.grade == LOSSY:
        packed = subject.packed_blocks
        return (None if packed is None else scheme), (EXACT if packed else LOSSY)
    if subject.unpacked:
        return None, LOSSY
    width = subject.evidence.in_features
    landed = scheme if width is None else landing(scheme, width)
    # Without a layout of ours it is the architecture's own renaming that made MLX's arrays of it.
    return landed, layout.grade if layout else EXACT


def _unlandable(
    subject: Subject, verdict: Verdict, landed: Scheme | None, grade: str
) -> Diagnostic | None:
    if verdict.scheme is None or landed is not None or grade == LOSSY:
        return None
    return Diagnostic(
        "no-kernel",
        f"MLX has no kernel for '{subject.path}', which is {verdict.scheme}",
        origin=verdict.origin,
        module=subject.path,
        found="\n".join(arithmetic(subject.evidence)),
        expected="affine groups that 32 divides, or a mode of MLX",
        help="requantise the checkpoint with groups of 32, 64 or 128",
    )


# --- adding it up ----------------------------------------------------------------------------


def _assemble(
    loaded: LoadedSpec,
    checkpoint: Checkpoint,
    survey: Survey,
    reading: Reading,
    matched: Matched,
    applied: Applied,
    grouping: Grouping,
) -> Plan:
    rules, modules = loaded.spec.quantization, applied.modules
    conflicts = (*reading.conflicts, *_losers(modules, Fate.CONFLICT))
    unmatched = (*_unmatched(loaded, survey, matched), *applied.unmatched)
    findings = [
        _with_scales(_excused(finding, survey, modules), survey) for finding in reading.findings
    ]
    problems = [
        *_problems(findings, survey, matched, modules),
        *applied.problems,
        *(conflicts if rules.on_conflict == "error" else ()),
        *(unmatched if rules.on_unmatched == "error" else ()),
    ]
    unloaded = (*grouping.dropped, *survey.unloaded)
    lost = {*unloaded, *grouping.ignored}
    return Plan(
        name=loaded.name,
        source=checkpoint.label,
        architecture=survey.architecture,
        precedence=tuple(rules.precedence),
        modules=modules,
        parameters=survey.parameters,
        groups=survey.groups,
        problems=tuple(
            replace(located(problem, checkpoint), severity="error") for problem in problems
        ),
        conflicts=() if rules.on_conflict == "ignore" else conflicts,
        stale=_losers(modules, Fate.STALE),
        unmatched=() if rules.on_unmatched == "ignore" else unmatched,
        notes=(
            *(located(note, checkpoint) for note in _notes(findings, survey, matched, modules)),
            *applied.notes,
        ),
        unloaded=unloaded,
        ignored=grouping.ignored,
        total_tensors=len(checkpoint.tensors),
        nbytes=checkpoint.total_bytes - _bytes(checkpoint, lost),
    )


def _problems(
    findings: Iterable[Diagnostic],
    survey: Survey,
    matched: Matched,
    modules: Mapping[str, PlannedModule],
) -> Iterator[Diagnostic]:
    """Everything that keeps a plan from running, whatever the spec says of conflicts."""
    yield from (finding for finding in findings if finding.severity == "error")
    yield from survey.problems
    yield from matched.problems
    for module in modules.values():
        if module.verdict.problem is not None:
            yield module.verdict.problem
    for claim, what in matched.elsewhere:
        if claim.scheme and "cannot be quantised" in what and claim.reach is Reach.PATH:
            yield _not_quantisable(claim, what)


def _notes(
    findings: Iterable[Diagnostic],
    survey: Survey,
    matched: Matched,
    modules: Mapping[str, PlannedModule],
) -> tuple[Diagnostic, ...]:
    """Warnings and notes, in the order in which they came up."""
    return (
        *(finding for finding in findings if finding.severity != "error"),
        *survey.notes,
        *(warning for module in modules.values() for warning in module.verdict.warnings),
        *(_dead(claim, what) for claim, what in matched.elsewhere if "cannot" not in what),
    )


def _excused(
    finding: Diagnostic, survey: Survey, modules: Mapping[str, PlannedModule]
) -> Diagnostic:
    """A malformed entry as a warning, where the spec decides its path anyway."""
    path = survey.index.find(strip_leaf(finding.module)) if finding.module else None
    if path is None or modules[path].verdict.source != "spec":
        return finding
    return replace(finding, severity="warning")


def _with_scales(finding: Diagnostic, survey: Survey) -> Diagnostic:
    """A cache that the checkpoint wants quantised, as an error where it brings the scales.

    With scales the producer measured a model whose cache rounds; without them it is the runner's
    choice. Dropping them by name is how a spec says that full precision is wanted.
    """
    scales = [note for note in survey.notes if note.code == CACHE_SCALE]
    if finding.code != CACHE_PRECISION or not scales:
        return finding
    return replace(
        finding,
        code="quantised-cache",
        message="the checkpoint asks for a quantised key-value cache, which mlxpipe does not apply",
        found=f"{finding.found}, and {len(scales)} scales such as '{scales[0].module}'",
        expected="a cache in full precision",
        help="to run it so, drop them by name: "
        "naming: {drop: ['*.k_scale', '*.v_scale', '*.kv_scale']}",
        severity="error",
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
