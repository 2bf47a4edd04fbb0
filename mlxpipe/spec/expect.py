"""What a spec expects of its plan and of its tasks' metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict, model_validator

from mlxpipe.errors import did_you_mean
from mlxpipe.spec.problems import Problem, either, refusal
from mlxpipe.spec.tasks import Task
from mlxpipe.spec.values import ModulePattern, Name, Section, Text, Words, only

#: What can be counted or measured of a plan.
PlanFact = Literal[
    "conflicts",
    "stale",
    "unmatched",
    "warnings",
    "modules",
    "dense",
    "exact",
    "exact_codes",
    "lossy",
    "weights",
    "bytes",
    "bits_per_weight",
]
Grade = Literal["exact", "exact_codes", "lossy"]

Number = Annotated[float | int, only(int, float), Words("a number")]

BOUNDS = ("min", "max", "equals")
TRAITS = ("mode", "bits", "group_size", "dense", "grade")


class Expectation(Section):
    """One expectation: of a task's metric, of the plan, or of modules. A run that misses it ends
    with exit code 1."""

    exactly_one: ClassVar = (("task",), ("plan",), ("module",))
    belongs_to: ClassVar = {
        "metric": "task",
        "mode": "module",
        "bits": "module",
        "group_size": "module",
        "dense": "module",
        "grade": "module",
    }

    task: Name | None = Field(None, description="The id of a task.")
    metric: Text | None = Field(None, description="One of the task's metrics.")
    plan: PlanFact | None = Field(None, description="Something that is counted in the plan.")
    module: ModulePattern | None = Field(
        None,
        description="A glob over dotted module paths, or `re:` and a regular expression; all that "
        "match must be as said, and one at least must match.",
    )
    min: Number | None = Field(None, description="The least that is fine.")
    max: Number | None = Field(None, description="The most that is fine.")
    equals: Number | None = Field(None, description="The only value that is fine.")
    mode: Literal["affine", "mxfp4", "mxfp8", "nvfp4"] | None = Field(
        None, description="The quantisation mode."
    )
    bits: int | None = Field(None, description="Bits per weight.")
    group_size: int | None = Field(None, description="Weights per scale.")
    dense: Annotated[bool, only(bool)] | None = Field(
        None, description="Whether the modules are dense."
    )
    grade: Grade | None = Field(None, description="How faithful the modules are, at least.")

    @model_validator(mode="after")
    def _check_parts(self) -> Expectation:
        if self.task is not None and self.metric is None:
            raise refusal(Problem("missing-key", "a task's expectation needs 'metric'", key=True))
        needed = BOUNDS if self.module is None else TRAITS
        if not any(self._given(key) for key in needed):
            message = f"nothing is expected here: one of {either(list(needed))} is needed"
            raise refusal(Problem("missing-key", message, key=True))
        stray = [key for key in BOUNDS if self.module is not None and self._given(key)]
        if stray:
            message = f"{stray[0]!r} is for numbers, and 'module' has none"
            raise refusal(Problem("exclusive-keys", message, (stray[0],), key=True))
        return self


Expectations = Annotated[tuple[Expectation, ...], Strict(False), Words("a list of expectations")]


def check_against_tasks(expectations: Sequence[Expectation], tasks: Sequence[Task]) -> None:
    """Refuse expectations of tasks and metrics that do not exist."""
    metrics: Mapping[str, Sequence[str] | None] = {task.id: type(task).metrics for task in tasks}
    problems = []
    for index, each in enumerate(expectations):
        if each.task is None or each.metric is None:
            continue
        if each.task not in metrics:
            problems.append(_unknown("task", each.task, list(metrics), (index, "task")))
        elif each.metric not in (known := metrics[each.task] or (each.metric,)):
            problems.append(_unknown("metric", each.metric, list(known), (index, "metric")))
    if problems:
        raise refusal(*problems)


def _unknown(kind: str, name: str, known: list[str], at: tuple[int, str]) -> Problem:
    return Problem(
        "unknown-value",
        f"there is no {kind} {name!r}",
        at,
        label=did_you_mean(name, known),
        expected=either(known) if known else f"a {kind} of the spec, which has none",
    )
