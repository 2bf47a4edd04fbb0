"""`completion`: mlxpipe's command line for a shell."""

from __future__ import annotations

from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterator

from mlxpipe.errors import ExitCode, UsageError

#: Arguments whose values are files or directories.
_FILES = frozenset({"spec", "specs", "one", "other", "runs", "model", "output", "lock_file"})
_DIRECTORIES = frozenset({"directory"})


def completion(options: Namespace) -> int:
    """`mlxpipe completion`."""
    try:
        import shtab
    except ImportError as error:
        raise UsageError(
            "missing-extra",
            "completion scripts need shtab, which is not installed",
            help="pip install 'mlxpipe[completion]'",
        ) from error
    for action in _actions(options.parser):
        if action.dest in _FILES | _DIRECTORIES:
            files = shtab.DIRECTORY if action.dest in _DIRECTORIES else shtab.FILE
            action.complete = files  # type: ignore[attr-defined]
    print(shtab.complete(options.parser, options.shell), end="")
    return int(ExitCode.OK)


def _actions(parser: ArgumentParser) -> Iterator[Action]:
    """Those of every command."""
    for action in parser._actions:
        yield action
        if isinstance(action.choices, dict):
            for command in action.choices.values():
                yield from _actions(command)
