"""The combinations of a matrix side by side, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlxpipe.execution.matrix import CombinationRecord, MatrixRecord
from mlxpipe.plan.plan import Plan
from mlxpipe.report.console import number, size, visible
from mlxpipe.spec import LoadedSpec

#: The metrics that recipes and settings are chosen by; where a run has some, the table has these.
HEADLINES = (
    "kl_divergence",
    "top1_agreement",
    "perplexity",
    "perplexity_ratio",
    "prefill_tps",
    "decode_tps",
    "prefill_ratio",
    "decode_ratio",
)

_STATUS = {"done": "green", "failed": "bold red", "interrupted": "yellow", "skipped": "dim"}


def print_matrix(console: Console, record: MatrixRecord) -> None:
    """A row for each combination: its size, its tasks' metrics, how long it took, how it ended."""
    metrics = _metrics(record)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("combination", no_wrap=True)
    for title in ("bits per weight", *_titles(metrics)):
        table.add_column(title, justify="right", overflow="fold")
    table.add_column("seconds", justify="right")
    table.add_column("status")
    for each in record.combinations:
        found = _found(each)
        table.add_row(
            Text(each.loaded.label),
            _bits(each),
            *(number(found[metric]) if metric in found else "–" for metric in metrics),
            f"{each.record.seconds:.2f}" if each.record else "–",
            Text(each.status, style=_STATUS.get(each.status, "")),
        )
    console.print()
    console.print(table)
    console.print(Text(f"summary: {record.summary}", style="dim"), soft_wrap=True)


def _bits(each: CombinationRecord) -> str:
    bits = each.record.totals.get("bits_per_weight") if each.record else None
    return "–" if bits is None else f"{bits:.2f}"


def _found(each: CombinationRecord) -> dict[tuple[str, str], float]:
    """(task, metric) -> value, of the tasks that were done."""
    tasks = each.record.tasks if each.record else []
    return {(task.id, name): value for task in tasks for name, value in task.metrics.items()}


def _metrics(record: MatrixRecord) -> list[tuple[str, str]]:
    every = list(dict.fromkeys(key for each in record.combinations for key in _found(each)))
    return [key for key in every if key[1] in HEADLINES] or every


def _titles(metrics: Sequence[tuple[str, str]]) -> list[str]:
    """The metric alone where one task has it, since the table is wide enough."""
    times = Counter(name for _, name in metrics)
    return [name if times[name] == 1 else f"{task} {name}" for task, name in metrics]


def print_plans(console: Console, plans: Sequence[tuple[LoadedSpec, Plan]]) -> None:
    """A row for each combination: modules by scheme, size, bits per weight, findings."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("combination", overflow="fold")
    table.add_column("modules by scheme")
    for title in ("size", "bits per weight", "conflicts", "problems"):
        table.add_column(title, justify="right")
    for loaded, plan in plans:
        totals = plan.totals
        schemes = ", ".join(
            f"{count} × {visible(name)}" for name, count in sorted(totals.schemes.items())
        )
        bits = totals.bits_per_weight
        problems = str(len(plan.problems))
        table.add_row(
            Text(loaded.label),
            Text(schemes),
            size(totals.nbytes),
            f"{bits:.2f}" if bits is not None else "–",
            str(len(plan.conflicts)),
            Text(problems, style="bold red" if plan.problems else ""),
        )
    console.print(table)
