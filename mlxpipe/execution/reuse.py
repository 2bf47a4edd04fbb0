"""Earlier runs of the same spec: finished tasks to reuse, interrupted ones to go on with.

A task is known by its fingerprint. Nothing in an earlier run directory is ever written to.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxpipe.errors import MlxpipeError
from mlxpipe.files import RUN_FILE
from mlxpipe.locking import Digests, tree_digest
from mlxpipe.tasks.progress import FILE, read_progress

#: States in which a task may have left steps that are done.
BEGUN = frozenset({"running", "interrupted", "failed"})


@dataclass(frozen=True, slots=True)
class EarlierTask:
    """A task of an earlier run.

    Attributes:
        folder: That run's directory, where it is now.
        recorded: The run directory as its record has it; the paths of outputs begin with it.
        data: The task's record.
    """

    folder: Path
    recorded: Path
    data: Mapping[str, Any]

    @property
    def place(self) -> Path:
        """The task's own directory."""
        return self.folder / "tasks" / str(self.data["id"])

    def outputs(self) -> dict[str, Path]:
        """Name -> output, where it is now."""
        return {name: self._moved(Path(path)) for name, path in self.data["outputs"].items()}

    def _moved(self, path: Path) -> Path:
        inside = path.is_relative_to(self.recorded)
        return self.folder / path.relative_to(self.recorded) if inside else path

    def unchanged(self, digests: Digests) -> bool:
        """Whether every output is still what the record says."""
        try:
            return all(
                tree_digest(path, name, digests) == self.data["digests"][name]
                for name, path in self.outputs().items()
            )
        except (MlxpipeError, OSError, KeyError):
            return False


class Earlier:
    """The tasks of the runs beside one, the newest run first.

    Args:
        folder: The run that is going on.
        digests: Reads outputs again.
        wanted: False finds nothing, whatever there is.
    """

    def __init__(self, folder: Path, digests: Digests, *, wanted: bool = True) -> None:
        self._digests = digests
        beside = sorted(folder.parent.iterdir(), reverse=True) if wanted else []
        self._tasks = [task for each in beside if each != folder for task in _tasks(each)]

    def finished(self, fingerprint: str) -> EarlierTask | None:
        """A finished task with this fingerprint, its outputs unchanged."""
        done = self._like(fingerprint, {"done"})
        return next((task for task in done if task.unchanged(self._digests)), None)

    def begun(self, fingerprint: str) -> EarlierTask | None:
        """An unfinished task with this fingerprint, that with the most steps done."""
        found = [(len(_steps(task)), task) for task in self._like(fingerprint, BEGUN)]
        steps, task = max(found, key=lambda each: each[0], default=(0, None))
        return task if steps else None

    def _like(self, fingerprint: str, states: frozenset[str] | set[str]) -> Iterator[EarlierTask]:
        for task in self._tasks:
            if task.data["fingerprint"] == fingerprint and task.data["status"] in states:
                yield task


def copy_outputs(task: EarlierTask, folder: Path) -> dict[str, Path]:
    """Copy a finished task's directory; returns its outputs, those outside where they are."""
    shutil.copytree(task.place, folder, dirs_exist_ok=True)
    return {
        name: folder / path.relative_to(task.place) if path.is_relative_to(task.place) else path
        for name, path in task.outputs().items()
    }


def copy_progress(task: EarlierTask, folder: Path) -> int:
    """Copy the steps that an unfinished task has done; returns how many.

    It may go on in another process meanwhile; whole lines are taken.
    """
    rows = _steps(task)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / FILE).write_text(lines, encoding="utf-8")
    return len(rows)


def _steps(task: EarlierTask) -> list[dict[str, Any]]:
    return read_progress(task.place / FILE)


def _tasks(folder: Path) -> Iterator[EarlierTask]:
    """The tasks of a run directory that can be recognised; none where there is no such record."""
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        recorded, tasks = Path(record["run_dir"]), list(record["tasks"])
    except (OSError, ValueError, KeyError, TypeError):
        return
    for task in tasks:
        if isinstance(task, dict) and _is_whole(task):
            yield EarlierTask(folder, recorded, task)


def _is_whole(task: Mapping[str, Any]) -> bool:
    texts = all(isinstance(task.get(key), str) for key in ("id", "type", "status", "fingerprint"))
    tables = all(isinstance(task.get(key), dict) for key in ("metrics", "outputs", "digests"))
    # The id becomes a path.
    return texts and tables and Path(task["id"]).name == task["id"]
