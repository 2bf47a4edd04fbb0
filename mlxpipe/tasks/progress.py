"""Steps of a long task that are done, so that an interrupted one goes on where it ended.

They are kept in the task's directory, one JSON line each. A process that is killed leaves whole
lines and at most one torn; whoever comes next reads the whole ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

FILE = "progress.jsonl"


class Progress:
    """The steps of one task, in order.

    Attributes:
        rows: What the steps gave that are done; each a JSON object.
    """

    def __init__(self, rows: list[dict[str, Any]], file: TextIO) -> None:
        self.rows = rows
        self._file = file

    def add(self, row: dict[str, Any]) -> None:
        """Keep what the next step gave."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        self.rows.append(row)


@contextmanager
def progress(folder: Path) -> Iterator[Progress]:
    """The progress of the task in `folder`, with the steps that are there already."""
    path = folder / FILE
    rows = read_progress(path)
    with path.open("w", encoding="utf-8") as file:
        steps = Progress([], file)
        for row in rows:
            steps.add(row)
        yield steps


def read_progress(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a progress file; none if there is no such file."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    rows: list[dict[str, Any]] = []
    for line in content.split(b"\n")[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows
