"""What can be done with a model: one module for each type of task."""

from __future__ import annotations

from importlib import import_module

from mlxpipe.tasks.base import Context, Outcome, Reporter, Runner

#: Type of a task -> the module whose `run` does it.
MODULES = {
    "benchmark": "mlxpipe.tasks.benchmark",
    "compare": "mlxpipe.tasks.compare",
    "evaluate": "mlxpipe.tasks.evaluate",
    "generate": "mlxpipe.tasks.generate",
    "logits": "mlxpipe.tasks.logits",
    "perplexity": "mlxpipe.tasks.perplexity",
    "sensitivity": "mlxpipe.tasks.sensitivity",
}


def runner(kind: str) -> Runner:
    """The function that does tasks of a type."""
    function: Runner = import_module(MODULES[kind]).run
    return function


__all__ = ["MODULES", "Context", "Outcome", "Reporter", "Runner", "runner"]
