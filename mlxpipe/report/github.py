"""Findings as annotations that GitHub shows beside the lines of a change.

A workflow command is a line of its own; %, newlines and, in properties, : and , are escaped.
https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable

from mlxpipe.errors import Diagnostic

_LEVELS = {"error": "error", "warning": "warning", "note": "notice"}

_DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})

#: GitHub shows ten of a step; more would only hide the first.
MOST = 10


def in_github_actions() -> bool:
    """Whether this runs as a step of a GitHub workflow."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def annotate(findings: Iterable[Diagnostic], *, asked: bool = False) -> None:
    """Print annotations on stderr, in a GitHub workflow or where they are asked for."""
    if asked or in_github_actions():
        print(workflow_commands(findings), end="", file=sys.stderr)


def workflow_commands(findings: Iterable[Diagnostic]) -> str:
    """One line for each finding, up to ten."""
    return "".join(f"{_annotation(each)}\n" for each in list(findings)[:MOST])


def _annotation(finding: Diagnostic) -> str:
    properties = {"title": finding.code}
    origin = finding.origin
    if origin is not None:
        properties["file"] = origin.file
        places = {"line": origin.line, "col": origin.column}
        properties |= {key: str(place) for key, place in places.items() if place is not None}
    listed = ",".join(f"{key}={value.translate(_PROPERTY)}" for key, value in properties.items())
    details = (("found", finding.found), ("expected", finding.expected), ("help", finding.help))
    text = "\n".join([finding.message, *(f"{name}: {text}" for name, text in details if text)])
    return f"::{_LEVELS[finding.severity]} {listed}::{text.translate(_DATA)}"
