"""A difference, for people."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlxpipe.report.console import visible
from mlxpipe.report.difference import Change, Difference, Side

#: How many modules of one change are named.
MOST = 3


def print_difference(console: Console, one: Side, other: Side, found: Difference) -> None:
    """Settings, modules and metrics that differ, each as a table."""
    head = Text(visible(one.label), style="bold")
    head.append(f" ({one.kind})  →  ", "default")
    head.append(f"{visible(other.label)}", "bold")
    head.append(f" ({other.kind})", "default")
    console.print(head, soft_wrap=True)
    if not found:
        console.print("  nothing differs")
    _print_changes(console, "setting", found.settings)
    _print_modules(console, found)
    _print_changes(console, "metric", found.metrics)


def _print_changes(console: Console, title: str, changes: tuple[Change, ...]) -> None:
    if not changes:
        return
    table = _table(title, "before", "after")
    ratios = [_ratio(each) for each in changes]
    if any(ratios):
        table.add_column("ratio", justify="right")
    for each, ratio in zip(changes, ratios, strict=True):
        cells = [visible(each.name), _spell(each.before), _spell(each.after)]
        table.add_row(*map(Text, [*cells, ratio] if any(ratios) else cells))
    console.print(Padding(table, (1, 0, 0, 2)))


def _print_modules(console: Console, found: Difference) -> None:
    if not found.modules:
        return
    table = _table("modules", "before", "after", "for example")
    for (before, after), paths in found.modules.items():
        more = f" and {len(paths) - MOST} more" if len(paths) > MOST else ""
        shown = visible(", ".join(paths[:MOST]) + more)
        table.add_row(*map(Text, [str(len(paths)), before, after, shown]))
    console.print(Padding(table, (1, 0, 0, 2)))


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _spell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return visible(text)


def _ratio(change: Change) -> str:
    numbers = (change.before, change.after)
    if not all(isinstance(each, float) for each in numbers) or not change.before:
        return ""
    return f"{change.after / change.before:.4f}"
