"""The reports that a spec asks for, written into the run's directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlxpipe.execution.matrix import MatrixRecord
from mlxpipe.execution.record import RunRecord
from mlxpipe.files import write_text
from mlxpipe.report.junit import junit
from mlxpipe.spec import LoadedSpec


def _json(record: RunRecord) -> str:
    return json.dumps(record.as_json(), indent=2, ensure_ascii=False) + "\n"


def _html(records: Sequence[RunRecord]) -> str:
    from mlxpipe.report.page import open_runs, render_page

    return render_page(open_runs([record.folder for record in records]))


#: A report that `outputs.reports` may name -> (file, what writes it about one run or several).
REPORTS: Mapping[str, tuple[str, Callable[[Sequence[RunRecord]], str]]] = {
    "json": ("report.json", lambda records: _json(records[0])),
    "junit": ("junit.xml", junit),
    "html": ("report.html", _html),
}

#: What one report can tell of all combinations; their summary is JSON already.
OF_A_MATRIX = ("junit", "html")


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
    wanted: list[str] = [name for name in loaded.spec.outputs.reports if name in REPORTS]
    paths = {name: record.folder / "reports" / REPORTS[name][0] for name in wanted}
    for name, path in paths.items():
        path.parent.mkdir(exist_ok=True)
        write_text(path, REPORTS[name][1]([record]))
    return paths


def write_matrix_reports(matrix: MatrixRecord) -> dict[str, Path]:
    """Write what combinations ask for about all that were run, beside the matrix's summary.

    Returns:
        Name of the report -> its file, called as the summary is.
    """
    asked: set[str] = {
        name for each in matrix.combinations for name in each.loaded.spec.outputs.reports
    }
    records = [each.record for each in matrix.combinations if each.record is not None]
    wanted = [name for name in OF_A_MATRIX if name in asked and records]
    paths: dict[str, Path] = {
        name: matrix.summary.with_suffix(Path(REPORTS[name][0]).suffix) for name in wanted
    }
    for name, path in paths.items():
        write_text(path, REPORTS[name][1](records))
    return paths
