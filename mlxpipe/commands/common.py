"""What several commands share: specs from options, JSON and tables on the right stream."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlxpipe import api
from mlxpipe.errors import (
    Diagnostic,
    ExecutionError,
    ExitCode,
    PlanError,
    render_all,
)

if TYPE_CHECKING:
    from rich.console import Console

    from mlxpipe.graph.numerics import Numerics
    from mlxpipe.plan.plan import Plan
    from mlxpipe.spec import LoadedSpec, Setting


def settings(options: Namespace) -> list[Setting]:
    """What `--set` asks for, in order."""
    from mlxpipe.spec import parse_setting

    return [parse_setting(text) for text in options.set]


def all_specs(options: Namespace) -> tuple[LoadedSpec, ...]:
    """Every combination of the spec that `--only` chooses; one where it has no matrix."""
    return api.open_specs(options.spec, set=settings(options), only=options.only)


def one_spec(options: Namespace) -> LoadedSpec:
    """The spec, or the one combination of it that `--only` chooses."""
    return api.open_spec(options.spec, set=settings(options), only=options.only)


def numerics_here(loaded: LoadedSpec, made: Plan) -> Numerics | None:
    """How this machine would compute; None where it cannot, because a GPU is asked for."""
    from mlxpipe.graph.numerics import choose

    try:
        return choose(loaded, made)
    except ExecutionError:
        return None


def report_problems(made: Plan) -> int:
    """Problems on stderr, as every command ends with them."""
    if not made.problems:
        return int(ExitCode.OK)
    from mlxpipe.report.console import print_findings

    print_findings(people_console(stderr=True), made.problems)
    return int(PlanError.exit_code)


def report_misses(misses: Sequence[Diagnostic]) -> int:
    """Expectations that do not hold, on stderr."""
    from mlxpipe.report.github import annotate

    if misses:
        print(render_all(misses), file=sys.stderr)
        annotate(misses)
    return int(ExitCode.EXPECTATION if misses else ExitCode.OK)


def print_json(value: Any) -> None:
    """Print one JSON value on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")


def people_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr, for what people read."""
    from mlxpipe.report.console import PipedConsole

    # In a file or a pipe there is no edge to wrap at; a wide table stays whole.
    plain = not (sys.stderr if stderr else sys.stdout).isatty()
    return PipedConsole(stderr=stderr, highlight=False, width=160 if plain else None)
