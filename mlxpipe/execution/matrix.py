"""Every combination of a matrix: all planned before the first is run, each a run of its own.

<outputs.dir>/<name>/
    <label>/<id>/…       the run of one combination
    matrix-<id>.json     what came out so far, rewritten, whole, after each of them
"""

from __future__ import annotations

import gc
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.source import open_source
from mlxpipe.errors import Diagnostic, ExitCode, MlxpipeError
from mlxpipe.execution.executor import RunFailedError, execute
from mlxpipe.execution.record import RunRecord, cannot_write
from mlxpipe.files import write_json
from mlxpipe.plan.plan import Plan
from mlxpipe.plan.planner import plan_checkpoint
from mlxpipe.spec import LoadedSpec, Source
from mlxpipe.tasks import Reporter
from mlxpipe.tasks.texts import check_inputs

RunOne = Callable[[LoadedSpec, Reporter], RunRecord]
Status = Literal["pending", "done", "failed", "interrupted", "skipped"]


@dataclass(slots=True)
class CombinationRecord:
    """One combination as it goes on.

    Attributes:
        loaded: Its spec.
        status: `failed` also where an expectation was not met.
        record: Its run, None where none was begun or it was interrupted.
        error: What ended it.
        exit_code: What it would end a command with.
    """

    loaded: LoadedSpec
    status: Status = "pending"
    record: RunRecord | None = None
    error: MlxpipeError | None = None
    exit_code: ExitCode = ExitCode.OK

    def as_json(self) -> dict[str, Any]:
        """The run record, or what there is of one."""
        if self.record is not None:
            return self.record.as_json()
        return {
            "name": self.loaded.name,
            "label": self.loaded.label,
            "matrix": dict(self.loaded.matrix),
            "status": self.status,
            "tasks": [],
            "error": str(self.error) if self.error else "",
            "exit_code": int(self.exit_code),
        }


