"""What the spec's `quantize` makes of the modules, from headers alone.

Rules are matched as claims are: a later rule wins, and what matches nothing is reported as an
override is. A module whose width a group size does not divide stays as the checkpoint has it, as
mlx-lm leaves such modules dense; only a rule that names it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import lcm
from typing import TYPE_CHECKING

from mlxpipe.checkpoint.entry import DTYPE_BITS
from mlxpipe.errors import Diagnostic, Origin, PlanError, UsageError
from mlxpipe.naming.names import is_pattern
from mlxpipe.plan.matching import Matched, Namespace, allowed, describe_unmatched, match_claims
from mlxpipe.plan.plan import PlannedModule, Recipe
from mlxpipe.plan.survey import Subject, Survey
from mlxpipe.quant.claims import Claim, Reach
from mlxpipe.quant.layouts import FACTORS, LOSSY
from mlxpipe.quant.modes import MODES, Scheme, complete, packed_bytes
from mlxpipe.quant.presets import PRESETS, Preset, Table, UnfitError
from mlxpipe.quant.verify import Evidence
from mlxpipe.spec import LoadedSpec, PresetRule, QuantizeRule

if TYPE_CHECKING:
    from mlxpipe.architecture.advice import Advice

#: What rules are claims of.
SOURCE = "quantize"

#: Layouts whose conversion adds no factor to MLX's own arrays.
PLAIN_LAYOUTS = frozenset({"", "mlx", "packed_float4"})

#: Bytes of a floating-point number where the checkpoint has none for this module.
BFLOAT16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Goal:
    """What a rule asks for a module.

    Attributes:
        scheme: The scheme, None for a dense weight.
        keep: As the checkpoint has it, whatever `scheme` says.
        unit: A further number that must divide the width: mlx-lm tests its global group size.
    """

    scheme: Scheme | None = None
    keep: bool = False
    unit: int = 1

    @property
    def group_size(self) -> int:
        """What must divide the width."""
        return lcm(self.unit, self.scheme.group_size if self.scheme else 1)


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the spec.

    Attributes:
        claim: Its pattern and origin, for the matching.
        label: The rule in short.
        goal: Module path -> what it asks there; None where only an architecture could tell.
    """

    claim: Claim
    label: str
    goal: Callable[[str], Goal] | None


@dataclass(frozen=True, slots=True)
class Applied:
    """A recipe's outcome.

    Attributes:
        modules: Every module, those of the recipe with its rule.
        problems: What cannot be done.
        notes: What was left as it is.
        unmatched: Rules that match nothing.
    """

    modules: Mapping[str, PlannedModule]
    problems: tuple[Diagnostic, ...] = ()
    notes: tuple[Diagnostic, ...] = ()
    unmatched: tuple[Diagnostic, ...] = ()


def apply_recipe(
    loaded: LoadedSpec,
    survey: Survey,
    namespace: Namespace,
    modules: Mapping[str, PlannedModule],
) -> Applied:
    """Apply the rules of a spec, presets only where there is an architecture to ask.

    Raises:
        UsageError: `unknown-scheme`, a mode, bits or group size that MLX does not have.
        PlanError: `preset-unfit`, a preset that says nothing about this architecture.
    """
    if not loaded.spec.quantize:
        return Applied(modules)
    advice = _advice(survey)
    rules = {rule.claim: rule for rule in _rules(loaded, survey, advice)}
    matched = match_claims(rules, namespace, (SOURCE,))
    unmatched = tuple(_unmatched(loaded, matched, rules, namespace))
    problems = [*matched.problems, *_elsewhere(matched, rules, errors=True)]
    notes = [*_elsewhere(matched, rules, errors=False)]
    notes += [_unresolved(rule) for rule in rules.values() if rule.goal is None]
    made = dict(modules)
    left: dict[Claim, list[str]] = {}
    for path, claims in matched.by_module.items():
        rule = rules[claims[-1]] if claims else None
        if rule is None or rule.goal is None or modules[path].verdict.problem is not None:
            continue
        goal, subject = rule.goal(path), survey.subjects[path]
        reason = _hindrance(subject, goal, advice is not None and path in advice.affine_only)
        if reason and rule.claim.reach is Reach.PATH:
            problems.append(_impossible(path, rule, goal, reason))
        elif reason:
            left.setdefault(rule.claim, []).append(f"'{path}': {reason}")
        else:
            made[path] = _made(modules[path], subject, rule, goal)
    notes += [_left(rules[claim], lines) for claim, lines in left.items()]
    return Applied(made, tuple(problems), tuple(notes), unmatched)


