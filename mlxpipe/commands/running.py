"""`run` and `export`: what computes, and writes what it computed."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from mlxpipe import api
from mlxpipe.commands.common import (
    all_specs,
    one_spec,
    people_console,
    print_json,
)
from mlxpipe.errors import (
    ExitCode,
)

if TYPE_CHECKING:
    from mlxpipe.execution.matrix import RunOne
    from mlxpipe.execution.record import RunRecord
    from mlxpipe.spec import LoadedSpec
    from mlxpipe.tasks import Reporter


def run(options: Namespace) -> int:
    """`mlxpipe run`."""
    from mlxpipe.report.live import ConsoleReporter
    from mlxpipe.spec import shard

    specs = all_specs(options)
    if options.shard is not None and not (specs := shard(specs, options.shard)):
        return _nothing_to_run(options)
    reporter = ConsoleReporter(
        None if options.format == "json" or options.quiet else people_console(),
        people_console(stderr=True),
        progress=not (options.no_progress or options.quiet),
        quiet=options.quiet,
    )
    run_specs = _run_matrix if specs[0].label else _run_one
    return run_specs(options, specs, reporter)


def _run_one(options: Namespace, specs: Sequence[LoadedSpec], reporter: Reporter) -> int:
    from mlxpipe.execution.executor import RunFailedError
    from mlxpipe.report.console import print_run

    as_json = options.format == "json"
    try:
        record = _runner(options)(specs[0], reporter)
    except RunFailedError as failure:
        if as_json:
            print_json(failure.record.as_json())
        raise failure.cause from failure.cause.__cause__
    if as_json:
        print_json(record.as_json())
    else:
        print_run(people_console(stderr=options.quiet), record)
    _annotate_misses(specs[0], record)
    return int(record.exit_code)


def _runner(options: Namespace) -> RunOne:
    """`api.run` with the options of the command line."""
    return partial(
        api.run,
        locked=options.locked,
        allow_versions=options.allow_versions,
        force=options.force,
        cache=options.cache,
    )


def _annotate_misses(loaded: LoadedSpec, record: RunRecord) -> None:
    from mlxpipe.report.github import annotate

    misses = [each.diagnostic() for each in record.expectations if not each.passed]
    annotate(misses, asked="github" in loaded.spec.outputs.reports)


def _run_matrix(options: Namespace, specs: Sequence[LoadedSpec], reporter: Reporter) -> int:
    from mlxpipe.report.matrix import print_matrix

    runner = _runner(options)
    record = api.run_all(specs, reporter, keep_going=options.keep_going, run_one=runner)
    if options.format == "json":
        print_json(record.as_json())
    else:
        print_matrix(people_console(stderr=options.quiet), record)
    for each in record.combinations:
        if each.error is not None:
            print(f"{each.loaded.label}:\n{each.error}", file=sys.stderr)
        elif each.record is not None:
            _annotate_misses(each.loaded, each.record)
    if record.interrupted:
        print("interrupted", file=sys.stderr)
    return int(record.exit_code)


def _nothing_to_run(options: Namespace) -> int:
    """A part without a combination: more jobs than combinations, which is fine."""
    if options.format == "json":
        print_json({"name": None, "runs": [], "skipped": [], "exit_code": int(ExitCode.OK)})
    else:
        print(f"--shard {options.shard}: no combination is left for this part", file=sys.stderr)
    return int(ExitCode.OK)


def export(options: Namespace) -> int:
    """`mlxpipe export`."""
    from mlxpipe.report.console_export import print_export
    from mlxpipe.report.live import ConsoleReporter
    from mlxpipe.tasks.export import exporting

    as_json = options.format == "json"
    bars = not (options.no_progress or options.quiet)
    reporter = ConsoleReporter(None, people_console(stderr=True), progress=bars)
    named = {"name": options.name} if options.name is not None else {}
    with exporting(reporter) as progress:
        done = api.export(
            one_spec(options),
            options.output,
            progress=progress,
            format=options.to,
            unsupported=options.unsupported,
            dtype=options.dtype,
            overwrite=options.overwrite,
            **named,
        )
    if as_json:
        print_json(done.as_json())
    elif not options.quiet:
        print_export(people_console(), done)
    return int(ExitCode.OK)
