"""A run: plan, load, do each task, and leave a record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.errors import ExecutionError, ExitCode, MlxpipeError
from mlxpipe.execution.expectations import check_plan, check_tasks
from mlxpipe.execution.record import RunRecord, TaskRecord, begin
from mlxpipe.execution.reuse import Earlier, copy_outputs, copy_progress
from mlxpipe.locking import DigestCache, Digests, State, require_locked, take, tree_digest
from mlxpipe.locking.fingerprint import fingerprints
from mlxpipe.plan.plan import Plan
from mlxpipe.spec import LoadedSpec
from mlxpipe.tasks import NEVER_REUSED, Context, Reporter, replay, runner
from mlxpipe.tasks.progress import FILE as PROGRESS
from mlxpipe.tasks.reference import plan_references, reference_specs
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


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, beside what the spec says.

    Attributes:
        locked: Refuse to run what is not as the spec's lock says.
        allow_versions: With `locked`, accept other versions of the packages.
        force: Do every task again, whatever earlier runs have finished.
        cache: Look digests of large unchanged files up.
    """

    locked: bool = False
    allow_versions: bool = False
    force: bool = False
    cache: bool = True


def execute(
    loaded: LoadedSpec, reporter: Reporter | None = None, options: Options | None = None
) -> RunRecord:
    """Run a spec.

    Tasks that an earlier run of the spec has finished, and whose inputs are the same, are not done
    again; a task that was interrupted goes on where it ended.

    Args:
        loaded: The spec.
        reporter: Told of progress and of generated text.
        options: See `Options`.

    Returns:
        The finished record; it is in the run directory as well.

    Raises:
        MlxpipeError: before the run directory exists, whatever is wrong with the spec, the
            checkpoint, the lock or the plan.
        RunFailedError: afterwards, with the record.
        KeyboardInterrupt: passed on, after the record was closed as interrupted.
    """
    reporter, options = reporter or Reporter(), options or Options()
    digests = Digests(DigestCache() if options.cache else None, reporter.bar)
    state = _state(loaded, digests, options)
    references = plan_references(loaded)
    for each in (state.plan, *(reference.plan for reference in references.values())):
        _warn(each, reporter)
    # Imported after the plan, so that a wrong spec is refused without loading MLX's layers.
    from mlxpipe.graph.numerics import choose, use

    numerics = choose(loaded, state.plan)
    use(numerics)
    marks = fingerprints(loaded, state.lock, numerics.as_json())
    record = begin(loaded, state, numerics.as_json(), marks, locked=options.locked)
    earlier = Earlier(record.folder, digests, wanted=not options.force)
    record.expectations = check_plan(loaded, state.plan)
    with _recorded(record):
        context = Context(
            loaded,
            state.checkpoint,
            state.plan,
            numerics,
            lambda: _load(state, numerics, reporter, record),
            lambda: _tokenizer(state.checkpoint),
            reporter,
            references,
        )
        for number, task in enumerate(record.tasks):
            if not _reuse(task, record, earlier, reporter):
                _do(context, number, task, record, earlier, digests)
        record.expect(check_tasks(loaded, record.tasks))
    return record


def _warn(plan: Plan, reporter: Reporter) -> None:
    for finding in (*plan.conflicts, *plan.unmatched, *plan.notes):
        if finding.severity == "warning":
            reporter.message(finding.render())


def _state(loaded: LoadedSpec, digests: Digests, options: Options) -> State:
    """What the spec means and reads; as locked, where that is asked for."""
    others = reference_specs(loaded)
    if options.locked:
        state = require_locked(loaded, digests, versions=not options.allow_versions, others=others)
        check_inputs(loaded)
        return state
    check_inputs(loaded)
    return take(loaded, digests, others)


def _load(state: State, numerics: Numerics, reporter: Reporter, record: RunRecord) -> Any:
    from mlxpipe.graph.build import build_model

    started = time.perf_counter()
    with reporter.bar("loading", state.plan.totals.nbytes, "bytes") as advance:
        model = build_model(
            state.plan, state.checkpoint, numerics, lambda done, total: advance(done)
        )
    record.load_seconds = time.perf_counter() - started
    return model


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from mlxpipe.architecture.tokenizer import load_tokenizer

    return load_tokenizer(checkpoint.files, checkpoint.config.data, checkpoint.label)


def _reuse(task: TaskRecord, record: RunRecord, earlier: Earlier, reporter: Reporter) -> bool:
    """Take a task's result from an earlier run, if one has it."""
    if task.type in NEVER_REUSED:
        return False
    started = time.perf_counter()
    found = earlier.finished(task.fingerprint)
    if found is None:
        return False
    outputs = copy_outputs(found, record.folder / "tasks" / task.id)
    task.metrics = dict(found.data["metrics"])
    task.outputs = {name: str(path.resolve()) for name, path in outputs.items()}
    task.digests = dict(found.data["digests"])
    task.reused_from = found.data.get("reused_from") or found.folder.name
    task.seconds = time.perf_counter() - started
    task.status = "done"
    record.save()
    reporter.message(f"{task.id}: nothing changed, reused from {task.reused_from}")
    if show := replay(task.type):
        show(reporter, outputs)
    return True


def _do(
    context: Context,
    number: int,
    task: TaskRecord,
    record: RunRecord,
    earlier: Earlier,
    digests: Digests,
) -> None:
    folder = record.folder / "tasks" / task.id
    folder.mkdir(parents=True)
    context.reporter.message(f"{task.id}:")
    if task.type not in NEVER_REUSED:
        _resume(task, folder, earlier, context.reporter)
    task.status = "running"
    record.save()
    # Whichever task comes first loads the model; its own time is without that.
    started = time.perf_counter() - record.load_seconds
    _note_peak(record)
    try:
        outcome = runner(task.type)(context, number, folder)
        task.digests = {
            name: tree_digest(path, name, digests) for name, path in outcome.outputs.items()
        }
    except KeyboardInterrupt:
        task.status = "interrupted"
        raise
    except Exception as error:
        task.status = "failed"
        task.error = str(error)
        raise _named(error, task) from error
    finally:
        task.seconds = time.perf_counter() - (started + record.load_seconds)
    (folder / PROGRESS).unlink(missing_ok=True)
    task.metrics = dict(outcome.metrics)
    task.outputs = {name: str(Path(path).resolve()) for name, path in outcome.outputs.items()}
    task.status = "done"
    record.save()


def _note_peak(record: RunRecord) -> None:
    """Keep the run's peak, because a benchmark starts counting anew."""
    import mlx.core as mx

    record.peak_memory_bytes = max(record.peak_memory_bytes, mx.get_peak_memory())


def _resume(task: TaskRecord, folder: Path, earlier: Earlier, reporter: Reporter) -> None:
    """Go on from the steps of an interrupted run, if there is one."""
    begun = earlier.begun(task.fingerprint)
    if begun is not None:
        steps = copy_progress(begun, folder)
        task.resumed_from = begun.folder.name
        reporter.message(f"{task.id}: goes on after {steps} steps of {begun.folder.name}")


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