# --- rules -----------------------------------------------------------------------------------


def _advice(survey: Survey) -> Advice | None:
    if survey.skeleton is None:
        return None
    from mlxpipe.architecture.advice import advise

    return advise(survey.skeleton)


def _rules(loaded: LoadedSpec, survey: Survey, advice: Advice | None) -> Iterator[Rule]:
    for number, written in enumerate(loaded.spec.quantize):
        origin = loaded.origin("quantize", number)
        reach = Reach.PATTERN if is_pattern(written.match) else Reach.PATH
        # A place of its own for each rule, so that equal rules are two.
        claim = Claim(SOURCE, None, reach, written.match, origin, note=f"rule {number + 1}")
        if isinstance(written, PresetRule):
            yield Rule(claim, f"preset {written.preset}", _preset(written, origin, survey, advice))
        else:
            yield _plain(claim, written)


def _plain(claim: Claim, written: QuantizeRule) -> Rule:
    if written.keep:
        return Rule(claim, "keep", lambda path: Goal(keep=True))
    if written.dense:
        return Rule(claim, "dense", lambda path: Goal())
    try:
        scheme = complete(written.mode, written.bits, written.group_size)
    except ValueError as problem:
        raise UsageError("unknown-scheme", str(problem), origin=claim.origin) from None
    return Rule(claim, str(scheme), lambda path: Goal(scheme))


def _preset(
    written: PresetRule, origin: Origin, survey: Survey, advice: Advice | None
) -> Callable[[str], Goal] | None:
    preset = PRESETS[written.preset]
    size = _group_size(preset, written, origin)
    if advice is None:
        return None
    kinds = {path: subject.kind for path, subject in survey.subjects.items()}
    try:
        choose = preset.make(Table(kinds, advice), size)
    except UnfitError as problem:
        raise PlanError(
            "preset-unfit",
            f"the preset {preset.name} says nothing about {survey.architecture}",
            origin=origin,
            found=str(problem),
            help="write rules of your own, or take another preset",
        ) from None

    def goal(path: str) -> Goal:
        scheme = choose(path)
        return Goal(scheme, keep=scheme is None, unit=size)

    return goal


def _group_size(preset: Preset, written: PresetRule, origin: Origin) -> int:
    size = written.group_size or preset.group_size
    if preset.fixed and size != preset.group_size:
        message = f"{preset.name} has groups of {preset.group_size}, no others"
        raise UsageError("unknown-scheme", message, origin=origin, found=f"group_size {size}")
    if not preset.fixed:
        try:
            complete("affine", None, size)
        except ValueError as problem:
            raise UsageError("unknown-scheme", str(problem), origin=origin) from None
    return size


# --- one module ------------------------------------------------------------------------------


def _made(module: PlannedModule, subject: Subject, rule: Rule, goal: Goal) -> PlannedModule:
    before = module.landing
    after = before if goal.keep else goal.scheme
    same = after == before
    nbytes = packed_bytes(after, module.weights, float_bytes(subject.evidence))
    recipe = Recipe(
        rule.label, rule.claim.origin, before, module.grade, module.nbytes if same else nbytes
    )
    grade = module.grade if same or _is_faithful(subject, before, after) else LOSSY
    return replace(module, landing=after, grade=grade, recipe=recipe)


