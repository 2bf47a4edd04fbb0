"""A plan, an explanation and a run, for people.

Text that comes from a checkpoint or a model may hold anything, so it never goes through rich's
markup, and control characters are shown, not obeyed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlxpipe.errors import Diagnostic, Origin, render_all
from mlxpipe.execution.expectations import Checked
from mlxpipe.execution.record import RunRecord
from mlxpipe.plan.explain import Explanation
from mlxpipe.plan.plan import Plan, PlannedModule
from mlxpipe.quant.merge import Fate
from mlxpipe.quant.verify import arithmetic

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: What tasks add to the name of a metric for its spread.
_SPREAD = frozenset({"min", "max", "iqr", "stderr"})

_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}

_FATES = {
    Fate.WON: "green",
    Fate.AGREES: "green",
    Fate.CONTRADICTED: "bold red",
    Fate.CONFLICT: "yellow",
    Fate.STALE: "yellow",
}


class PipedConsole(Console):
    """A console that passes a broken pipe on, where rich's own would end the program with 1."""

    def on_broken_pipe(self) -> None:
        """Called while the BrokenPipeError is being handled."""
        raise


def visible(text: str) -> str:
    """The text with control characters (but newline and tab) replaced by their code."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def size(nbytes: int) -> str:
    """Bytes in decimal units: `1.2 MB`."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def count(number: int) -> str:
    """A count in short: `1.2 M`."""
    value = float(number)
    for unit in ("", " k", " M"):
        if value < 1000:
            return f"{value:.0f}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f} G"


def print_findings(console: Console, findings: Iterable[Diagnostic]) -> None:
    """Findings, those of one code in full at first and then by module alone."""
    by_severity: dict[str, list[Diagnostic]] = defaultdict(list)
    for finding in findings:
        by_severity[finding.severity].append(finding)
    for severity, found in by_severity.items():
        text = Text(visible(render_all(found)), style=_STYLES[severity])
        console.print(text, soft_wrap=True)


# --- plan ------------------------------------------------------------------------------------


def print_plan(
    console: Console, plan: Plan, numerics: object | None = None, *, every: bool = False
) -> None:
    """A plan in one screen, with how this machine would compute; with `every`, each module."""
    totals = plan.totals
    head = Text(plan.name, style="bold")
    head.append(f"  {plan.source}", style="default")
    library = " with pictures, by mlx-vlm" if plan.vision else ""
    head.append(f"  {plan.architecture or 'no architecture'}{library}", style="cyan")
    console.print(head)
    recipe = any(module.recipe for module in plan.modules.values())
    becomes = f", {size(totals.nbytes)} after the recipe" if recipe else ""
    console.print(
        f"{totals.tensors} tensors, {totals.loaded} loaded, {size(totals.stored_bytes)}{becomes}",
        style="dim",
    )
    console.print(Padding(_scheme_table(plan), (1, 0, 1, 2)))
    if every:
        console.print(Padding(_module_table(plan), (0, 0, 1, 2)))
    bits, stored = totals.bits_per_weight, totals.stored_bits_per_weight
    line = [f"bits per weight {bits:.2f}"] if bits is not None else []
    line += [f"stored {stored:.2f}"] if recipe and stored is not None else []
    line += [f"{name} {number}" for name, number in totals.grades.items()]
    line += [
        f"conflicts {len(plan.conflicts)}",
        f"stale {len(plan.stale)}",
        f"unmatched {len(plan.unmatched)}",
    ]
    console.print("  " + " · ".join(line))
    console.print(Text("  whom to believe: " + " > ".join(plan.precedence), style="dim"))
    if numerics is not None:
        console.print(Text(f"  computes: {numerics}", style="dim"), soft_wrap=True)
    if plan.unloaded:
        console.print(Text(f"  not loaded: {_families(plan.unloaded)}", style="dim"))
    shown = (*plan.notes, *plan.conflicts, *plan.unmatched)
    print_findings(console, (each for each in shown if each.severity != "error"))
    if plan.stale:
        console.print(Text(_stale_line(plan), style="dim"), soft_wrap=True)


