"""What quantising each module costs, and a recipe that spends bits where they count.

One unit at a time (a module, a layer, or what has the same place in every layer) is replaced by its
quantised form, everything else being as it is, and the text is read again:

* `kl`: KL(as it is ‖ with the unit quantised), nats per token (`tasks.divergence`);
* `output_error`: ‖y_quantised - y‖ / ‖y‖ of the module itself, whose inputs do not change.

The model's log-probabilities as it is are kept: 4 bytes for each token and word of the vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import yaml

from mlxpipe.errors import UsageError
from mlxpipe.graph.swap import KINDS, requantised, swapped
from mlxpipe.naming.names import matches
from mlxpipe.plan.plan import Plan, PlannedModule
from mlxpipe.plan.recipe import float_bytes
from mlxpipe.quant.modes import Scheme, complete, packed_bytes
from mlxpipe.spec import SensitivityTask, resolved
from mlxpipe.tasks.allocation import Choice, allocate, as_rules, give_back, place, smallest
from mlxpipe.tasks.base import Context, Outcome
from mlxpipe.tasks.divergence import ROWS, kl_of_log_probabilities, log_softmax, total
from mlxpipe.tasks.listening import call, listening
from mlxpipe.tasks.windows import WindowedText, read_windows

#: How many of the worst units people are shown.
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Trial:
    """A unit under a candidate, before anything is measured.

    Attributes:
        unit: What the unit is called: a module's path, a layer's, or a place in every layer.
        scheme: The candidate.
        modules: The modules that it changes.
        nbytes: Bytes that they then take.
        bytes_saved: Bytes less than as they are; below zero where they become larger.
    """

    unit: str
    scheme: Scheme
    modules: tuple[str, ...]
    nbytes: int
    bytes_saved: int


@dataclass(frozen=True, slots=True)
class Row:
    """A trial's outcome, one row of the table; `output_error` is None for several modules."""

    unit: str
    scheme: Scheme
    modules: tuple[str, ...]
    kl: float
    output_error: float | None
    bytes_saved: int
    weights: int

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready row; a divergence that is no finite number is null."""
        fields = {**asdict(self), "modules": list(self.modules)}
        return {**fields, "kl": self.kl if math.isfinite(self.kl) else None}


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Measure every unit. Outputs: `sensitivity`, and `recipe` where a target is given."""
    task = context.loaded.spec.tasks[number]
    assert isinstance(task, SensitivityTask)
    candidates = _candidates(context, task, number)
    units = _units(context.plan, task)
    trials = list(_trials(context.plan, units, candidates))
    if not trials:
        raise _nothing_to_try(context, number)
    if task.target_bits_per_weight is not None:
        _check_target(context, task, number, trials)
    text = read_windows(context, task, number)
    rows = _measure(context, text, trials)
    metrics: dict[str, float | int] = {
        "measured": len(units),
        "tokens": sum(window.targets for window in text.windows),
        "worst_kl": max(row.kl for row in rows),
    }
    errors = [row.output_error for row in rows if row.output_error is not None]
    if errors:
        metrics["worst_output_error"] = max(errors)
    _show(context, rows)
    outputs = {"sensitivity": _write_table(context, rows, units, folder)}
    if task.target_bits_per_weight is not None:
        found, outputs["recipe"] = _write_recipe(context, task, rows, folder)
        metrics |= found
    return Outcome(metrics, outputs)


# --- what to try -----------------------------------------------------------------------------


def _candidates(context: Context, task: SensitivityTask, number: int) -> list[Scheme]:
    schemes = []
    for index, written in enumerate(task.candidates):
        try:
            schemes.append(complete(written.mode, written.bits, written.group_size))
        except ValueError as problem:
            origin = context.loaded.origin("tasks", number, "candidates", index)
            raise UsageError("unknown-scheme", str(problem), origin=origin) from None
    return list(dict.fromkeys(schemes))


def _units(plan: Plan, task: SensitivityTask) -> dict[str, tuple[str, ...]]:
    """Unit -> its modules; what no form of ours or a rule of the spec speaks for is left out."""
    name = GROUPS[task.group]
    units: dict[str, list[str]] = {}
    for path, module in plan.modules.items():
        if module.kind in KINDS and module.recipe is None and matches(task.match, path):
            units.setdefault(name(path), []).append(path)
    return {unit: tuple(paths) for unit, paths in units.items()}


