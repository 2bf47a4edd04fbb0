"""What can be done with a model: one module for each type of task."""

from __future__ import annotations

from importlib import import_module

from mlxpipe.tasks.base import Context, Outcome, Replay, Reporter, Runner

#: Type of a task -> the module whose `run` does it.
MODULES = {
    "benchmark": "mlxpipe.tasks.benchmark",
    "compare": "mlxpipe.tasks.compare",
    "evaluate": "mlxpipe.tasks.evaluate",
    "export": "mlxpipe.tasks.export",
    "generate": "mlxpipe.tasks.generate",
    "logits": "mlxpipe.tasks.logits",
    "perplexity": "mlxpipe.tasks.perplexity",
    "sensitivity": "mlxpipe.tasks.sensitivity",
}

#: Types whose result is a measurement of this moment, or that read what no fingerprint sees, such
#: as lm-eval's data sets; it is never taken from an earlier run.
NEVER_REUSED = frozenset({"benchmark", "evaluate"})


def runner(kind: str) -> Runner:
    """The function that does tasks of a type."""
    function: Runner = import_module(MODULES[kind]).run
    return function


def replay(kind: str) -> Replay | None:
    """What shows the result of a task that is not done again, if the type has such a function."""
    function: Replay | None = getattr(import_module(MODULES[kind]), "replay", None)
    return function


__all__ = [
    "MODULES",
    "NEVER_REUSED",
    "Context",
    "Outcome",
    "Replay",
    "Reporter",
    "Runner",
    "replay",
    "runner",
]