@dataclass(slots=True)
class MatrixRecord:
    """All combinations of a matrix, in order.

    Attributes:
        name: The spec's name.
        summary: The file that holds the same as `as_json`.
        combinations: One record for each.
        interrupted: Whether it ended with an interruption.
    """

    name: str
    summary: Path
    combinations: list[CombinationRecord] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """The worst one; 130 after an interruption."""
        if self.interrupted:
            return ExitCode.INTERRUPTED
        return max((each.exit_code for each in self.combinations), default=ExitCode.OK)

    def as_json(self) -> dict[str, Any]:
        """The contracted form: the records of the combinations that were begun."""
        begun = [each for each in self.combinations if each.status not in ("pending", "skipped")]
        left = [
            each.loaded.label for each in self.combinations if each.status in ("pending", "skipped")
        ]
        return {
            "name": self.name,
            "runs": [each.as_json() for each in begun],
            "skipped": left,
            "summary": str(self.summary.resolve()),
            "exit_code": int(self.exit_code),
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """A row for each combination with its metrics, such as pandas makes a data frame of."""
        from mlxpipe.execution.tables import combination_row

        return [combination_row(each) for each in self.combinations]

    def _repr_html_(self) -> str:
        from mlxpipe.execution.tables import matrix_html

        return matrix_html(self)

    def save(self) -> None:
        """Write the summary, whole or not at all."""
        write_json(self.summary, self.as_json())


def plan_all(
    specs: Sequence[LoadedSpec], *, architecture: bool = True, inputs: bool = False
) -> Iterator[Plan | MlxpipeError]:
    """A plan of each spec, or what is wrong; a checkpoint that several share is opened once.

    Args:
        specs: The combinations of one matrix.
        architecture: As for `make_plan`.
        inputs: Read the files that tasks name as well.
    """
    checkpoints: dict[Source, Checkpoint] = {}
    for loaded in specs:
        source = loaded.spec.source
        try:
            if inputs:
                check_inputs(loaded)
            if source not in checkpoints:
                checkpoints[source] = open_source(loaded, progress=True)
            yield plan_checkpoint(loaded, checkpoints[source], architecture=architecture)
        except MlxpipeError as error:
            yield error


def run_combinations(
    specs: Sequence[LoadedSpec],
    reporter: Reporter | None = None,
    *,
    keep_going: bool = False,
    run_one: RunOne = execute,
) -> MatrixRecord:
    """Run the combinations of a matrix, in order.

    Args:
        specs: At least one combination.
        reporter: Told of progress.
        keep_going: Go on after one that failed, or that cannot be planned.
        run_one: Runs one spec.

    Returns:
        What came out, complete or not: `exit_code` tells. An interruption ends it, with 130.

    Raises:
        MlxpipeError: Nothing was run: without `keep_going`, a combination that cannot be planned;
            or the summary cannot be written.
    """
    reporter = reporter or Reporter()
    record = MatrixRecord(specs[0].name, _summary(specs[0]))
    record.combinations = [CombinationRecord(loaded) for loaded in specs]
    try:
        _plan(record, keep_going)
        _begin(record, specs[0])
        for number, each in enumerate(record.combinations, 1):
            if each.status == "pending":
                reporter.message(f"[{number}/{len(specs)}] {each.loaded.label}")
                _run(each, reporter, run_one)
                record.save()
            if each.exit_code != ExitCode.OK and not keep_going:
                break
    except KeyboardInterrupt:
        if not record.summary.exists():
            raise
        record.interrupted = True
    for each in record.combinations:
        each.status = "skipped" if each.status == "pending" else each.status
    record.save()
    return record


def _plan(record: MatrixRecord, keep_going: bool) -> None:
    specs = [each.loaded for each in record.combinations]
    for each, planned in zip(record.combinations, plan_all(specs, inputs=True), strict=True):
        try:
            if isinstance(planned, MlxpipeError):
                raise planned
            planned.require_sound()
        except MlxpipeError as error:
            each.status, each.error, each.exit_code = "failed", error, error.exit_code
    wrong = {each.loaded.label: each.error for each in record.combinations if each.error}
    if wrong and not keep_going:
        raise gathered(wrong)


def gathered(wrong: dict[str, MlxpipeError]) -> MlxpipeError:
    """The errors of several combinations as one, each finding once, of the worst kind."""
    where: dict[Diagnostic, list[str]] = {}
    for label, error in wrong.items():
        for item in error.diagnostics:
            where.setdefault(item, []).append(label)
    worst = max(wrong.values(), key=lambda error: error.exit_code)
    return type(worst).several(
        replace(item, notes=(*item.notes, f"in combination {', '.join(labels)}"))
        for item, labels in where.items()
    )


def _run(
    each: CombinationRecord,
    reporter: Reporter,
    run_one: Callable[[LoadedSpec, Reporter], RunRecord],
) -> None:
    _forget_the_last_one()
    try:
        each.record = run_one(each.loaded, reporter)
        each.exit_code = each.record.exit_code
    except RunFailedError as failure:
        each.record, each.error = failure.record, failure.cause
        each.exit_code = failure.record.exit_code
    except MlxpipeError as error:
        each.error, each.exit_code = error, error.exit_code
    except KeyboardInterrupt:
        each.status, each.exit_code = "interrupted", ExitCode.INTERRUPTED
        raise
    each.status = "done" if each.exit_code == ExitCode.OK else "failed"
    reporter.message(f"{each.loaded.label}: {each.status}")


def _forget_the_last_one() -> None:
    """Weights and the peak of one combination must not count for the next."""
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
    mx.reset_peak_memory()


def _summary(loaded: LoadedSpec) -> Path:
    folder = loaded.resolve(loaded.spec.outputs.dir) / loaded.name
    return folder / f"matrix-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}.json"


def _begin(record: MatrixRecord, loaded: LoadedSpec) -> None:
    try:
        record.summary.parent.mkdir(parents=True, exist_ok=True)
        record.save()
    except OSError as error:
        raise cannot_write(f"the summary {record.summary}", loaded, error) from error
