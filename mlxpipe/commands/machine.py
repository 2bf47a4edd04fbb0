"""`doctor`: what this machine computes with."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from mlxpipe.commands.common import (
    print_json,
)
from mlxpipe.errors import (
    ExitCode,
)

if TYPE_CHECKING:
    pass


def doctor(options: Namespace) -> int:
    """`mlxpipe doctor`."""
    from mlxpipe.doctor import examine

    report = examine()
    if options.format == "json":
        print_json(report.as_json())
    else:
        print(report.render())
    return int(ExitCode.OK)
