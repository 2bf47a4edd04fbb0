"""Tables that a notebook shows in the place of a `repr`.

Names and claims come from checkpoints and may hold anything: every text is escaped here, and
nowhere else is markup made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def text(value: object) -> str:
    """A value as HTML's text; what UTF-8 cannot hold is shown as its code."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode("utf-8"))


def paragraph(*values: object, bold: object = "") -> str:
    """A line of text, its parts set apart by dots, opened by a bold one."""
    head = f"<b>{text(bold)}</b> " if bold else ""
    return f"<p>{head}{text(' · '.join(map(str, values)))}</p>"


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table with a head; numbers to the right, None as a dash."""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if value is None:
        return "<td>–</td>"
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.5g}"
        return f'<td style="text-align: right">{shown}</td>'
    return f"<td>{text(value)}</td>"


def preformatted(lines: Iterable[str]) -> str:
    """Lines as they are; nothing where there are none."""
    joined = "\n".join(lines)
    return f"<pre>{text(joined)}</pre>" if joined else ""
