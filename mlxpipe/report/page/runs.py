"""What a run directory holds, as values that a page can show."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlxpipe.checkpoint.json_reader import read_json
from mlxpipe.errors import Origin, UsageError
from mlxpipe.files import PLAN_FILE, RUN_FILE

#: Units of quality, the better the less: the first that every run has is plotted against the size.
QUALITIES = ("kl_divergence", "perplexity", "bits_per_byte")


@dataclass(frozen=True, slots=True)
class Cell:
    """One module in a picture of a model's layers.

    Attributes:
        layer: Number of its decoder layer, None outside of them.
        kind: Its path inside the layer, or the whole path.
        scheme: `affine 4-bit g64`, or `dense`.
        bits: 0 where it is dense.
    """

    layer: int | None
    kind: str
    scheme: str
    bits: int


@dataclass(frozen=True, slots=True)
class RunView:
    """One run.

    Attributes:
        label: What tells it from the others.
        record: run.json.
        plan: plan.json.
        outputs: (task id, name of the output) -> what the file holds, if it is JSON.
    """

    label: str
    record: Mapping[str, Any]
    plan: Mapping[str, Any]
    outputs: Mapping[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    @property
    def metrics(self) -> dict[str, Any]:
        """`task.metric` -> number."""
        return {
            f"{task['id']}.{name}": value
            for task in self.record["tasks"]
            for name, value in task["metrics"].items()
            if value is not None
        }

    @property
    def totals(self) -> Mapping[str, Any]:
        """Sizes and counts of the plan."""
        totals: Mapping[str, Any] = self.plan.get("totals", {})
        return totals

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every module that could be quantised."""
        return tuple(_cell(path, module) for path, module in self.plan["modules"].items())

    def named(self, output: str) -> dict[str, Any]:
        """Task id -> what its output of that name holds."""
        return {task: value for (task, name), value in self.outputs.items() if name == output}


def open_runs(paths: Iterable[str | Path]) -> list[RunView]:
    """Read run directories, and matrices' summaries (`matrix-….json`), in order.

    Raises:
        UsageError: `no-run`.
        SourceError: a file of a run is malformed.
    """
    folders = [folder for path in paths for folder in _folders(Path(path))]
    views = [_open(folder) for folder in folders]
    if len({view.label for view in views}) < len(views):
        views = [
            RunView(f"{view.label} {folder.name}", view.record, view.plan, view.outputs)
            for view, folder in zip(views, folders, strict=True)
        ]
    return views


def _folders(path: Path) -> Iterator[Path]:
    if (path / RUN_FILE).is_file():
        yield path
        return
    if path.suffix == ".json" and path.is_file():
        summary = read_json(path, str(path))
        if isinstance(summary, dict) and isinstance(summary.get("runs"), list):
            yield from (Path(run["run_dir"]) for run in summary["runs"] if "run_dir" in run)
            return
    raise UsageError(
        "no-run",
        f"{path} is no run",
        origin=Origin(str(path)),
        expected=f"a run directory with {RUN_FILE} in it, or the summary of a matrix",
        help="run a spec first; it says where its record is",
    )


def _open(folder: Path) -> RunView:
    record = read_json(folder / RUN_FILE, str(folder / RUN_FILE))
    outputs = {
        (task["id"], name): value
        for task in record["tasks"]
        for name, path in task["outputs"].items()
        # Where the run was moved, its outputs are still where they were inside it.
        for value in _read(folder / "tasks" / task["id"] / Path(path).name)
    }
    label = record.get("label") or record["name"]
    return RunView(label, record, read_json(folder / PLAN_FILE, str(folder / PLAN_FILE)), outputs)


def _read(path: Path) -> Iterator[Any]:
    """What a JSON file holds, or the objects of JSON lines; nothing for others."""
    if path.suffix == ".json" and path.is_file():
        yield read_json(path, str(path))
    if path.suffix == ".jsonl" and path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        yield [json.loads(line) for line in lines if line.strip()]


def _cell(path: str, module: Mapping[str, Any]) -> Cell:
    segments = path.split(".")
    at = next((index for index, each in enumerate(segments) if each.isdecimal()), None)
    packed = "mode" in module
    scheme = f"{module['mode']} {module['bits']}-bit g{module['group_size']}" if packed else "dense"
    bits = module["bits"] if packed else 0
    if at is None:
        return Cell(None, path, scheme, bits)
    return Cell(int(segments[at]), ".".join(segments[at + 1 :]), scheme, bits)


def quality(views: Iterable[RunView]) -> str:
    """The metric that tells how good the runs are, as `task.metric`; "" where they share none."""
    shared = [set(view.metrics) for view in views]
    common = set.intersection(*shared) if shared else set()
    for name in QUALITIES:
        found = sorted(each for each in common if each.rpartition(".")[2] == name)
        if found:
            return found[0]
    return ""
