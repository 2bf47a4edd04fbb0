"""Runs as rows for data frames and as tables for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlxpipe.notebook import paragraph, preformatted, table

if TYPE_CHECKING:
    from mlxpipe.execution.matrix import CombinationRecord, MatrixRecord
    from mlxpipe.execution.record import RunRecord, TaskRecord


def task_row(task: TaskRecord) -> dict[str, Any]:
    """One task: its state, then its metrics."""
    return {
        "task": task.id,
        "type": task.type,
        "status": task.status,
        "seconds": task.seconds,
        **task.metrics,
    }


def combination_row(each: CombinationRecord) -> dict[str, Any]:
    """One combination: what it has on each axis, its state, then `<task>.<metric>`."""
    tasks = each.record.tasks if each.record else []
    totals = each.record.totals if each.record else {}
    return {
        "label": each.loaded.label,
        **{axis: str(value) for axis, value in each.loaded.matrix.items()},
        "status": each.status,
        "bits_per_weight": totals.get("bits_per_weight"),
        "seconds": each.record.seconds if each.record else None,
        **{f"{task.id}.{name}": value for task in tasks for name, value in task.metrics.items()},
    }


def run_html(record: RunRecord) -> str:
    """Every task with its metrics, and what the spec expects."""
    rows = [
        (task.id, task.type, task.status, _metrics(task), round(task.seconds, 2))
        for task in record.tasks
    ]
    held = [
        f"{'ok    ' if each.passed else 'missed'} "
        f"{each.name}: {each.found}, expected {each.expected}"
        for each in record.expectations
    ]
    return "".join(
        (
            paragraph(
                f"exit code {int(record.exit_code)}",
                record.folder,
                bold=record.label or record.name,
            ),
            table(("task", "type", "status", "metrics", "seconds"), rows),
            preformatted(held),
            preformatted(f"{task.id}: {task.error}" for task in record.tasks if task.error),
        )
    )


def _metrics(task: TaskRecord) -> str:
    return ", ".join(
        f"{name} {value:.5g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in task.metrics.items()
    )


def matrix_html(record: MatrixRecord) -> str:
    """A row for each combination, a column for each metric."""
    rows = [combination_row(each) for each in record.combinations]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return "".join(
        (
            paragraph(f"exit code {int(record.exit_code)}", record.summary, bold=record.name),
            table(columns, ([row.get(column) for column in columns] for row in rows)),
            preformatted(
                f"{each.loaded.label}: {each.error}" for each in record.combinations if each.error
            ),
        )
    )
