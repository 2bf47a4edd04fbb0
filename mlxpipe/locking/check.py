"""Making a lock, and comparing with one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.source import open_source
from mlxpipe.errors import Diagnostic, LockError, MlxpipeError, SourceError, UsageError
from mlxpipe.locking.contents import source_files
from mlxpipe.locking.differences import Sides, differences
from mlxpipe.locking.digests import Digests
from mlxpipe.locking.lock import Lock
from mlxpipe.locking.lockfile import lock_path, read_lock
from mlxpipe.locking.state import Others, read_paths, take_lock, with_files
from mlxpipe.plan.plan import Plan
from mlxpipe.plan.planner import plan_checkpoint
from mlxpipe.spec import Document, LoadedSpec


class State(NamedTuple):
    """A spec with all it reads, planned and digested."""

    checkpoint: Checkpoint
    plan: Plan
    lock: Lock


def take(loaded: LoadedSpec, digests: Digests, others: Others | None = None) -> State:
    """Open, plan and digest a spec; arguments as for `take_lock`.

    Raises:
        MlxpipeError: as for `plan_checkpoint` and `take_lock`; data that a task names and that is
            missing is an error here (`missing-data`), because there is nothing to lock.
    """
    checkpoint = open_source(loaded, progress=True)
    plan = plan_checkpoint(loaded, checkpoint).require_sound()
    _require_data(loaded)
    return State(checkpoint, plan, take_lock(loaded, checkpoint, plan, digests, others))


def compare(
    loaded: LoadedSpec,
    digests: Digests,
    path: Path | None = None,
    *,
    versions: bool = True,
    others: Others | None = None,
) -> tuple[State | None, tuple[Diagnostic, ...]]:
    """Compare a spec with its lock.

    Args:
        loaded: The spec.
        digests: Reads the files.
        path: The lock file; by default the one beside the spec.
        versions: Whether other versions of mlxpipe, MLX and the others are differences.
        others: As for `take_lock`.

    Returns:
        The state of here and now (None where no plan can be made), and what is not as locked.

    Raises:
        LockError: there is no lock, or it cannot be read.
        MlxpipeError: nothing differs, and yet there is no sound plan; or the source is not there.
    """
    locked, document = read_lock(path or lock_path(loaded))
    try:
        checkpoint = open_source(loaded, progress=True)
    except SourceError as error:
        damaged = _damaged(loaded, locked, document, digests)
        if not damaged:
            raise
        return None, (*damaged, *error.diagnostics)
    plan, failure = _try_plan(loaded, checkpoint)
    lock = take_lock(loaded, checkpoint, plan, digests, others)
    sides = Sides(locked, lock, document, checkpoint, _paths(loaded, checkpoint))
    found = [each for each in differences(sides) if versions or each.code != "version-changed"]
    if plan is None:
        # The table cannot be compared; what keeps it from being made is the better message.
        found = [each for each in found if each.code != "table-changed"]
        found += failure.diagnostics if failure and found else ()
    if failure and not found:
        raise failure
    return State(checkpoint, plan, lock) if plan else None, tuple(found)


def require_locked(
    loaded: LoadedSpec,
    digests: Digests,
    path: Path | None = None,
    *,
    versions: bool = True,
    others: Others | None = None,
) -> State:
    """The state of a spec that is as its lock says; arguments as for `compare`.

    Raises:
        LockError: with every difference; otherwise as `compare`.
    """
    state, found = compare(loaded, digests, path, versions=versions, others=others)
    if found:
        raise LockError.several(found)
    assert state is not None  # without a plan there are differences or an error
    return state


def _damaged(
    loaded: LoadedSpec, locked: Lock, document: Document, digests: Digests
) -> tuple[Diagnostic, ...]:
    """Which files of a directory are not as locked, where it cannot be opened."""
    if loaded.spec.source.path is None:
        return ()
    root = loaded.resolve(loaded.spec.source.path)
    paths = {name: root / name for name in (*locked.files, *locked.tokenizer)}
    there = {name: path for name, path in paths.items() if path.is_file()}
    if not there:
        return ()
    found = with_files(locked, digests.of_files(there))
    return differences(Sides(locked, found, document, None, there))


def _try_plan(
    loaded: LoadedSpec, checkpoint: Checkpoint
) -> tuple[Plan | None, MlxpipeError | None]:
    try:
        return plan_checkpoint(loaded, checkpoint).require_sound(), None
    except MlxpipeError as error:
        return None, error


def _paths(loaded: LoadedSpec, checkpoint: Checkpoint) -> dict[str, Path]:
    """The files by their names in the lock."""
    data = {
        f"{task.id}.{'.'.join(map(str, value.keys))}": loaded.resolve(value.text)
        for task in loaded.spec.tasks
        for value in read_paths(task)
    }
    return {**source_files(checkpoint), **data}


def _require_data(loaded: LoadedSpec) -> None:
    for number, task in enumerate(loaded.spec.tasks):
        for value in read_paths(task):
            if not loaded.resolve(value.text).exists():
                raise UsageError(
                    "missing-file",
                    f"{value.text} does not exist",
                    origin=loaded.origin("tasks", number, *value.keys),
                    help="paths are relative to the spec",
                )
