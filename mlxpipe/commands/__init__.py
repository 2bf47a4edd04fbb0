"""What each command of the command line does: call the API, print, return the exit code.

A command's module is imported when the command is called, so that the others cost nothing.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from importlib import import_module

#: Command -> the module here whose function of that name does it.
HOMES = {
    "run": "running",
    "plan": "planning",
    "explain": "planning",
    "check": "planning",
    "lock": "locks",
    "export": "running",
    "show": "specs",
    "diff": "results",
    "report": "results",
    "init": "specs",
    "schema": "specs",
    "doctor": "machine",
    "examples": "examples",
    "completion": "shell",
}


def command(name: str) -> Callable[[Namespace], int]:
    """The function that does a command and returns the exit code."""
    function: Callable[[Namespace], int] = getattr(
        import_module(f"mlxpipe.commands.{HOMES[name]}"), name
    )
    return function
