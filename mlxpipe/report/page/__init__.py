"""A page about one or several runs: tables, plots and texts in one HTML file.

Read in this order: `runs` (what run directories hold), `plots` (pictures of it), `render` (the
page).
"""

from mlxpipe.report.page.render import render_page, require_libraries, write_page
from mlxpipe.report.page.runs import RunView, open_runs

__all__ = ["RunView", "open_runs", "render_page", "require_libraries", "write_page"]
