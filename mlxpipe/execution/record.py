"""The run directory: what was asked, what was decided, what came out.

<outputs.dir>/<name>/<id>/, of a matrix <outputs.dir>/<name>/<label>/<id>/
    spec.yaml            as written
    spec.resolved.yaml   with every default filled in
    spec.lock.yaml       digests of all that was read, as `mlxpipe lock` writes them
    plan.json
    run.json             rewritten, whole, after every change of state
    tasks/<id>/…         each task's outputs; progress.jsonl while a long one goes on
"""

from __future__ import annotations

import math
import os
import platform
import resource
import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mlxpipe.errors import ExecutionError, ExitCode
from mlxpipe.execution.expectations import Checked
from mlxpipe.files import PLAN_FILE, RESOLVED_FILE, RUN_FILE, write_json, write_text
from mlxpipe.locking import Lock, State, write_lock
from mlxpipe.locking.versions import versions
from mlxpipe.spec import LoadedSpec, resolved_yaml

Status = Literal["pending", "running", "done", "failed", "interrupted", "skipped"]

#: What differs between two runs that did the same: times, memory, places, and what was not done
#: again.
OCCASIONAL = frozenset(
    {
        "run_dir", "started", "load_seconds", "seconds", "peak_memory_bytes", "peak_resident_bytes",
        "reused_from", "resumed_from", "spec_directory",
    }
)  # fmt: skip


@dataclass(slots=True)
class TaskRecord:
    """One task's state; the only values of a run that change.

    Attributes:
        fingerprint: The digest of all that decides the result.
        outputs: Name -> absolute path.
        digests: Name of an output -> its SHA-256; of a directory, as `locking.tree_digest` has it.
        reused_from: The run whose result this is, "" where the task was done here.
        resumed_from: The interrupted run whose steps it went on from, "" for none.
    """

    id: str
    type: str
    fingerprint: str = ""
    status: Status = "pending"
    metrics: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    reused_from: str = ""
    resumed_from: str = ""

    def as_json(self) -> dict[str, Any]:
        """The contracted form; the last three only where they say something."""
        fields: dict[str, Any] = {
            "id": self.id,
            "type": self.type,
            "status": self.status,
            "metrics": {name: _finite(value) for name, value in self.metrics.items()},
            "outputs": self.outputs,
            "digests": self.digests,
            "fingerprint": self.fingerprint,
            "seconds": round(self.seconds, 6),
        }
        rare = {
            "error": self.error,
            "reused_from": self.reused_from,
            "resumed_from": self.resumed_from,
        }
        return {**fields, **{key: value for key, value in rare.items() if value}}