def _scheme_table(plan: Plan) -> Table:
    rows: dict[tuple[str, str], list[PlannedModule]] = defaultdict(list)
    for module in plan.modules.values():
        verdict = module.verdict
        name = _scheme(module)
        if verdict.open:
            name = "undecided"
        if verdict.problem:
            name = "contradiction"
        rows[(name, _decider(module))].append(module)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("scheme")
    for title in ("modules", "weights", "size"):
        table.add_column(title, justify="right")
    table.add_column("decided by")
    table.add_column("for example")
    for (name, source), modules in sorted(rows.items(), key=lambda row: -len(row[1])):
        weights = sum(module.weights for module in modules)
        table.add_row(
            Text(name, style="bold red" if name == "contradiction" else "bold"),
            str(len(modules)),
            count(weights) if weights else "–",
            size(sum(module.final_bytes for module in modules)),
            Text(source),
            Text(visible(modules[0].path), style="dim"),
        )
    return table


def _scheme(module: PlannedModule) -> str:
    """What a module is: after the recipe, with what it was where that differs."""
    stored = str(module.scheme or "dense")
    return f"{module.landing or 'dense'} ← {stored}" if module.changed else stored


def _decider(module: PlannedModule) -> str:
    """Who decided what it will be."""
    return module.recipe.label if module.recipe and module.changed else module.verdict.source


