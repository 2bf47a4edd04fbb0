"""`report` and `diff`: what runs, plans and specs came to."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxpipe.commands.common import (
    people_console,
    print_json,
)
from mlxpipe.errors import (
    ExitCode,
)

if TYPE_CHECKING:
    pass


def report(options: Namespace) -> int:
    """`mlxpipe report`."""
    from mlxpipe.report.page import open_runs, write_page

    views = open_runs(options.runs)
    path = Path(options.output)
    write_page(views, path, options.title or "")
    print(f"wrote {path}: {len(views)} run{'s' if len(views) > 1 else ''}", file=sys.stderr)
    return int(ExitCode.OK)


def diff(options: Namespace) -> int:
    """`mlxpipe diff`: 1 for a difference only where `--exit-code` asks for it."""
    from mlxpipe.report.difference import compare, open_side

    one, other = open_side(options.one), open_side(options.other)
    found = compare(one, other)
    if options.format == "json":
        print_json(found.as_json())
    else:
        from mlxpipe.report.console_difference import print_difference

        print_difference(people_console(), one, other, found)
    return int(ExitCode.EXPECTATION if found and options.exit_code else ExitCode.OK)
