"""The page itself: one file, no scripts, nothing fetched."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxpipe._version import __version__
from mlxpipe.errors import ExecutionError, UsageError
from mlxpipe.files import write_text
from mlxpipe.report.console import visible
from mlxpipe.report.difference import describe_module
from mlxpipe.report.page.runs import RunView, quality

if TYPE_CHECKING:
    from jinja2 import Environment

LIBRARIES = ("jinja2", "matplotlib")

#: How many of the worst modules a table shows.
WORST = 15


def require_libraries() -> None:
    """Refuse to begin what could not be finished.

    Raises:
        UsageError: `missing-extra`.
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise UsageError(
            "missing-extra",
            "an HTML report needs " + " and ".join(missing),
            help="pip install 'mlxpipe[report]'",
        )


def write_page(views: Sequence[RunView], path: Path, title: str = "") -> None:
    """Write a page, whole or not at all.

    Raises:
        UsageError: `missing-extra`.
        ExecutionError: `cannot-write`.
    """
    text = render_page(views, title)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise ExecutionError(
            "cannot-write",
            f"the report {path} cannot be written",
            found=error.strerror or str(error),
        ) from error


def render_page(views: Sequence[RunView], title: str = "") -> str:
    """The page as text.

    Raises:
        UsageError: `missing-extra`.
    """
    require_libraries()
    from mlxpipe.report.page import plots

    metric = quality(views)
    sized = [view for view in views if view.totals.get("bits_per_weight") is not None]
    several = len(views) > 1
    colours = plots.scheme_colours(views)
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            title=title or (views[0].record["name"] if views else "runs"),
            version=__version__,
            views=views,
            several=several,
            columns=_columns(views),
            quality=metric,
            size_against_quality=plots.size_against_quality(sized, metric)
            if several and metric and sized
            else "",
            depths=[plots.schemes_over_depth(view, colours) for view in views],
            outside=[[cell for cell in view.cells if cell.layer is None] for view in views],
            layer_errors=plots.layer_errors(views),
            speeds=plots.speeds(views),
            worst=[(view.label, _worst(view)) for view in views if _worst(view)],
            completions=_completions(views),
            describe_module=describe_module,
        )
    )


def _environment() -> Environment:
    from jinja2 import BaseLoader, Environment, StrictUndefined

    class _Beside(BaseLoader):
        def get_source(self, environment: Environment, template: str) -> tuple[str, None, None]:
            return files(__package__).joinpath(template).read_text(encoding="utf-8"), None, None

    made = Environment(
        loader=_Beside(),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": _number, "size": _size}
    return made


def _columns(views: Sequence[RunView]) -> list[str]:
    """Every metric of every run, in the order in which they come up."""
    return list(dict.fromkeys(name for view in views for name in view.metrics))


def _worst(view: RunView) -> list[dict[str, Any]]:
    rows = [row for table in view.named("modules").values() for row in table]
    return rows[:WORST]


def _completions(views: Sequence[RunView]) -> list[tuple[str, list[str | None]]]:
    """(prompt, what each run made of it), for every prompt of every generate task."""
    texts: list[dict[tuple[str, int, str], str]] = []
    for view in views:
        found = {
            (task, number, row["prompt"]): row["text"]
            for task, rows in view.named("completions").items()
            for number, row in enumerate(rows)
        }
        texts.append(found)
    keys = dict.fromkeys(key for found in texts for key in found)
    return [(key[2], [found.get(key) for found in texts]) for key in keys]


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _size(nbytes: float) -> str:
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} GB"
