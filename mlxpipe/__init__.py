"""mlxpipe: run quantised language models on MLX from a YAML spec that says whom to believe.

    from mlxpipe import load
    model, tokenizer = load("spec.yaml")

Names are imported when first used, so that `import mlxpipe` costs nothing and planning never loads
what only running needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlxpipe._version import __version__

if TYPE_CHECKING:
    from mlxpipe.api import (
        check_lock,
        explain,
        export,
        load,
        lock,
        make_plan,
        open_spec,
        open_specs,
        run,
        run_matrix,
    )
    from mlxpipe.checkpoint.source import open_source
    from mlxpipe.errors import (
        ExecutionError,
        ExitCode,
        LockError,
        MlxpipeError,
        PlanError,
        SourceError,
        UsageError,
    )
    from mlxpipe.plan.plan import Plan
    from mlxpipe.spec import json_schema, load_spec, load_specs, parse_spec

#: Public name -> the module that has it.
_HOMES = {
    **dict.fromkeys(
        (
            "check_lock",
            "explain",
            "export",
            "load",
            "lock",
            "make_plan",
            "open_spec",
            "open_specs",
            "run",
            "run_matrix",
        ),
        "mlxpipe.api",
    ),
    "open_source": "mlxpipe.checkpoint.source",
    **dict.fromkeys(
        (
            "ExecutionError",
            "ExitCode",
            "LockError",
            "MlxpipeError",
            "PlanError",
            "SourceError",
            "UsageError",
        ),
        "mlxpipe.errors",
    ),
    "Plan": "mlxpipe.plan.plan",
    **dict.fromkeys(("json_schema", "load_spec", "load_specs", "parse_spec"), "mlxpipe.spec"),
}

__all__ = [
    "ExecutionError",
    "ExitCode",
    "LockError",
    "MlxpipeError",
    "Plan",
    "PlanError",
    "SourceError",
    "UsageError",
    "__version__",
    "check_lock",
    "explain",
    "export",
    "json_schema",
    "load",
    "load_spec",
    "load_specs",
    "lock",
    "make_plan",
    "open_source",
    "open_spec",
    "open_specs",
    "parse_spec",
    "run",
    "run_matrix",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'mlxpipe' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    # Bound here only: `mlxpipe.run` and `mlxpipe.plan` are packages as well.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