def _layer(path: str) -> str:
    """The path of the layer that a module is in, or its own."""
    segments = path.split(".")
    at = next((at for at, segment in enumerate(segments) if segment.isdigit()), len(segments))
    return ".".join(segments[: at + 1])


GROUPS: Mapping[str, Callable[[str], str]] = {"module": str, "layer": _layer, "kind": place}


def _trials(
    plan: Plan, units: Mapping[str, Sequence[str]], candidates: Sequence[Scheme]
) -> Iterator[Trial]:
    for unit, paths in units.items():
        for scheme in candidates:
            fitting = [plan.modules[path] for path in paths if _takes(plan.modules[path], scheme)]
            if fitting:
                nbytes = sum(_bytes(module, scheme) for module in fitting)
                before = sum(module.final_bytes for module in fitting)
                names = tuple(module.path for module in fitting)
                yield Trial(unit, scheme, names, nbytes, before - nbytes)


def _takes(module: PlannedModule, scheme: Scheme) -> bool:
    """Whether a module can be packed so, and is not already."""
    width = module.verdict.evidence.in_features
    return width is not None and width % scheme.group_size == 0 and module.landing != scheme


def _bytes(module: PlannedModule, scheme: Scheme) -> int:
    return packed_bytes(scheme, module.weights, float_bytes(module.verdict.evidence))


def _nothing_to_try(context: Context, number: int) -> UsageError:
    return UsageError(
        "nothing-to-try",
        "no module can be quantised by any of the candidates",
        origin=context.origin(number, "match"),
        expected="modules that no rule of `quantize` changes, whose widths the group sizes divide",
        help="look at `mlxpipe plan --all`",
    )


# --- measuring -------------------------------------------------------------------------------


def _measure(context: Context, text: WindowedText, trials: Sequence[Trial]) -> list[Row]:
    model = context.model
    layers = dict(model.named_modules())
    before = [_log_probabilities(model, text, at) for at in range(len(text.windows))]
    rows = []
    with context.reporter.bar("sensitivity", len(trials), "trials") as advance:
        for done, trial in enumerate(trials, 1):
            others = {path: _other(context, layers[path], path, trial) for path in trial.modules}
            with swapped(model, others):
                rows.append(_try(model, text, before, trial, others, layers, context.plan))
            advance(done)
    return sorted(rows, key=lambda row: (-row.kl, row.unit))


def _other(context: Context, layer: Any, path: str, trial: Trial) -> Any:
    return requantised(layer, context.plan.modules[path], trial.scheme, context.numerics)


