"""A run: plan, load, do each task, and leave a record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.source import open_source
from mlxpipe.errors import ExecutionError, ExitCode, MlxpipeError
from mlxpipe.execution.expectations import check_plan, check_tasks
from mlxpipe.execution.record import RunRecord, TaskRecord, begin
from mlxpipe.plan.plan import Plan
from mlxpipe.plan.planner import plan_checkpoint
from mlxpipe.spec import LoadedSpec
from mlxpipe.tasks import Context, Reporter, runner
from mlxpipe.tasks.reference import plan_references
from mlxpipe.tasks.texts import check_inputs

if TYPE_CHECKING:
    from mlxpipe.graph.numerics import Numerics


class RunFailedError(Exception):
    """A run that ended early; its record is on disk.

    Attributes:
        record: The record.
        cause: The error of the task that failed.
    """

    def __init__(self, record: RunRecord, cause: MlxpipeError) -> None:
        super().__init__(str(cause))
        self.record = record
        self.cause = cause


def execute(loaded: LoadedSpec, reporter: Reporter | None = None) -> RunRecord:
    """Run a spec.

    Args:
        loaded: The spec.
        reporter: Told of progress and of generated text.

    Returns:
        The finished record; it is in the run directory as well.

    Raises:
        MlxpipeError: before the run directory exists, whatever is wrong with the spec, the
            checkpoint or the plan.
        RunFailedError: afterwards, with the record.
        KeyboardInterrupt: passed on, after the record was closed as interrupted.
    """
    reporter = reporter or Reporter()
    check_inputs(loaded)
    checkpoint = open_source(loaded, progress=True)
    plan = plan_checkpoint(loaded, checkpoint).require_sound()
    references = plan_references(loaded)
    for each in (plan, *(reference.plan for reference in references.values())):
        _warn(each, reporter)
    # Imported after the plan, so that a wrong spec is refused without loading MLX's layers.
    from mlxpipe.graph.numerics import choose, use

    numerics = choose(loaded, plan)
    use(numerics)
    record = begin(loaded, plan, numerics.as_json())
    record.expectations = check_plan(loaded, plan)
    with _recorded(record):
        context = Context(
            loaded,
            checkpoint,
            plan,
            numerics,
            lambda: _load(plan, checkpoint, numerics, reporter, record),
            lambda: _tokenizer(checkpoint),
            reporter,
            references,
        )
        for number, task in enumerate(record.tasks):
            _do(context, number, task, record)
        record.expect(check_tasks(loaded, record.tasks))
    return record


def _warn(plan: Plan, reporter: Reporter) -> None:
    for finding in (*plan.conflicts, *plan.unmatched, *plan.notes):
        if finding.severity == "warning":
            reporter.message(finding.render())


def _load(
    plan: Plan,
    checkpoint: Checkpoint,
    numerics: Numerics,
    reporter: Reporter,
    record: RunRecord,
) -> Any:
    from mlxpipe.graph.build import build_model

    started = time.perf_counter()
    with reporter.bar("loading", plan.totals.nbytes, "bytes") as advance:
        model = build_model(plan, checkpoint, numerics, lambda done, total: advance(done))
    record.load_seconds = time.perf_counter() - started
    return model


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from mlxpipe.architecture.tokenizer import load_tokenizer

    return load_tokenizer(checkpoint.files, checkpoint.config.data, checkpoint.label)


def _do(context: Context, number: int, task: TaskRecord, record: RunRecord) -> None:
    folder = record.folder / "tasks" / task.id
    folder.mkdir(parents=True)
    task.status = "running"
    record.save()
    context.reporter.message(f"{task.id}:")
    # Whichever task comes first loads the model; its own time is without that.
    started = time.perf_counter() - record.load_seconds
    _note_peak(record)
    try:
        outcome = runner(task.type)(context, number, folder)
    except KeyboardInterrupt:
        task.status = "interrupted"
        raise
    except Exception as error:
        task.status = "failed"
        task.error = str(error)
        raise _named(error, task) from error
    finally:
        task.seconds = time.perf_counter() - (started + record.load_seconds)
    task.metrics = dict(outcome.metrics)
    task.outputs = {name: str(Path(path).resolve()) for name, path in outcome.outputs.items()}
    task.status = "done"
    record.save()


def _note_peak(record: RunRecord) -> None:
    """Keep the run's peak, because a benchmark starts counting anew."""
    import mlx.core as mx

    record.peak_memory_bytes = max(record.peak_memory_bytes, mx.get_peak_memory())


def _named(error: Exception, task: TaskRecord) -> MlxpipeError:
    if isinstance(error, MlxpipeError):
        return error
    return ExecutionError(
        "task-failed",
        f"task '{task.id}' ({task.type}) failed",
        found=f"{type(error).__name__}: {error}",
        help="run again with --debug for the traceback",
    )


@contextmanager
def _recorded(record: RunRecord) -> Iterator[None]:
    """Close the record whatever happens inside."""
    started = time.perf_counter()
    try:
        yield
    except KeyboardInterrupt:
        record.exit_code = ExitCode.INTERRUPTED
        raise
    except MlxpipeError as error:
        record.exit_code = error.exit_code
        raise RunFailedError(record, error) from error
    finally:
        record.seconds = time.perf_counter() - started
        _note_peak(record)
        for task in record.tasks:
            if task.status == "running":  # Ctrl-C between its beginning and its work
                task.status = "interrupted"
            if task.status == "pending" and record.exit_code != ExitCode.OK:
                task.status = "skipped"
        record.save()
