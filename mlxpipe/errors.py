"""What can go wrong, in one shape.

The tree, and the exit code of each branch:

* MlxpipeError
  - UsageError      2   the command line or the spec
  - SourceError     3   the checkpoint: files, headers, manifests
  - LockError       3   something is not as locked
  - PlanError       4   a conflict, an unmatched override, a contradiction
  - ExecutionError  5   the graph or a task

Every error carries one or more `Diagnostic` values: what happened, where, what was found, what was
expected and what to do. Warnings and notes of a plan are the same value with another severity.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import IntEnum
from typing import Any, ClassVar, Literal

Severity = Literal["error", "warning", "note"]


class ExitCode(IntEnum):
    """Exit codes of the command line; other programs rely on them."""

    OK = 0
    EXPECTATION = 1
    USAGE = 2
    SOURCE = 3
    PLAN = 4
    EXECUTION = 5
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Origin:
    """A place in a file that a person can go to.

    Attributes:
        file: The file as the user knows it (never an absolute path the user did not write).
        line: 1-based line, or None where only a JSON pointer is known.
        column: 1-based column.
        pointer: JSON pointer (RFC 6901) inside `file`, "" for none.
        context: The dotted path inside the spec, such as `source` or `tasks.0`.
        text: The line of text itself, for the excerpt under the error.
        width: How many characters the caret underlines.
    """

    file: str
    line: int | None = None
    column: int | None = None
    pointer: str = ""
    context: str = ""
    text: str = field(default="", compare=False)
    width: int = field(default=1, compare=False)

    def __str__(self) -> str:
        place = self.file
        if self.line is not None:
            place += f":{self.line}"
            if self.column is not None:
                place += f":{self.column}"
        if self.pointer:
            place += f"#{self.pointer}"
        return place


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding: an error, a warning or a note.

    Attributes:
        code: A stable kebab-case name, such as `unknown-key`.
        message: One sentence without a full stop.
        origin: Where it is.
        label: A few words to stand beside the caret.
        found: What was there.
        expected: What should have been there.
        help: What to do about it.
        notes: Further lines (arithmetic, claims), each printed on its own.
        module: The module path concerned, "" for none.
        severity: `error`, `warning` or `note`.
    """

    code: str
    message: str
    origin: Origin | None = None
    label: str = ""
    found: str = ""
    expected: str = ""
    help: str = ""
    notes: tuple[str, ...] = ()
    module: str = ""
    severity: Severity = "error"

    def render(self) -> str:
        """The finding as text, one trailing newline excluded."""
        lines = [f"{self.severity}[{self.code}]: {self.message}"]
        if self.origin is not None:
            where = f" ({self.origin.context})" if self.origin.context else ""
            lines.append(f"  --> {self.origin}{where}")
            lines += _excerpt(self.origin, self.label)
        details = (("found", self.found), ("expected", self.expected), ("help", self.help))
        lines += [f"  = {name}: {_indent(text)}" for name, text in details if text]
        lines += [f"  {_indent(note)}" for note in self.notes]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """A JSON-ready mapping without empty fields."""
        fields: dict[str, Any] = {
            "severity": self.severity,
            "code": self.code,
            "message": self.message,
            "module": self.module,
            "origin": str(self.origin) if self.origin else "",
            "found": self.found,
            "expected": self.expected,
            "help": self.help,
            "notes": list(self.notes),
        }
        return {key: value for key, value in fields.items() if value}


#: How many findings of one code are listed, if only by module.
MOST = 16


def render_all(diagnostics: Iterable[Diagnostic], full: int = 3) -> str:
    """Findings as text: those of one code in full at first, then by module alone.

    A checkpoint with one wrong declaration has the same finding in every layer.
    """
    by_code: dict[str, list[Diagnostic]] = {}
    for item in diagnostics:
        by_code.setdefault(item.code, []).append(item)
    blocks = []
    for code, found in by_code.items():
        repeats = len(found) > full and all(item.module for item in found)
        shown = 1 if repeats else len(found)
        blocks += [item.render() for item in found[:shown]]
        if repeats:
            names = "\n".join(f"  {item.module}{_gist(item)}" for item in found[1:MOST])
            names += f"\n  … and {len(found) - MOST} others" if len(found) > MOST else ""
            blocks.append(
                f"{found[0].severity}[{code}]: the same for {len(found) - 1} more\n{names}"
            )
    return "\n\n".join(blocks)


def _gist(item: Diagnostic) -> str:
    """The last thing that was found, where several lines lead to it."""
    lines = item.found.splitlines()
    return f" ({lines[-1]})" if len(lines) > 1 else ""


def _indent(text: str) -> str:
    return text.replace("\n", "\n      ")


def _excerpt(origin: Origin, label: str) -> list[str]:
    if origin.line is None or not origin.text:
        return [f"   {label}"] if label else []
    gutter = f"{origin.line:>4} | "
    lines = [gutter + origin.text]
    if origin.column is not None:
        carets = " " * (origin.column - 1) + "^" * max(1, origin.width)
        lines.append(" " * (len(gutter) - 2) + "| " + carets + (f" {label}" if label else ""))
    return lines


class MlxpipeError(Exception):
    """The root of the tree; catch it to catch everything mlxpipe reports.

    Attributes:
        diagnostics: What was found, the first one being the headline.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.EXECUTION

    def __init__(self, code: str, message: str, **details: Any) -> None:
        self.diagnostics: tuple[Diagnostic, ...] = (Diagnostic(code, message, **details),)
        super().__init__(message)

    @classmethod
    def several(cls, diagnostics: Iterable[Diagnostic]) -> MlxpipeError:
        """One error for several findings (at least one)."""
        found = tuple(replace(item, severity="error") for item in diagnostics)
        error = cls(found[0].code, found[0].message)
        error.diagnostics = found
        return error

    @property
    def code(self) -> str:
        """The headline's code."""
        return self.diagnostics[0].code

    def __str__(self) -> str:
        return render_all(self.diagnostics)


class UsageError(MlxpipeError):
    """The command line or the spec is wrong."""

    exit_code = ExitCode.USAGE


class SourceError(MlxpipeError):
    """The checkpoint cannot be read as declared."""

    exit_code = ExitCode.SOURCE


class LockError(MlxpipeError):
    """There is no usable lock, or something is not as locked."""

    exit_code = ExitCode.SOURCE


class PlanError(MlxpipeError):
    """The declarations do not fit each other, the architecture or the tensors."""

    exit_code = ExitCode.PLAN


class ExecutionError(MlxpipeError):
    """The graph or a task failed."""

    exit_code = ExitCode.EXECUTION


def missing_extra(package: str, extra: str, message: str, **details: Any) -> ExecutionError:
    """The error for something that needs a package which only an extra of mlxpipe brings."""
    return ExecutionError(
        f"no-{package}",
        message,
        found=f"{package} is not installed",
        help=f"pip install 'mlxpipe[{extra}]'",
        **details,
    )


def nearest(name: str, known: Iterable[str], count: int = 1) -> list[str]:
    """Up to `count` names of `known` that resemble `name`, best first."""
    return get_close_matches(name, list(known), n=count, cutoff=0.6)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?`, or "" where nothing is near."""
    return "".join(f"did you mean '{near}'?" for near in nearest(name, known))
