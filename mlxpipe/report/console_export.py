"""An export, for people."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from mlxpipe.exports.request import Exported, remarks
from mlxpipe.report.console import size, visible


def print_export(console: Console, done: Exported) -> None:
    """Where an export is, how large, and what is not as it was."""
    head = Text(visible(str(done.path)), style="bold")
    files = f"{done.tensors} tensors in {done.files} file{'s' * (done.files != 1)}"
    head.append(f"  {size(done.nbytes)}, {files}", style="default")
    console.print(head, soft_wrap=True)
    if identical := done.count("identical"):
        console.print(f"  {identical} of {len(done.modules)} modules identical to the source")
    for line in remarks(done):
        console.print(Text(f"  {visible(line)}", style="yellow"), soft_wrap=True)
