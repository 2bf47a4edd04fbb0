"""The reports that a spec asks for, written into the run's directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from mlxpipe.execution.record import RunRecord
from mlxpipe.files import write_text
from mlxpipe.report.junit import junit
from mlxpipe.spec import LoadedSpec


def _json(record: RunRecord) -> str:
    return json.dumps(record.as_json(), indent=2, ensure_ascii=False) + "\n"


def _html(record: RunRecord) -> str:
    from mlxpipe.report.page import open_runs, render_page

    return render_page(open_runs([record.folder]))


#: A report that `outputs.reports` may name -> (file, what writes it).
REPORTS: Mapping[str, tuple[str, Callable[[RunRecord], str]]] = {
    "json": ("report.json", _json),
    "junit": ("junit.xml", lambda record: junit([record])),
    "html": ("report.html", _html),
}


def check_reports(loaded: LoadedSpec) -> None:
    """Refuse, before anything runs, a report that could not be written afterwards.

    Raises:
        UsageError: `missing-extra`.
    """
    if "html" in loaded.spec.outputs.reports:
        from mlxpipe.report.page import require_libraries

        require_libraries()


def write_reports(loaded: LoadedSpec, record: RunRecord) -> dict[str, Path]:
    """Write `<run directory>/reports/…`, each whole or not at all.

    Returns:
        Name of the report -> its file.
    """
    written: dict[str, Path] = {}
    for name in loaded.spec.outputs.reports:
        if name not in REPORTS:
            continue
        file, render = REPORTS[name]
        path = record.folder / "reports" / file
        path.parent.mkdir(exist_ok=True)
        write_text(path, render(record))
        written[name] = path
    return written
