"""What differs between two specs, plans, locks or runs: settings, modules, metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from mlxpipe.checkpoint.json_reader import read_json
from mlxpipe.errors import Origin, UsageError
from mlxpipe.files import PLAN_FILE, RESOLVED_FILE, RUN_FILE
from mlxpipe.locking import read_lock
from mlxpipe.plan.planner import make_plan
from mlxpipe.spec import LOCK_SUFFIX, LoadedSpec, load_spec, read_yaml, resolved, spec_for_source

#: What of a run's record is a setting; the rest is when, where and how long.
SETTINGS_OF_A_RUN = ("seed", "numerics", "versions", "platform")


class Absent(Enum):
    """What one side does not have."""

    ABSENT = "-"

    def __str__(self) -> str:
        return self.value


ABSENT = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Side:
    """One of two things to compare, as flat tables.

    Attributes:
        kind: `spec`, `plan`, `lock` or `run`.
        label: As the user named it.
        settings: Dotted path -> value.
        modules: Module path -> what it is, for people.
        metrics: `task.metric` -> value; digests of outputs as well.
    """

    kind: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Change:
    """One name whose value differs; `ABSENT` on the side that lacks it."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Difference:
    """All that differs, by name within each table.

    Attributes:
        settings: Of the spec, the lock or the machine.
        modules: (before, after) -> the modules that went from one to the other.
        metrics: Of the tasks.
    """

    settings: tuple[Change, ...]
    modules: Mapping[tuple[str, str], tuple[str, ...]]
    metrics: tuple[Change, ...]

    def __bool__(self) -> bool:
        return bool(self.settings or self.modules or self.metrics)

    def as_json(self) -> dict[str, Any]:
        """The JSON of `mlxpipe diff --format json`."""
        return {
            "settings": [_row(each) for each in self.settings],
            "modules": [
                {"before": before, "after": after, "modules": list(paths)}
                for (before, after), paths in self.modules.items()
            ],
            "metrics": [_row(each) for each in self.metrics],
        }


def compare(one: Side, other: Side) -> Difference:
    """What changes from one side to the other."""
    moved: dict[tuple[str, str], list[str]] = {}
    for change in _changes(one.modules, other.modules):
        moved.setdefault((str(change.before), str(change.after)), []).append(change.name)
    return Difference(
        tuple(_changes(one.settings, other.settings)),
        {key: tuple(paths) for key, paths in moved.items()},
        tuple(_changes(one.metrics, other.metrics)),
    )


def open_side(path: str) -> Side:
    """Read a spec, a checkpoint directory, a plan's JSON, a lock or a run directory.

    Raises:
        UsageError: `nothing-to-compare`, where it is none of them; or as for a spec.
        LockError: a lock cannot be read.
        SourceError, PlanError: a spec cannot be planned.
    """
    place = Path(path)
    if (place / RUN_FILE).is_file():
        return _run(place, path)
    if place.is_dir():
        return _spec(spec_for_source(place), path)
    if place.name.endswith(LOCK_SUFFIX):
        return _lock(place, path)
    if place.suffix == ".json":
        return _plan(place, path)
    return _spec(load_spec(place), path)


def _run(folder: Path, label: str) -> Side:
    record = read_json(folder / RUN_FILE, f"{label}/{RUN_FILE}")
    spec = read_yaml(folder / RESOLVED_FILE).data
    plan = read_json(folder / PLAN_FILE, f"{label}/{PLAN_FILE}")
    kept = {key: record[key] for key in SETTINGS_OF_A_RUN if key in record}
    metrics = {
        f"{task['id']}.{name}": value
        for task in record.get("tasks", ())
        for name, value in {
            "status": task["status"],
            **task["metrics"],
            **{f"{name} (sha256)": digest for name, digest in task.get("digests", {}).items()},
        }.items()
    }
    settings = {**_flat(spec, "spec"), **_flat(kept)}
    return Side("run", label, settings, _modules(plan), metrics)


def _lock(path: Path, label: str) -> Side:
    # Checksums of pieces only say where a file changed.
    data = read_lock(path)[0].model_dump(exclude={"pieces"}, exclude_none=True)
    modules = data["table"].pop("modules")
    return Side("lock", label, _flat(data), modules)


def _spec(loaded: LoadedSpec, label: str) -> Side:
    plan = make_plan(loaded).as_json()
    return Side("spec", label, _flat(resolved(loaded)), _modules(plan), _totals(plan))


def _plan(path: Path, label: str) -> Side:
    plan = read_json(path, label)
    if not isinstance(plan, dict) or not isinstance(plan.get("modules"), dict):
        raise UsageError(
            "nothing-to-compare",
            f"{label} is no plan",
            origin=Origin(label),
            expected="a spec, a checkpoint or run directory, a lock, or what `mlxpipe plan "
            "--format json` printed",
        )
    kept = {key: plan.get(key) for key in ("source", "architecture", "precedence")}
    return Side("plan", label, _flat(kept), _modules(plan), _totals(plan))


def _totals(plan: Mapping[str, Any]) -> dict[str, Any]:
    return {f"plan.{name}": value for name, value in _flat(plan.get("totals", {})).items()}


def _modules(plan: Mapping[str, Any]) -> dict[str, str]:
    return {path: describe_module(module) for path, module in plan["modules"].items()}


def describe_module(module: Mapping[str, Any]) -> str:
    """A module of a plan's JSON in a few words: scheme, grade, who decided."""
    if "mode" in module:
        what = f"{module['mode']} {module['bits']}-bit g{module['group_size']}"
    else:
        what = "dense" if module.get("dense") else "undecided"
    stored = f" (stored as {module['stored']})" if "stored" in module else ""
    return f"{what}{stored}, {module['grade']}, by {module['source']}"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    return dict(_leaves(value, path))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{_name(item, index)}")
    else:
        yield path, value


def _name(item: Any, index: int) -> str:
    """Items are told apart by the id they have, so that one put in between moves no other."""
    return str(item["id"]) if isinstance(item, Mapping) and "id" in item else str(index)


def _changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[Change]:
    for name in dict.fromkeys([*one, *other]):
        before, after = one.get(name, ABSENT), other.get(name, ABSENT)
        # Compared as JSON, which tells 1 from 1.0 and from true.
        if ABSENT in (before, after) or json.dumps(before) != json.dumps(after):
            yield Change(name, before, after)


def _row(change: Change) -> dict[str, Any]:
    """A change as JSON; the side that lacks the name has no key."""
    sides = {"before": change.before, "after": change.after}
    return {"name": change.name, **{key: v for key, v in sides.items() if v is not ABSENT}}
