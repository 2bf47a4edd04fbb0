"""`examples`: what comes with mlxpipe."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mlxpipe.commands.common import people_console, print_json
from mlxpipe.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from mlxpipe.shipped import Shipped


def examples(options: Namespace) -> int:
    """`mlxpipe examples`."""
    from mlxpipe.shipped import copy, shipped

    as_json = options.format == "json"
    if options.action == "list":
        if options.name is not None:
            raise UsageError("stray-argument", "`examples list` takes no name")
        found = shipped().values()
        if as_json:
            print_json({"examples": [each.as_json() for each in found]})
        else:
            _print_examples(found)
        return int(ExitCode.OK)
    if options.name is None:
        raise UsageError("missing-name", "`examples copy` needs a NAME", help="see `examples`")
    written = [str(path) for path in copy(options.name, options.directory)]
    if as_json:
        print_json({"written": written})
    elif not options.quiet:
        print("\n".join(f"wrote {path}" for path in written))
    return int(ExitCode.OK)


def _print_examples(found: Iterable[Shipped]) -> None:
    from rich.table import Table
    from rich.text import Text

    console = people_console()
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for each in found:
        table.add_row(Text(each.name, style="bold"), Text(each.about))
        inside = each.specs if each.path.suffix != ".yaml" else ()
        for spec in inside:
            table.add_row(Text(f"  {spec.path.name}", style="cyan"), Text(spec.about, style="dim"))
    console.print(table)
    console.print("\nmlxpipe examples copy NAME [DIR]", style="dim")
