"""Whether a plan and the tasks' metrics are as the spec expects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import eq, ge, le
from typing import TYPE_CHECKING, Any

from mlxpipe.errors import Diagnostic, Origin
from mlxpipe.naming.names import matches
from mlxpipe.plan.plan import Plan, PlannedModule
from mlxpipe.quant.layouts import EXACT, EXACT_CODES, LOSSY
from mlxpipe.spec import Expectation, LoadedSpec
from mlxpipe.spec.expect import BOUNDS
from mlxpipe.spec.problems import spell

if TYPE_CHECKING:
    from mlxpipe.execution.record import TaskRecord

#: The names of `spec.expect.PlanFact` -> how to find the number.
PLAN_FACTS: Mapping[str, Callable[[Plan], float | int | None]] = {
    "conflicts": lambda plan: len(plan.conflicts),
    "stale": lambda plan: len(plan.stale),
    "unmatched": lambda plan: len(plan.unmatched),
    "warnings": lambda plan: sum(note.severity == "warning" for note in plan.notes),
    "modules": lambda plan: len(plan.modules),
    "dense": lambda plan: sum("dense" in one.as_json() for one in plan.modules.values()),
    "exact": lambda plan: plan.totals.grades.get(EXACT, 0),
    "exact_codes": lambda plan: plan.totals.grades.get(EXACT_CODES, 0),
    "lossy": lambda plan: plan.totals.grades.get(LOSSY, 0),
    "weights": lambda plan: plan.totals.weights,
    "bytes": lambda plan: plan.totals.nbytes,
    "bits_per_weight": lambda plan: plan.totals.bits_per_weight,
}

#: A bound -> whether a value keeps it.
FITS: Mapping[str, Callable[[float, float], bool]] = {"min": ge, "max": le, "equals": eq}

#: The most faithful first.
GRADES = (EXACT, EXACT_CODES, LOSSY)

#: How many modules that miss an expectation are named.
MOST = 5


@dataclass(frozen=True, slots=True)
class Checked:
    """One expectation and what became of it.

    Attributes:
        name: What is expected of what: `ppl.perplexity`, `plan.conflicts`, a module pattern.
        passed: Whether it holds.
        found: What there is.
        expected: What is fine.
        origin: Where the spec says so.
    """

    name: str
    passed: bool
    found: str
    expected: str
    origin: Origin

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        return {
            "name": self.name,
            "passed": self.passed,
            "found": self.found,
            "expected": self.expected,
            "origin": str(self.origin),
        }

    def diagnostic(self) -> Diagnostic:
        """A miss as an error."""
        return Diagnostic(
            "expectation",
            f"{self.name} is not as expected",
            origin=self.origin,
            found=self.found,
            expected=self.expected,
        )


def check_plan(loaded: LoadedSpec, plan: Plan) -> list[Checked]:
    """The expectations of the plan and its modules, in the spec's order."""
    found = []
    for number, each in enumerate(loaded.spec.expect):
        origin = loaded.origin("expect", number)
        if each.plan is not None:
            value = PLAN_FACTS[each.plan](plan)
            found.append(_number(f"plan.{each.plan}", each, value, origin))
        elif each.module is not None:
            found.append(_modules(each, plan, origin))
    return found


def check_tasks(loaded: LoadedSpec, tasks: Iterable[TaskRecord]) -> list[Checked]:
    """The expectations of the tasks' metrics, in the spec's order."""
    metrics = {task.id: task.metrics for task in tasks}
    return [
        _number(
            f"{each.task}.{each.metric}",
            each,
            metrics.get(each.task, {}).get(each.metric or ""),
            loaded.origin("expect", number),
        )
        for number, each in enumerate(loaded.spec.expect)
        if each.task is not None
    ]


def _number(name: str, each: Expectation, value: float | int | None, origin: Origin) -> Checked:
    bounds = {key: getattr(each, key) for key in BOUNDS if getattr(each, key) is not None}
    passed = value is not None and all(FITS[key](value, bound) for key, bound in bounds.items())
    expected = ", ".join(f"{key} {bound}" for key, bound in bounds.items())
    return Checked(name, passed, _spell(value), expected, origin)


def _spell(value: float | int | None) -> str:
    if value is None:
        return "nothing: it was not measured"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _modules(each: Expectation, plan: Plan, origin: Origin) -> Checked:
    assert each.module is not None
    chosen = [module for path, module in plan.modules.items() if matches(each.module, path)]
    misses = [module for module in chosen if not _is_as_said(each, module)]
    traits = each.model_dump(exclude_none=True, exclude={"module"})
    expected = ", ".join(f"{key} {spell(value)}" for key, value in traits.items())
    if not chosen:
        return Checked(each.module, False, "no module matches", expected, origin)
    return Checked(each.module, not misses, _describe(misses or chosen[:1]), expected, origin)


def _is_as_said(each: Expectation, module: PlannedModule) -> bool:
    has = module.as_json()
    said = each.model_dump(include={"mode", "bits", "group_size"}, exclude_none=True)
    if any(has.get(key) != value for key, value in said.items()):
        return False
    if each.dense is not None and each.dense is not bool(has.get("dense")):
        return False
    return each.grade is None or GRADES.index(module.grade) <= GRADES.index(each.grade)


def _describe(modules: Sequence[PlannedModule]) -> str:
    return "\n".join(_lines(modules))


def _lines(modules: Sequence[PlannedModule]) -> Iterator[str]:
    for module in modules[:MOST]:
        yield f"{module.path} is {module.landing or 'dense'}, {module.grade}"
    if len(modules) > MOST:
        yield f"and {len(modules) - MOST} more"