def _module_table(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("module", "kind", "scheme", "grade", "decided by"):
        table.add_column(title, no_wrap=True)
    for module in plan.modules.values():
        table.add_row(
            Text(visible(module.path)),
            module.kind,
            _scheme(module),
            module.grade,
            Text(f"{_decider(module)} {_place(module)}", style="dim"),
        )
    return table


def _place(module: PlannedModule) -> Origin | str:
    if module.recipe and module.changed:
        return module.recipe.origin
    return module.verdict.origin or ""


def _families(names: Iterable[str]) -> str:
    families: dict[str, int] = defaultdict(int)
    for name in names:
        families[".".join(name.split(".")[:2])] += 1
    shown = [f"{visible(family)}.* ({number})" for family, number in families.items()]
    return ", ".join(shown[:6]) + (" …" if len(shown) > 6 else "")


def _stale_line(plan: Plan) -> str:
    sources = sorted({finding.message.partition(" ")[0] for finding in plan.stale})
    return (
        f"  {len(plan.stale)} stale claims of {', '.join(sources)}: the tensors contradict them "
        f"and they lost, e.g. {visible(plan.stale[0].module)}"
    )


# --- explain ---------------------------------------------------------------------------------


def print_explanation(console: Console, told: Explanation) -> None:
    """One module: the verdict, every claim and its fate, the arithmetic, the tensors."""
    module = told.module
    title = Text(visible(told.path), style="bold")
    if module is not None:
        title.append(f"  {module.kind}", style="cyan")
    console.print(title)
    if module is not None:
        _print_verdict(console, module)
        _print_recipe(console, module)
        _print_claims(console, module)
        _section(console, "arithmetic", arithmetic(module.verdict.evidence))
    lines = [
        f"{parameter.name.rpartition('.')[2]} <- {_tensors(parameter.tensors)}"
        + (f"  ({', '.join(parameter.operations)})" if parameter.operations else "")
        for parameter in told.parameters
    ] or list(module.tensors if module else ())
    _section(console, "tensors", lines)
    advice = [finding.help for finding in told.findings if finding.help]
    if advice:
        _section(console, "what to do", dict.fromkeys(advice))


def _tensors(names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return names[0]
    return f"{names[0]} … {names[-1]} ({len(names)} tensors)"


def _print_verdict(console: Console, module: PlannedModule) -> None:
    verdict = module.verdict
    if verdict.problem is not None:
        line = Text("  cannot be decided: the winning claim contradicts the tensors", "bold red")
    elif verdict.open:
        line = Text("  undecided: " + " or ".join(str(each) for each in verdict.open), "yellow")
    else:
        line = Text(f"  {verdict.scheme or 'dense'}", "bold green")
        place = "" if verdict.origin else ", from the tensors' arithmetic"
        line.append(f"   decided by {verdict.source}{place}", "default")
        line.append(f"   grade: {module.converted_grade}", "dim")
    console.print(line, soft_wrap=True)


def _print_recipe(console: Console, module: PlannedModule) -> None:
    """The rule of `quantize`, what it makes of the module and what that costs."""
    recipe = module.recipe
    if recipe is None:
        return
    console.print(Text("\n  recipe", style="dim"))
    line = Text("    ")
    if module.changed:
        line.append(f"{recipe.before or 'dense'} → {module.landing or 'dense'}", "bold green")
        cost = "dequantised" if module.landing is None else "requantised"
        cost = "quantised" if recipe.before is None else cost
        change = f"{size(module.nbytes)} → {size(module.final_bytes)}"
        line.append(f"   {cost}, {module.grade}, {change}", "default")
    else:
        line.append("stays as it is", "bold green")
    line.append(f"   by {recipe.label}", "default")
    line.append(visible(f"\n      at {recipe.origin}"), "dim")
    console.print(line, soft_wrap=True)


def _print_claims(console: Console, module: PlannedModule) -> None:
    console.print(Text("\n  claims", style="dim"))
    if not module.verdict.judged:
        console.print("    nobody claims anything", style="dim")
    for judged in module.verdict.judged:
        claim = judged.claim
        line = Text(f"    {judged.fate.value:<13}", style=_FATES.get(judged.fate, "dim"))
        line.append(f"{claim.source:<10}", "default")
        line.append(f"{claim!s:<18}", "bold default")
        line.append("; ".join(part for part in (judged.reason, claim.note) if part), "default")
        line.append(visible(f"\n{'':17}at {claim.origin}"), "dim")
        console.print(line, soft_wrap=True)


def _section(console: Console, title: str, lines: Iterable[str]) -> None:
    console.print(Text(f"\n  {title}", style="dim"))
    for line in lines:
        console.print(Text(f"    {visible(line)}"), soft_wrap=True)


# --- run -------------------------------------------------------------------------------------


def print_run(console: Console, record: RunRecord) -> None:
    """A run's outcome: a row for each task."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("task", "type", "status", "metrics"):
        table.add_column(title)
    table.add_column("seconds", justify="right")
    for task in record.tasks:
        metrics = ", ".join(_metric(name, value) for name, value in _headline(task.metrics))
        style = "green" if task.status == "done" else "red"
        table.add_row(
            task.id,
            task.type,
            Text("reused" if task.reused_from else task.status, style=style),
            metrics,
            f"{task.seconds:.2f}",
        )
    if record.tasks:
        console.print()
        console.print(table)
    else:
        console.print("the spec has no tasks: the model was loaded, and that is all")
    _print_expectations(console, record.expectations)
    numerics = record.numerics
    # Without a task that needed it the model was never loaded.
    loaded = f"loaded in {record.load_seconds:.2f} s, " if record.load_seconds else ""
    loaded += f"{numerics.get('dtype')} on {numerics.get('device')}, "
    console.print(Text(f"{loaded}peak {size(record.peak_memory_bytes)}", style="dim"))
    console.print(Text(f"record: {record.folder}", style="dim"), soft_wrap=True)


def _print_expectations(console: Console, expectations: Iterable[Checked]) -> None:
    for each in expectations:
        mark, style = ("ok", "green") if each.passed else ("missed", "bold red")
        line = Text(f"{mark:<7}", style=style)
        line.append(f"{each.name}: ", "bold default")
        line.append(f"{visible(each.found)}, expected {each.expected}", "default")
        console.print(line, soft_wrap=True)


def _headline(metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """The metrics that one row has room for: the spread of another one is in the record."""
    for name, value in metrics.items():
        base, _, end = name.rpartition("_")
        if end not in _SPREAD or base not in metrics:
            yield name, value


def _metric(name: str, value: float) -> str:
    return f"{name} {size(int(value)) if name.endswith('_bytes') else number(value)}"


def number(value: float) -> str:
    """A metric in short."""
    if not isinstance(value, float):
        return str(value)
    # Four decimals say nothing about what is very small.
    return f"{value:.4f}" if value == 0 or abs(value) >= 0.01 else f"{value:.3g}"
