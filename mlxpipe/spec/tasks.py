"""The tasks a spec can ask for: one model each, told apart by `type`."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import count
from typing import Annotated

from pydantic import Field, Strict

from mlxpipe.spec.problems import Problem, refusal
from mlxpipe.spec.task_measuring import (
    BenchmarkTask,
    CompareTask,
    EvaluateTask,
    PerplexityTask,
    SensitivityTask,
)
from mlxpipe.spec.task_writing import ExportTask, GenerateTask, LogitsTask
from mlxpipe.spec.values import (
    Words,
)

Task = (
    GenerateTask
    | LogitsTask
    | PerplexityTask
    | CompareTask
    | SensitivityTask
    | BenchmarkTask
    | EvaluateTask
    | ExportTask
)
PICTURE_TASKS = (GenerateTask, LogitsTask)
Tasks = Annotated[
    tuple[Annotated[Task, Field(discriminator="type")], ...],
    Strict(False),
    Words("a list of tasks"),
]
TASK_TYPES = (
    "generate",
    "logits",
    "perplexity",
    "compare",
    "sensitivity",
    "benchmark",
    "evaluate",
    "export",
)


def name_tasks(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    """Gives every task an id of its own.

    Ids name files, and some file systems ignore case: so does the comparison.
    """
    taken: dict[str, int] = {}
    for index, task in enumerate(tasks):
        if task.id and taken.setdefault(task.id.casefold(), index) != index:
            message = f"two tasks have the id {task.id!r}"
            raise refusal(Problem("duplicate-id", message, (index, "id")))
    free = {kind: _default_ids(kind, taken) for kind in TASK_TYPES}
    return tuple(
        task if task.id else task.model_copy(update={"id": next(free[task.type])}) for task in tasks
    )


def _default_ids(kind: str, taken: Container[str]) -> Iterator[str]:
    names = (kind if number == 1 else f"{kind}-{number}" for number in count(1))
    return (name for name in names if name not in taken)


def default_ids(tasks: Sequence[tuple[object, object]]) -> list[str]:
    """The ids that tasks will have, from the (id, type) that each one says, valid or not."""
    taken = {given.casefold(): 0 for given, _ in tasks if isinstance(given, str)}
    free = {kind: _default_ids(kind, taken) for kind in TASK_TYPES}
    return [
        given
        if isinstance(given, str)
        else next(free[kind])
        if isinstance(kind, str) and kind in free
        else ""
        for given, kind in tasks
    ]
