"""The run directory: what was asked, what was decided, what came out.

<outputs.dir>/<name>/<id>/, of a matrix <outputs.dir>/<name>/<label>/<id>/
    spec.yaml            as written
    spec.resolved.yaml   with every default filled in
    plan.json
    run.json             rewritten, whole, after every change of state
    tasks/<id>/…         each task's outputs
"""

from __future__ import annotations

import json
import os
import platform
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from mlxpipe.errors import ExecutionError, ExitCode
from mlxpipe.execution.expectations import Checked
from mlxpipe.plan.plan import Plan
from mlxpipe.spec import LoadedSpec, resolved_yaml

Status = Literal["pending", "running", "done", "failed", "interrupted", "skipped"]

PACKAGES = ("mlxpipe", "mlx", "mlx-lm", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(slots=True)
class TaskRecord:
    """One task's state; the only values of a run that change."""

    id: str
    type: str
    status: Status = "pending"
    metrics: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """The contracted form; `error` only where there is one."""
        fields: dict[str, Any] = {
            "id": self.id,
            "type": self.type,
            "status": self.status,
            "metrics": self.metrics,
            "outputs": self.outputs,
            "seconds": round(self.seconds, 6),
        }
        return {**fields, "error": self.error} if self.error else fields


@dataclass(slots=True)
class RunRecord:
    """A run as it goes on.

    Attributes:
        folder: The run directory.
        name: The spec's name.
        tasks: One record for each task of the spec.
        numerics: Device and dtype.
        load_seconds: Time from the plan to a model in memory; 0 where no task asked for it.
        peak_memory_bytes: MLX's peak.
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
    numerics: Mapping[str, Any] = field(default_factory=dict)
    started: str = field(default_factory=lambda: _now().isoformat(timespec="seconds"))
    load_seconds: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0
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
            "seed": self.seed,
            "numerics": dict(self.numerics),
            "versions": versions(),
            "platform": platform.platform(),
            "load_seconds": round(self.load_seconds, 6),
            "seconds": round(self.seconds, 6),
            "peak_memory_bytes": self.peak_memory_bytes,
            "tasks": [task.as_json() for task in self.tasks],
            "expectations": [each.as_json() for each in self.expectations],
            "exit_code": int(self.exit_code),
        }

    def save(self) -> None:
        """Write run.json, whole or not at all."""
        write_json(self.folder / "run.json", self.as_json())


def versions() -> dict[str, str]:
    """The versions that decide what a run computes."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def begin(loaded: LoadedSpec, plan: Plan, numerics: Mapping[str, Any]) -> RunRecord:
    """Make a run directory and write what is known before the model is loaded.

    Raises:
        ExecutionError: `cannot-write`.
    """
    spec = loaded.spec
    parent = loaded.resolve(spec.outputs.dir) / loaded.name / loaded.label
    folder = parent / f"{_now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    record = RunRecord(
        folder,
        loaded.name,
        spec.run.seed,
        [TaskRecord(task.id, task.type) for task in spec.tasks],
        numerics,
        spec_directory=os.path.relpath(loaded.path.parent.resolve(), folder.resolve()),
        label=loaded.label,
        matrix=loaded.matrix,
    )
    try:
        folder.mkdir(parents=True)
        write_text(folder / "spec.yaml", loaded.text)
        write_text(folder / "spec.resolved.yaml", resolved_yaml(loaded))
        write_json(folder / "plan.json", plan.as_json())
        record.save()
    except OSError as error:
        raise ExecutionError(
            "cannot-write",
            f"the run directory {folder} cannot be written",
            origin=loaded.origin("outputs", "dir"),
            found=error.strerror or str(error),
            help="choose another place with outputs.dir",
        ) from error
    return record


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _now() -> datetime:
    return datetime.now(UTC)
