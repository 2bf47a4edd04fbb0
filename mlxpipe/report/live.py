"""A run while it goes on, for people: progress bars, generated text, messages, small tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from mlxpipe.report.console import number, visible
from mlxpipe.tasks import Reporter


class ConsoleReporter(Reporter):
    """Shows progress on a terminal, and generated text as it comes.

    Args:
        out: Where generated text goes, None for nowhere.
        err: Where bars and messages go.
        progress: Whether to draw bars.
        quiet: Whether to keep messages back.
    """

    def __init__(
        self, out: Console | None, err: Console, *, progress: bool = True, quiet: bool = False
    ) -> None:
        self._out = out
        self._err = err
        self._progress = progress and err.is_terminal
        self._quiet = quiet

    def prompt(self, text: str) -> None:
        """Print a prompt so that it can be told from what follows."""
        line = Text(visible(text), style="bold")
        self._write(lambda out: out.print(line, end="", soft_wrap=True))

    def text(self, piece: str) -> None:
        """Print a piece of generated text at once."""
        if piece:
            self._write(lambda out: out.file.write(visible(piece)))

    def _write(self, action: Callable[[Console], object]) -> None:
        if self._out is None:
            return
        try:
            action(self._out)
            self._out.file.flush()
        except BrokenPipeError:
            # Whoever read along went away; the run and its record go on.
            self._out = None

    def message(self, text: str) -> None:
        """Print a line for people."""
        if not self._quiet:
            self._err.print(Text(visible(text), style="dim"), soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a small table: columns that hold numbers are set flush right."""
        if self._quiet:
            return
        table = Table(box=None, pad_edge=False, header_style="dim", title_justify="left")
        table.title = Text(visible(title), style="bold")
        for name, cells in zip(columns, zip(*rows, strict=True), strict=True):
            is_text = any(isinstance(cell, str) for cell in cells)
            table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(visible(_cell(value))) for value in row))
        self._err.print(Padding(table, (0, 0, 0, 2), expand=False))

    @contextmanager
    def bar(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """A bar that vanishes when done; nothing where no person watches."""
        if not self._progress:
            yield lambda done: None
            return
        with Progress(*_columns(unit), console=self._err, transient=True) as bars:
            task = bars.add_task(label, total=total)
            yield lambda done: bars.update(task, completed=done)


def _columns(unit: str) -> list[ProgressColumn]:
    amount: Any = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    return [TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn()]


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return number(value) if isinstance(value, float) else str(value)
