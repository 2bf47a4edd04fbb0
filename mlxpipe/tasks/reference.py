"""The other model of a `compare` task: from what the spec says to a plan and a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.source import open_source
from mlxpipe.errors import MlxpipeError, Origin, UsageError
from mlxpipe.files import PLAN_FILE, RESOLVED_FILE, RUN_FILE
from mlxpipe.plan.plan import Plan
from mlxpipe.plan.planner import plan_checkpoint
from mlxpipe.spec import (
    CompareTask,
    LoadedSpec,
    Reference,
    load_spec,
    parse_spec,
    read_text,
    spec_beside,
)
from mlxpipe.spec.load import override

if TYPE_CHECKING:
    from mlxpipe.graph.numerics import Numerics

#: The keys of `source` that a reference may have too.
SOURCE_KEYS = ("path", "hub", "revision", "ollama", "store")

#: What a run leaves that says how to make its model again.
RUN_FILES = (RUN_FILE, RESOLVED_FILE, PLAN_FILE)


@dataclass(frozen=True, slots=True)
class PlannedReference:
    """A model to compare with, decided and not yet loaded.

    Attributes:
        label: What people know it by.
        checkpoint: Its open checkpoint.
        plan: A sound plan.
        numerics: Device, dtype and kernels.
    """

    label: str
    checkpoint: Checkpoint
    plan: Plan
    numerics: Numerics


def plan_references(loaded: LoadedSpec) -> dict[int, PlannedReference]:
    """Number of each `compare` task -> its reference, planned from headers alone.

    Raises:
        MlxpipeError: as planning the reference by itself would, with a note on whose it is.
    """
    return {
        number: _plan(loaded, number, task)
        for number, task in enumerate(loaded.spec.tasks)
        if isinstance(task, CompareTask)
    }


def reference_specs(loaded: LoadedSpec) -> dict[str, LoadedSpec]:
    """`<task>.reference` -> the spec of the reference, for what is locked and recognised.

    Raises:
        UsageError: as `reference_spec`.
    """
    return {
        f"{task.id}.reference": reference_spec(loaded, number, task)
        for number, task in enumerate(loaded.spec.tasks)
        if isinstance(task, CompareTask)
    }


def _plan(loaded: LoadedSpec, number: int, task: CompareTask) -> PlannedReference:
    spec = reference_spec(loaded, number, task)
    with _noted(loaded, number, task):
        checkpoint = open_source(spec, progress=True)
        plan = plan_checkpoint(spec, checkpoint).require_sound()
        if task.reference.run is not None:
            _check_unchanged(plan, loaded.resolve(task.reference.run))
        # Imported after the plan, so that a wrong one is refused without loading MLX's layers.
        from mlxpipe.graph.numerics import choose

        return PlannedReference(checkpoint.label, checkpoint, plan, choose(spec, plan))


def reference_spec(loaded: LoadedSpec, number: int, task: CompareTask) -> LoadedSpec:
    """The spec that describes a task's reference; it computes on this spec's device.

    A bare checkpoint is read by its own declarations, in this spec's dtype and kernels.

    Raises:
        UsageError: the other spec is wrong; `no-such-run`, `bad-run`.
    """
    reference = task.reference
    if reference.spec is not None or reference.run is not None:
        other = _written(loaded, number, reference)
        return override(other, ("model", "device"), loaded.spec.model.device)
    given = reference.model_dump(include=set(SOURCE_KEYS), exclude_none=True)
    return spec_beside(loaded, {key: given[key] for key in SOURCE_KEYS if key in given})


def _written(loaded: LoadedSpec, number: int, reference: Reference) -> LoadedSpec:
    if reference.spec is not None:
        return load_spec(loaded.resolve(reference.spec))
    assert reference.run is not None
    origin = loaded.origin("tasks", number, "reference", "run")
    return _spec_of_run(loaded.resolve(reference.run), reference.run, origin)


# --- earlier runs ----------------------------------------------------------------------------


def _spec_of_run(folder: Path, label: str, origin: Origin) -> LoadedSpec:
    """The resolved spec of a run, its paths starting from where they started then."""
    missing = [name for name in RUN_FILES if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            "no-such-run",
            f"{label} is not the directory of a run",
            origin=origin,
            found="no such directory" if not folder.is_dir() else f"no {', '.join(missing)} in it",
            expected="a directory that `mlxpipe run` made: <outputs.dir>/<name>/<id>",
            help="paths are relative to the spec",
        )
    written = _json(folder / RUN_FILE, label, origin).get("spec_directory")
    if not isinstance(written, str):
        raise UsageError(
            "bad-run",
            f"run.json of {label} does not say where its spec was",
            origin=origin,
            expected="spec_directory: a path relative to the run's directory",
            help="run that spec again, or name it: reference: {spec: ...}",
        )
    text = read_text(folder / RESOLVED_FILE)
    return parse_spec(text, f"{label}/spec.resolved.yaml", folder / written)


def _check_unchanged(plan: Plan, folder: Path) -> None:
    """Refuse a run whose model is no longer what it was, as far as plans can tell."""
    then = _json(folder / PLAN_FILE, folder.name, Origin(f"{folder.name}/{PLAN_FILE}"))
    now = plan.as_json()
    changed = sorted(
        path
        for path in {*now["modules"], *then.get("modules", {})}
        if _scheme(now["modules"].get(path)) != _scheme(then.get("modules", {}).get(path))
    )
    if changed:
        raise UsageError(
            "run-changed",
            "the checkpoint of the earlier run is planned otherwise today",
            found=f"{len(changed)} modules differ, e.g. {changed[0]}",
            expected="what the run's plan.json says",
            help="compare with what is there now: reference: {path: ...} or {spec: ...}",
        )


def _scheme(module: Mapping[str, Any] | None) -> tuple[Any, ...]:
    return tuple((module or {}).get(key) for key in ("mode", "bits", "group_size", "dense"))


def _json(path: Path, label: str, origin: Origin) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            "bad-run", f"{path.name} of {label} cannot be read", origin=origin, found=str(error)
        ) from None
    return value if isinstance(value, dict) else {}


@contextmanager
def _noted(loaded: LoadedSpec, number: int, task: CompareTask) -> Iterator[None]:
    """Say of every error inside that it is about the reference, and of which task."""
    try:
        yield
    except MlxpipeError as error:
        note = f"this is the reference of task '{task.id}', {loaded.origin('tasks', number)}"
        raise type(error).several(
            replace(each, notes=(*each.notes, note)) for each in error.diagnostics
        ) from error


# --- loading ---------------------------------------------------------------------------------


def bytes_in_memory(plan: Plan, numerics: Numerics) -> int:
    """About how many bytes a model's weights take once they are loaded."""
    dtype = numerics.mlx_dtype
    total = plan.totals.nbytes
    for module in plan.modules.values():
        if dtype is not None and (module.landing is None or numerics.dense):
            total += module.weights * dtype.size - module.final_bytes
    return total
