"""`plan`, `explain` and `check`: what is decided, and why."""

from __future__ import annotations

import gc
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlxpipe import api
from mlxpipe.commands.common import (
    all_specs,
    numerics_here,
    one_spec,
    people_console,
    print_json,
    report_misses,
    report_problems,
    settings,
)
from mlxpipe.errors import (
    Diagnostic,
    ExitCode,
    MlxpipeError,
    PlanError,
    render_all,
)

if TYPE_CHECKING:
    from mlxpipe.plan.plan import Plan
    from mlxpipe.spec import LoadedSpec


def plan(options: Namespace) -> int:
    """`mlxpipe plan`."""
    # The process ends with the plan; walking a large one for cycles would only cost time.
    gc.disable()
    from mlxpipe.execution.expectations import check_plan

    specs = all_specs(options)
    if len(specs) > 1:
        return _plan_matrix(options, specs)
    loaded = specs[0]
    made = api.make_plan(loaded)
    numerics = numerics_here(loaded, made)
    checked = check_plan(loaded, made)
    if options.format == "json":
        print_json(
            {
                **made.as_json(),
                "numerics": numerics.as_json() if numerics else None,
                "expectations": [each.as_json() for each in checked],
            }
        )
    else:
        from mlxpipe.report.console import print_plan

        print_plan(people_console(), made, numerics, every=options.every)
    misses = [each.diagnostic() for each in checked if not each.passed]
    return report_problems(made) or report_misses(misses)


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
        print_json({"name": specs[0].name, "combinations": told})
    else:
        from mlxpipe.report.matrix import print_plans

        print_plans(people_console(), plans)
    if wrong:
        raise gathered(wrong)
    return report_misses(misses)


def explain(options: Namespace) -> int:
    """`mlxpipe explain`."""
    from mlxpipe.report.console import print_explanation

    made = api.make_plan(one_spec(options))
    if not options.names:
        return _explain_all(options, made)
    told = [api.explain(made, name) for name in options.names]
    if options.format == "json":
        print_json({"explanations": [each.as_json() for each in told]})
        return int(ExitCode.OK)
    console = people_console()
    for number, each in enumerate(told):
        if number:
            console.print()
        print_explanation(console, each)
    return int(ExitCode.OK)


def _explain_all(options: Namespace, made: Plan) -> int:
    """Everything that is wrong or notable, one finding after the other."""
    findings = (*made.problems, *made.conflicts, *made.unmatched, *made.notes, *made.stale)
    if options.format == "json":
        print_json({"findings": [finding.as_json() for finding in findings]})
        return int(ExitCode.OK)
    from mlxpipe.report.console import print_findings

    console = people_console()
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
        print_json({"specs": results, "exit_code": int(worst)})
    return int(worst)


def _check_one(spec: str, options: Namespace) -> tuple[ExitCode, list[Diagnostic]]:
    """What is wrong with a spec, in any of its combinations: each finding once."""
    from mlxpipe.execution.matrix import plan_all

    try:
        specs = api.open_specs(spec, set=settings(options), only=options.only)
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
