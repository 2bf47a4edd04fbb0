"""`lock`, and `lock --check`."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxpipe import api
from mlxpipe.commands.common import (
    all_specs,
    people_console,
    print_json,
)
from mlxpipe.errors import (
    ExitCode,
    LockError,
    UsageError,
    render_all,
)

if TYPE_CHECKING:
    from mlxpipe.locking.digests import Bar
    from mlxpipe.spec import LoadedSpec


def lock(options: Namespace) -> int:
    """`mlxpipe lock`: of a matrix, each combination has a lock of its own."""
    from mlxpipe.locking import lock_path
    from mlxpipe.report.live import ConsoleReporter

    specs = all_specs(options)
    if options.lock_file and len(specs) > 1:
        raise UsageError(
            "one-lock-each",
            "--lock-file names one file, and each combination has a lock of its own",
            help="choose one with --only",
        )
    progress = not (options.no_progress or options.quiet)
    bar = ConsoleReporter(None, people_console(stderr=True), progress=progress).bar
    act = _check_lock if options.check else _write_lock
    named = Path(options.lock_file) if options.lock_file else None
    told = [act(options, loaded, named or lock_path(loaded), bar) for loaded in specs]
    code = max(each["exit_code"] for each in told)
    if options.format == "json":
        print_json({"locks": told, "exit_code": code} if specs[0].label else told[0])
    return int(code)


def _write_lock(options: Namespace, loaded: LoadedSpec, path: Path, bar: Bar) -> dict[str, Any]:
    made = api.lock(loaded, path=path, cache=options.cache, bar=bar)
    if options.format == "human" and not options.quiet:
        files = len(made.files) + len(made.tokenizer) + len(made.data)
        print(f"{path}: {files} files, {len(made.table.modules)} modules, {made.sha256[:12]}")
    return {"lock": str(path), "sha256": made.sha256, "exit_code": int(ExitCode.OK)}


def _check_lock(options: Namespace, loaded: LoadedSpec, path: Path, bar: Bar) -> dict[str, Any]:
    found = api.check_lock(
        loaded, path=path, allow_versions=options.allow_versions, cache=options.cache, bar=bar
    )
    if found:
        print(render_all(found), file=sys.stderr)
    elif options.format == "human" and not options.quiet:
        print(f"{path}: everything is as locked")
    return {
        "lock": str(path),
        "differences": [finding.as_json() for finding in found],
        "exit_code": int(LockError.exit_code if found else ExitCode.OK),
    }
