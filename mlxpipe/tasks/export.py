"""The model on disk in another format."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mlxpipe.exports.export import export_model
from mlxpipe.exports.request import Progress, Request, remarks
from mlxpipe.spec import ExportTask, LoadedSpec
from mlxpipe.tasks.base import Context, Outcome, Reporter


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Write the export, and `modules`: what it holds of each module.

    Metrics: bytes, tensors, shards, modules_identical, modules_dequantised, modules_rounded.
    """
    request = request_of(context.loaded, number)
    with exporting(context.reporter) as progress:
        done = export_model(context.plan, context.checkpoint, request, progress)
    for line in remarks(done):
        context.reporter.message(line)
    table = folder / "modules.json"
    modules = {path: form.as_json() for path, form in done.modules.items()}
    table.write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    return Outcome(done.metrics, {"model": done.path, "modules": table})


@contextmanager
def exporting(reporter: Reporter) -> Iterator[Progress]:
    """A bar that appears when it is known how much there is to write."""
    with ExitStack() as stack:
        advance: Callable[[int], None] | None = None

        def progress(done: int, total: int) -> None:
            nonlocal advance
            if advance is None:
                advance = stack.enter_context(reporter.bar("exporting", total, "bytes"))
            advance(done)

        yield progress


def request_of(loaded: LoadedSpec, number: int) -> Request:
    """The export that task `number` of a spec asks for."""
    task = loaded.spec.tasks[number]
    assert isinstance(task, ExportTask)
    return Request(
        loaded.resolve(task.path),
        task.format,
        task.name or "",
        task.unsupported,
        task.dtype,
        task.max_shard_bytes,
        task.overwrite,
        loaded.origin("tasks", number, "path"),
    )