def _is_faithful(subject: Subject, before: Scheme | None, after: Scheme | None) -> bool:
    """Whether 16 bits hold every value of a weight that is dequantised.

    A code of 4 or 8 bits times a scale of one byte they do; a scale of 16 bits times a code, or a
    tensor's factor, rounds.
    """
    layout = subject.layout.name if subject.layout else ""
    return (
        after is None
        and before is not None
        and MODES[before.mode].byte_scales
        and layout in PLAIN_LAYOUTS
        and not subject.roles & FACTORS
    )


def float_bytes(evidence: Evidence) -> int:
    """Bytes of a number of what `graph.recipe` makes scales and dense weights of."""
    array = evidence.weight if evidence.dense else evidence.biases
    return BFLOAT16_BYTES if array is None else DTYPE_BITS[array.dtype] // 8


def _hindrance(subject: Subject, goal: Goal, affine_only: bool) -> str:
    """Why a module cannot be what a rule asks, or ""."""
    if goal.keep or goal.scheme is None:
        return ""
    if affine_only and goal.scheme.mode != "affine":
        return f"its architecture packs it in affine only, not in {goal.scheme.mode}"
    evidence, size = subject.evidence, goal.group_size
    stored = evidence.weight.shape[-1] if evidence.dense else evidence.in_features
    width = subject.unpacked or stored
    if width is None or width % size == 0:
        return ""
    return f"its width {width} = {width // size}·{size} + {width % size}, no multiple of {size}"


# --- findings --------------------------------------------------------------------------------


def _impossible(path: str, rule: Rule, goal: Goal, reason: str) -> Diagnostic:
    return Diagnostic(
        "cannot-quantise",
        f"'{path}' cannot be {goal.scheme}",
        origin=rule.claim.origin,
        module=path,
        found=reason,
        expected="a group size that divides the width, and a mode that the module has",
        help="choose another scheme for it, or remove the rule",
    )


def _unresolved(rule: Rule) -> Diagnostic:
    return Diagnostic(
        "preset-unresolved",
        f"the {rule.label} asks the architecture, and this plan is made without one",
        origin=rule.claim.origin,
        severity="note",
    )


def _left(rule: Rule, lines: list[str]) -> Diagnostic:
    count = f"{len(lines)} modules stay" if len(lines) > 1 else "a module stays"
    return Diagnostic(
        "left-as-stored",
        f"{count} as the checkpoint has them" if len(lines) > 1 else f"{count} as it is stored",
        origin=rule.claim.origin,
        found=lines[0] + (f" (and {len(lines) - 1} like it)" if len(lines) > 1 else ""),
        severity="note",
    )


def _unmatched(
    loaded: LoadedSpec, matched: Matched, rules: Mapping[Claim, Rule], namespace: Namespace
) -> Iterator[Diagnostic]:
    settings = loaded.spec.quantization
    known = [*namespace.modules, *namespace.others]
    for claim in matched.unmatched:
        if allowed(claim, settings.allow_unmatched, namespace.renaming.key):
            continue
        message = f"quantize: no module matches '{claim.pattern}' ({rules[claim].label})"
        found = replace(describe_unmatched(claim, known), message=message)
        wrong = settings.on_unmatched == "error"
        yield found if wrong else replace(found, severity="warning")


def _elsewhere(
    matched: Matched, rules: Mapping[Claim, Rule], *, errors: bool
) -> Iterator[Diagnostic]:
    """Rules for what has no weight to quantise: errors where one names it, else notes."""
    for claim, what in matched.elsewhere:
        wrong = claim.reach is Reach.PATH and "cannot be quantised" in what
        if wrong is errors:
            yield Diagnostic(
                "not-quantisable" if wrong else "dead-rule",
                f"quantize: '{claim.pattern}' ({rules[claim].label}) has no effect: it is {what}",
                origin=claim.origin,
                module=claim.pattern,
                help="remove the rule" if wrong else "",
                severity="error" if wrong else "note",
            )
