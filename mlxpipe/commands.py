"""What each command of the command line does: call the API, print, return the exit code."""

from __future__ import annotations

import gc
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxpipe import api
from mlxpipe.errors import (
    Diagnostic,
    ExecutionError,
    ExitCode,
    LockError,
    MlxpipeError,
    PlanError,
    UsageError,
    render_all,
)

if TYPE_CHECKING:
    from rich.console import Console

    from mlxpipe.execution.matrix import RunOne
    from mlxpipe.execution.record import RunRecord
    from mlxpipe.graph.numerics import Numerics
    from mlxpipe.locking.digests import Bar
    from mlxpipe.plan.plan import Plan
    from mlxpipe.spec import LoadedSpec, Setting
    from mlxpipe.tasks import Reporter


def run(options: Namespace) -> int:
    """`mlxpipe run`."""
    from mlxpipe.report.live import ConsoleReporter
    from mlxpipe.spec import shard

    specs = _specs(options)
    if options.shard is not None and not (specs := shard(specs, options.shard)):
        return _nothing_to_run(options)
    reporter = ConsoleReporter(
        None if options.format == "json" or options.quiet else _console(),
        _console(stderr=True),
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
            _print_json(failure.record.as_json())
        raise failure.cause from failure.cause.__cause__
    if as_json:
        _print_json(record.as_json())
    else:
        print_run(_console(stderr=options.quiet), record)
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
        _print_json(record.as_json())
    else:
        print_matrix(_console(stderr=options.quiet), record)
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
        _print_json({"name": None, "runs": [], "skipped": [], "exit_code": int(ExitCode.OK)})
    else:
        print(f"--shard {options.shard}: no combination is left for this part", file=sys.stderr)
    return int(ExitCode.OK)


def _settings(options: Namespace) -> list[Setting]:
    from mlxpipe.spec import parse_setting

    return [parse_setting(text) for text in options.set]


def _specs(options: Namespace) -> tuple[LoadedSpec, ...]:
    return api.open_specs(options.spec, set=_settings(options), only=options.only)


def plan(options: Namespace) -> int:
    """`mlxpipe plan`."""
    # The process ends with the plan; walking a large one for cycles would only cost time.
    gc.disable()
    from mlxpipe.execution.expectations import check_plan

    specs = _specs(options)
    if len(specs) > 1:
        return _plan_matrix(options, specs)
    loaded = specs[0]
    made = api.make_plan(loaded)
    numerics = _numerics(loaded, made)
    checked = check_plan(loaded, made)
    if options.format == "json":
        _print_json(
            {
                **made.as_json(),
                "numerics": numerics.as_json() if numerics else None,
                "expectations": [each.as_json() for each in checked],
            }
        )
    else:
        from mlxpipe.report.console import print_plan

        print_plan(_console(), made, numerics, every=options.every)
    misses = [each.diagnostic() for each in checked if not each.passed]
    return _report_problems(made) or _report_misses(misses)


def _report_misses(misses: Sequence[Diagnostic]) -> int:
    """Expectations that do not hold, on stderr."""
    from mlxpipe.report.github import annotate

    if misses:
        print(render_all(misses), file=sys.stderr)
        annotate(misses)
    return int(ExitCode.EXPECTATION if misses else ExitCode.OK)


def _plan_matrix(options: Namespace, specs: Sequence[LoadedSpec]) -> int:
    """A row for each combination; `--only` shows one in full."""
    from mlxpipe.execution.expectations import check_plan
    from mlxpipe.execution.matrix import gathered, plan_all

    misses: list[Diagnostic] = []
    plans: list[tuple[LoadedSpec, Plan]] = []
    wrong: dict[str, MlxpipeError] = {}
    for loaded, planned in zip(specs, plan_all(specs), strict=True):
        if isinstance(planned, MlxpipeError):
            wrong[loaded.label] = planned
            continue
        plans.append((loaded, planned))
        notes = (f"in combination {loaded.label}",)
        checked = (each for each in check_plan(loaded, planned) if not each.passed)
        misses += (replace(each.diagnostic(), notes=notes) for each in checked)
        if planned.problems:
            wrong[loaded.label] = PlanError.several(planned.problems)
    if options.format == "json":
        told = [
            {"label": loaded.label, "matrix": dict(loaded.matrix), **made.as_json()}
            for loaded, made in plans
        ]
        _print_json({"name": specs[0].name, "combinations": told})
    else:
        from mlxpipe.report.matrix import print_plans

        print_plans(_console(), plans)
    if wrong:
        raise gathered(wrong)
    return _report_misses(misses)


def _numerics(loaded: LoadedSpec, made: Plan) -> Numerics | None:
    """How this machine would compute; None where it cannot, because a GPU is asked for."""
    from mlxpipe.graph.numerics import choose

    try:
        return choose(loaded, made)
    except ExecutionError:
        return None


def export(options: Namespace) -> int:
    """`mlxpipe export`."""
    from mlxpipe.report.console_export import print_export
    from mlxpipe.report.live import ConsoleReporter
    from mlxpipe.tasks.export import exporting

    as_json = options.format == "json"
    bars = not (options.no_progress or options.quiet)
    reporter = ConsoleReporter(None, _console(stderr=True), progress=bars)
    named = {"name": options.name} if options.name is not None else {}
    with exporting(reporter) as progress:
        done = api.export(
            _one(options),
            options.output,
            progress=progress,
            format=options.to,
            unsupported=options.unsupported,
            dtype=options.dtype,
            overwrite=options.overwrite,
            **named,
        )
    if as_json:
        _print_json(done.as_json())
    elif not options.quiet:
        print_export(_console(), done)
    return int(ExitCode.OK)


def explain(options: Namespace) -> int:
    """`mlxpipe explain`."""
    from mlxpipe.report.console import print_explanation

    made = api.make_plan(_one(options))
    if not options.names:
        return _explain_all(options, made)
    told = [api.explain(made, name) for name in options.names]
    if options.format == "json":
        _print_json({"explanations": [each.as_json() for each in told]})
        return int(ExitCode.OK)
    console = _console()
    for number, each in enumerate(told):
        if number:
            console.print()
        print_explanation(console, each)
    return int(ExitCode.OK)


def _one(options: Namespace) -> LoadedSpec:
    return api.open_spec(options.spec, set=_settings(options), only=options.only)


def _explain_all(options: Namespace, made: Plan) -> int:
    """Everything that is wrong or notable, one finding after the other."""
    findings = (*made.problems, *made.conflicts, *made.unmatched, *made.notes, *made.stale)
    if options.format == "json":
        _print_json({"findings": [finding.as_json() for finding in findings]})
        return int(ExitCode.OK)
    from mlxpipe.report.console import print_findings

    console = _console()
    print_findings(console, dict.fromkeys(findings))
    if not findings:
        console.print(f"{made.name}: nothing is wrong, and nobody disagrees")
    return int(ExitCode.OK)


def check(options: Namespace) -> int:
    """`mlxpipe check`: every spec, without MLX; the worst exit code."""
    from mlxpipe.report.github import annotate
    from mlxpipe.spec import LOCK_SUFFIX

    worst = ExitCode.OK
    results = []
    for spec in options.specs:
        if Path(spec).name.endswith(LOCK_SUFFIX):
            continue  # `specs/*.yaml` names them too; `lock --check` is for them
        code, findings = _check_one(spec, options)
        worst = max(worst, code)
        told = [finding.as_json() for finding in findings]
        annotate(findings)
        results.append({"spec": spec, "exit_code": int(code), "findings": told})
        if options.format == "human":
            if findings:
                print(render_all(findings), file=sys.stderr)
            if not options.quiet:
                print(f"{spec}: {'ok' if code == ExitCode.OK else 'failed'}")
    if options.format == "json":
        _print_json({"specs": results, "exit_code": int(worst)})
    return int(worst)


def _check_one(spec: str, options: Namespace) -> tuple[ExitCode, list[Diagnostic]]:
    """What is wrong with a spec, in any of its combinations: each finding once."""
    from mlxpipe.execution.matrix import plan_all

    try:
        specs = api.open_specs(spec, set=_settings(options), only=options.only)
    except MlxpipeError as error:
        return error.exit_code, list(error.diagnostics)
    worst = ExitCode.OK
    found: dict[str, Diagnostic] = {}
    for made in plan_all(specs, architecture=False, inputs=True):
        if isinstance(made, MlxpipeError):
            worst, findings = max(worst, made.exit_code), made.diagnostics
        else:
            findings = (*made.conflicts, *made.unmatched, *made.problems)
            worst = max(worst, PlanError.exit_code if made.problems else ExitCode.OK)
        found |= {each.render(): each for each in findings}
    return worst, list(found.values())


def lock(options: Namespace) -> int:
    """`mlxpipe lock`: of a matrix, each combination has a lock of its own."""
    from mlxpipe.locking import lock_path
    from mlxpipe.report.live import ConsoleReporter

    specs = _specs(options)
    if options.lock_file and len(specs) > 1:
        raise UsageError(
            "one-lock-each",
            "--lock-file names one file, and each combination has a lock of its own",
            help="choose one with --only",
        )
    progress = not (options.no_progress or options.quiet)
    bar = ConsoleReporter(None, _console(stderr=True), progress=progress).bar
    act = _check_lock if options.check else _write_lock
    named = Path(options.lock_file) if options.lock_file else None
    told = [act(options, loaded, named or lock_path(loaded), bar) for loaded in specs]
    code = max(each["exit_code"] for each in told)
    if options.format == "json":
        _print_json({"locks": told, "exit_code": code} if specs[0].label else told[0])
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


def show(options: Namespace) -> int:
    """`mlxpipe show`."""
    from mlxpipe.spec import resolved_yaml, resolved_yaml_with_origins

    specs = _specs(options)
    if options.format == "json":
        several = len(specs) > 1
        shown = [_shown(loaded, labelled=several, with_origins=options.origins) for loaded in specs]
        _print_json({"name": specs[0].name, "combinations": shown} if several else shown[0])
        return int(ExitCode.OK)
    write = resolved_yaml_with_origins if options.origins else resolved_yaml
    for loaded in specs:
        if len(specs) > 1:
            print(f"--- # {loaded.label}")
        print(write(loaded), end="")
    return int(ExitCode.OK)


def report(options: Namespace) -> int:
    """`mlxpipe report`."""
    from mlxpipe.report.page import open_runs, write_page

    views = open_runs(options.runs)
    path = Path(options.output)
    write_page(views, path, options.title or "")
    print(f"wrote {path}: {len(views)} run{'s' if len(views) > 1 else ''}", file=sys.stderr)
    return int(ExitCode.OK)


def _shown(loaded: LoadedSpec, *, labelled: bool, with_origins: bool) -> dict[str, Any]:
    """The resolved spec, alone or beside its label and its origins."""
    from mlxpipe.spec import origins, resolved

    spec = resolved(loaded)
    label = {"label": loaded.label, "matrix": dict(loaded.matrix)} if labelled else {}
    beside = {**label, "origins": origins(loaded)} if with_origins else label
    return {**beside, "spec": spec} if beside else spec


def diff(options: Namespace) -> int:
    """`mlxpipe diff`: 1 for a difference only where `--exit-code` asks for it."""
    from mlxpipe.report.difference import compare, open_side

    one, other = open_side(options.one), open_side(options.other)
    found = compare(one, other)
    if options.format == "json":
        _print_json(found.as_json())
    else:
        from mlxpipe.report.console_difference import print_difference

        print_difference(_console(), one, other, found)
    return int(ExitCode.EXPECTATION if found and options.exit_code else ExitCode.OK)


def schema(options: Namespace) -> int:
    """`mlxpipe schema`."""
    from mlxpipe.spec import json_schema

    _print_json(json_schema())
    return int(ExitCode.OK)


def init(options: Namespace) -> int:
    """`mlxpipe init`."""
    from mlxpipe.starter import starter_spec, write_spec

    text = starter_spec(options.model, options.output)
    if options.output is None:
        print(text, end="")
    else:
        write_spec(options.output, text, force=options.force)
        print(f"wrote {options.output}; next: mlxpipe plan {options.output}", file=sys.stderr)
    return int(ExitCode.OK)


def doctor(options: Namespace) -> int:
    """`mlxpipe doctor`."""
    from mlxpipe.doctor import examine

    report = examine()
    if options.format == "json":
        _print_json(report.as_json())
    else:
        print(report.render())
    return int(ExitCode.OK)


def _report_problems(made: Plan) -> int:
    """Problems on stderr, as every command ends with them."""
    if not made.problems:
        return int(ExitCode.OK)
    from mlxpipe.report.console import print_findings

    print_findings(_console(stderr=True), made.problems)
    return int(PlanError.exit_code)


def _print_json(value: Any) -> None:
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def _console(*, stderr: bool = False) -> Console:
    from mlxpipe.report.console import PipedConsole

    # In a file or a pipe there is no edge to wrap at; a wide table stays whole.
    plain = not (sys.stderr if stderr else sys.stdout).isatty()
    return PipedConsole(stderr=stderr, highlight=False, width=160 if plain else None)