def _finite(value: Any) -> Any:
    """JSON has no infinity, which the perplexity of a broken model may be: it becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(slots=True)
class RunRecord:
    """A run as it goes on.

    Attributes:
        folder: The run directory.
        name: The spec's name.
        seed: The spec's.
        tasks: One record for each task of the spec.
        lock: The digests of all that is read, None where nobody took them.
        locked: Whether they were compared with a lock.
        numerics: Device and dtype.
        totals: The plan's sizes and counts.
        load_seconds: Time from the plan to a model in memory; 0 where no task asked for it.
        peak_memory_bytes: MLX's peak; 0 before it is known.
        peak_resident_bytes: The process's, when the record was last written.
        expectations: What the spec expects, and whether it holds.
        exit_code: What the command ends with.
        spec_directory: Where the spec's relative paths start, relative to `folder`, so that runs
            and specs can be moved together.
        label: Which combination of a matrix it is, else "".
        matrix: Axis of the matrix -> what this combination has there.
    """

    folder: Path
    name: str
    seed: int
    tasks: list[TaskRecord]
    lock: Lock | None = None
    locked: bool = False
    numerics: Mapping[str, Any] = field(default_factory=dict)
    totals: Mapping[str, Any] = field(default_factory=dict)
    started: str = field(default_factory=lambda: _now().isoformat(timespec="seconds"))
    load_seconds: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    peak_resident_bytes: int = 0
    expectations: list[Checked] = field(default_factory=list)
    exit_code: ExitCode = ExitCode.OK
    spec_directory: str = ""
    label: str = ""
    matrix: Mapping[str, Any] = field(default_factory=dict)

    def expect(self, checked: Iterable[Checked]) -> None:
        """Add what became of expectations; a miss decides the exit code of a run without errors."""
        self.expectations += checked
        if self.exit_code == ExitCode.OK and not all(each.passed for each in self.expectations):
            self.exit_code = ExitCode.EXPECTATION

    def as_json(self) -> dict[str, Any]:
        """The contracted run record; paths of outputs are absolute, so that programs find them."""
        return {
            "run_dir": str(self.folder.resolve()),
            "spec_directory": self.spec_directory,
            "name": self.name,
            **({"label": self.label, "matrix": dict(self.matrix)} if self.label else {}),
            "started": self.started,
            **(_sources(self.lock) if self.lock else {}),
            "locked": self.locked,
            "seed": self.seed,
            "numerics": dict(self.numerics),
            "totals": dict(self.totals),
            "versions": versions(),
            "platform": platform.platform(),
            "load_seconds": round(self.load_seconds, 6),
            "seconds": round(self.seconds, 6),
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_resident_bytes": self.peak_resident_bytes,
            "tasks": [task.as_json() for task in self.tasks],
            "expectations": [each.as_json() for each in self.expectations],
            "exit_code": int(self.exit_code),
        }

    def to_rows(self) -> list[dict[str, Any]]:
        """A row for each task with its metrics, such as pandas makes a data frame of."""
        from mlxpipe.execution.tables import task_row

        return [task_row(task) for task in self.tasks]

    def _repr_html_(self) -> str:
        from mlxpipe.execution.tables import run_html

        return run_html(self)

    def save(self) -> None:
        """Write run.json, whole or not at all."""
        self.peak_resident_bytes = _peak_resident_bytes()
        write_json(self.folder / RUN_FILE, self.as_json())


def _sources(lock: Lock) -> dict[str, Any]:
    return {
        "source": lock.source.model_dump(exclude_none=True),
        "lock": {"sha256": lock.sha256, "table": lock.table.sha256},
    }


def comparable(record: Mapping[str, Any]) -> dict[str, Any]:
    """A run record without what differs between two runs that did the same.

    Dates, durations, memory and the run directory go, and so does whether a result was taken from
    an earlier run; paths of outputs become relative to the run directory. Two runs of one spec on
    one machine have equal comparables.
    """
    root = Path(record["run_dir"])
    kept = {key: value for key, value in record.items() if key not in OCCASIONAL}
    return {**kept, "tasks": [_comparable_task(task, root) for task in record["tasks"]]}


def _comparable_task(task: Mapping[str, Any], root: Path) -> dict[str, Any]:
    kept = {key: value for key, value in task.items() if key not in OCCASIONAL}
    outputs = {name: Path(path) for name, path in task["outputs"].items()}
    return {
        **kept,
        "outputs": {
            name: str(path.relative_to(root) if path.is_relative_to(root) else path)
            for name, path in outputs.items()
        },
    }


def cannot_write(what: str, loaded: LoadedSpec, error: OSError) -> ExecutionError:
    """The error for something below a spec's `outputs.dir`."""
    return ExecutionError(
        "cannot-write",
        f"{what} cannot be written",
        origin=loaded.origin("outputs", "dir"),
        found=error.strerror or str(error),
        help="choose another place with outputs.dir",
    )


def begin(
    loaded: LoadedSpec,
    state: State,
    numerics: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    *,
    locked: bool = False,
) -> RunRecord:
    """Make a run directory and write what is known before the model is loaded.

    Args:
        loaded: The spec.
        state: What it means and reads.
        numerics: Device, dtype and kernels.
        fingerprints: Of each task.
        locked: Whether the state was compared with a lock.

    Raises:
        ExecutionError: `cannot-write`.
    """
    spec = loaded.spec
    parent = loaded.resolve(spec.outputs.dir) / loaded.name / loaded.label
    folder = parent / f"{_now():%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
    record = RunRecord(
        folder,
        loaded.name,
        spec.run.seed,
        [TaskRecord(task.id, task.type, fingerprints[task.id]) for task in spec.tasks],
        state.lock,
        locked,
        numerics,
        spec_directory=os.path.relpath(loaded.path.parent.resolve(), folder.resolve()),
        totals=state.plan.totals.as_json(),
        label=loaded.label,
        matrix=loaded.matrix,
    )
    try:
        folder.mkdir(parents=True)
        write_text(folder / "spec.yaml", loaded.text)
        write_text(folder / RESOLVED_FILE, resolved_yaml(loaded))
        write_lock(folder / "spec.lock.yaml", state.lock)
        write_json(folder / PLAN_FILE, state.plan.as_json())
        record.save()
    except OSError as error:
        raise cannot_write(f"the run directory {folder}", loaded, error) from error
    return record


def _peak_resident_bytes() -> int:
    """The most memory that this process has held so far, with everything it loaded."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes on Linux


def _now() -> datetime:
    return datetime.now(UTC)