def _try(
    model: Any,
    text: WindowedText,
    before: Sequence[mx.array],
    trial: Trial,
    others: Mapping[str, Any],
    layers: Mapping[str, Any],
    plan: Plan,
) -> Row:
    """The model as it now is, over all windows, against what it was."""
    sums = [0.0, 0.0]

    def compare(name: str, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        theirs = call(layers, name, args, kwargs).astype(mx.float32)
        sums[0] += total(mx.square(result.astype(mx.float32) - theirs))
        sums[1] += total(mx.square(theirs))

    nats, tokens = 0.0, 0
    alone = len(trial.modules) == 1
    with listening(others if alone else {}, compare):
        for at, reference in enumerate(before):
            found = _log_probabilities(model, text, at)
            nats += _divergence(reference, found)
            tokens += reference.shape[0]
    kl = nats / tokens
    return Row(
        trial.unit,
        trial.scheme,
        trial.modules,
        kl if math.isfinite(kl) else math.inf,
        math.sqrt(sums[0] / sums[1]) if alone and sums[1] else None,
        trial.bytes_saved,
        sum(plan.modules[path].weights for path in trial.modules),
    )


def _log_probabilities(model: Any, text: WindowedText, at: int) -> mx.array:
    """Log-probabilities [n, V] of what comes at the scored tokens of a window."""
    window = text.windows[at]
    logits = model(text.tokens(window)[:, :-1])[0, text.first(window) - 1 :]
    found = log_softmax(logits)
    mx.eval(found)
    return found


def _divergence(reference: mx.array, candidate: mx.array) -> float:
    """Sum of KL(reference ‖ candidate) over rows of log-probabilities [n, V], nats."""
    return math.fsum(
        total(kl_of_log_probabilities(reference[at : at + ROWS], candidate[at : at + ROWS]))
        for at in range(0, reference.shape[0], ROWS)
    )


# --- what comes out --------------------------------------------------------------------------


def _show(context: Context, rows: Sequence[Row]) -> None:
    shown = [(row.unit, str(row.scheme), row.kl, row.output_error) for row in rows[:SHOWN]]
    columns = ("unit", "quantised to", "KL, nats", "output error")
    context.reporter.table("what costs most", columns, shown)


def _write_table(
    context: Context,
    rows: Sequence[Row],
    units: Mapping[str, Sequence[str]],
    folder: Path,
) -> Path:
    measured = {path for row in rows for path in row.modules}
    path = folder / "sensitivity.json"
    data = {
        "rows": [row.as_json() for row in rows],
        "units": {unit: list(paths) for unit, paths in units.items()},
        "not_measured": [name for name in context.plan.modules if name not in measured],
    }
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return path


def _choices(trials: Sequence[Trial | Row]) -> dict[str, list[Choice]]:
    """Unit -> as it is, and then each trial that saves bytes."""
    choices: dict[str, list[Choice]] = {}
    for trial in trials:
        # Modules that a candidate does not fit keep their bytes: only differences count.
        listed = choices.setdefault(trial.unit, [Choice(None, 0, 0.0)])
        kl = trial.kl if isinstance(trial, Row) else 0.0
        if trial.bytes_saved > 0 and math.isfinite(kl):
            listed.append(Choice(trial.scheme, -trial.bytes_saved, kl))
    return choices


def _wanted_bytes(plan: Plan, task: SensitivityTask) -> float:
    assert task.target_bits_per_weight is not None
    return task.target_bits_per_weight * plan.totals.weights / 8


def _check_target(
    context: Context, task: SensitivityTask, number: int, trials: Sequence[Trial]
) -> None:
    totals = context.plan.totals
    least = smallest(_choices(trials), totals.weight_bytes)
    if least > _wanted_bytes(context.plan, task):
        raise UsageError(
            "unreachable-target",
            "no choice of the candidates is so small",
            origin=context.origin(number, "target_bits_per_weight"),
            found=f"{8 * least / totals.weights:.3f} bits per weight at the least",
            help="add a smaller candidate, or raise the target",
        )


def _write_recipe(
    context: Context, task: SensitivityTask, rows: Sequence[Row], folder: Path
) -> tuple[dict[str, float], Path]:
    """The rules of the spec, then those found, as a file that other specs can take over."""
    plan = context.plan
    choices, wanted = _choices(rows), _wanted_bytes(plan, task)
    taken = allocate(choices, plan.totals.weight_bytes, wanted)
    nbytes = plan.totals.weight_bytes + sum(choice.nbytes for choice in taken.values())
    taken = give_back(choices, taken, wanted - nbytes)
    schemes = {
        path: row.scheme
        for row in rows
        if taken[row.unit].scheme == row.scheme
        for path in row.modules
    }
    saved = -sum(choice.nbytes for choice in taken.values())
    bits = 8 * (plan.totals.weight_bytes - saved) / plan.totals.weights
    nats = math.fsum(choice.divergence for choice in taken.values())
    rules = [*resolved(context.loaded)["quantize"], *as_rules(schemes, plan.modules)]
    head = (
        f"# {bits:.4f} bits per weight, target {task.target_bits_per_weight}; single divergences "
        f"add up to {nats:.6g} nats per token\n"
    )
    path = folder / "recipe.yaml"
    text = yaml.safe_dump({"quantize": rules}, sort_keys=False, default_flow_style=None, width=100)
    path.write_text(head + text, encoding="utf-8")
    return {"recipe_bits_per_weight": bits, "recipe_kl_sum": nats}, path
