"""Pictures as SVG, drawn by matplotlib without its global state.

Equal runs give equal bytes: ids are salted with a constant and no date is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from io import StringIO
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mlxpipe.report.page.runs import RunView

#: Colours that people with any colour vision can tell apart (Okabe and Ito), dense in grey.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
DENSE = "#bbbbbb"

#: How many times the least value the greatest must be for a logarithmic scale.
WIDE = 20

#: How many runs may have two lines each in one picture.
FEW = 3

#: Any, because matplotlib's stubs list every key.
_STYLE: Any = {
    "svg.hashsalt": "mlxpipe",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def _draw(width: float, height: float, draw: Callable[[Axes], None]) -> str:
    """An SVG element of so many inches."""
    with rc_context(_STYLE):
        figure = Figure((width, height), layout="constrained")
        draw(figure.subplots())
        file = StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    return text[text.index("<svg") :]  # without the XML declaration, which HTML does not have


def size_against_quality(views: Sequence[RunView], metric: str) -> str:
    """A point for each run: bits per weight, and a metric of which less is better."""

    def draw(axes: Axes) -> None:
        for number, view in enumerate(views):
            x, y = view.totals["bits_per_weight"], view.metrics[metric]
            axes.scatter([x], [y], color=COLOURS[number % len(COLOURS)], s=36, zorder=3)
            axes.annotate(
                view.label, (x, y), xytext=(5, 4), textcoords="offset points", parse_math=False
            )
        axes.margins(0.15)
        _spread(axes, [view.metrics[metric] for view in views])
        axes.set_xlabel("bits per weight")
        axes.set_ylabel(metric.rpartition(".")[2].replace("_", " "))

    return _draw(7, 4, draw)


def _spread(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic scale where one bad run would press all others together; 0 stays on it."""
    positive = sorted(value for value in values if value > 0)
    if positive and positive[-1] > WIDE * positive[0]:
        axes.set_yscale("symlog", linthresh=positive[0])


def schemes_over_depth(view: RunView, colours: Mapping[str, str]) -> str:
    """The scheme of every module: a row for each kind, a column for each layer; "" without any.

    Args:
        view: The run.
        colours: As `scheme_colours` gives them for all runs of the page.
    """
    cells = [cell for cell in view.cells if cell.layer is not None]
    kinds = sorted({cell.kind for cell in cells})
    layers = sorted({cell.layer for cell in cells if cell.layer is not None})
    schemes = _schemes([view])
    if not layers:
        return ""
    grid = [[float("nan")] * len(layers) for _ in kinds]
    for cell in cells:
        grid[kinds.index(cell.kind)][layers.index(cell.layer or 0)] = schemes.index(cell.scheme)

    def draw(axes: Axes) -> None:
        palette = ListedColormap([colours[scheme] for scheme in schemes])
        axes.pcolormesh(
            grid, cmap=palette, vmin=-0.5, vmax=len(schemes) - 0.5, edgecolors="white", lw=0.6
        )
        axes.set_yticks([row + 0.5 for row in range(len(kinds))], kinds)
        step = max(1, len(layers) // 12)
        axes.set_xticks(
            [column + 0.5 for column in range(0, len(layers), step)],
            [str(layer) for layer in layers[::step]],
        )
        axes.set_xlabel("layer")
        axes.invert_yaxis()
        axes.grid(visible=False)
        patches = [Patch(color=colours[scheme], label=scheme) for scheme in schemes]
        axes.legend(
            handles=patches, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=3, frameon=False
        )

    return _draw(min(14, 3.5 + 0.22 * len(layers)), 1.2 + 0.24 * len(kinds), draw)


def scheme_colours(views: Iterable[RunView]) -> Mapping[str, str]:
    """Scheme -> colour; dense is grey."""
    packed = [scheme for scheme in _schemes(views) if scheme != "dense"]
    colours = {scheme: COLOURS[n % len(COLOURS)] for n, scheme in enumerate(packed)}
    return {**colours, "dense": DENSE}


def _schemes(views: Iterable[RunView]) -> list[str]:
    return sorted({cell.scheme for view in views for cell in view.cells})


def layer_errors(views: Sequence[RunView]) -> str:
    """Output error of every decoder layer against the reference; "" where no run compared."""
    lines = [
        (view.label, rows)
        for view in views
        for rows in view.named("layers").values()
        if isinstance(rows, list) and rows
    ]
    if not lines:
        return ""

    def draw(axes: Axes) -> None:
        for number, (label, rows) in enumerate(lines):
            colour = COLOURS[number % len(COLOURS)]
            _line(axes, rows, "accumulated_error", colour, "-", f"{label}, accumulated")
            if len(lines) <= FEW:
                _line(axes, rows, "own_error", colour, ":", f"{label}, own")
        axes.set_xlabel("layer")
        axes.set_ylabel("relative output error")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))

    return _draw(9, 3.5, draw)


def _line(
    axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, colour: str, style: str, label: str
) -> None:
    points = [(layer, row[key]) for layer, row in enumerate(rows) if row.get(key) is not None]
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, ls=style, marker=".", label=label)


def speeds(views: Sequence[RunView]) -> str:
    """Tokens per second, prefill and decode, on scales of their own; "" where nothing was timed."""
    bars = [
        (view.label, name, value)
        for view in views
        for name, value in view.metrics.items()
        if name.endswith((".prefill_tps", ".decode_tps"))
    ]
    if not bars:
        return ""

    def draw(axes: Axes) -> None:
        labels = [f"{label}\n{name.rpartition('.')[2]}" for label, name, _ in bars]
        values = [value for _, _, value in bars]
        drawn = axes.barh(range(len(bars)), values, color=COLOURS[0])
        axes.bar_label(drawn, fmt="%.1f", padding=3)
        axes.set_yticks(range(len(bars)), labels)
        axes.set_xscale("log")
        axes.invert_yaxis()
        axes.set_xlabel("tokens per second")

    return _draw(7, 0.8 + 0.4 * len(bars), draw)
