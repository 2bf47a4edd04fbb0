"""Exports of the zoo, made once for all tests that only read them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from builders import spec
from export_tools import ENTRY, entry_spec

import mlxpipe
from mlxpipe.exports.request import Exported

#: A format, and what becomes of modules that it cannot hold.
Way = tuple[str, str]


class Made(NamedTuple):
    """An export: where it is, a function to a spec of it, and the report."""

    folder: Path
    spec: Callable[..., Any]
    report: Exported


def make(source: Any, target: Path, way: Way, **options: Any) -> Made:
    """Export in one of the ways."""
    form, unsupported = way
    named = {"name": ENTRY} if form == "ollama" else {}
    report = mlxpipe.export(
        source, target, format=form, unsupported=unsupported, **named, **options
    )
    return Made(target, partial(entry_spec if form == "ollama" else spec, target), report)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Way], Made]:
    """(directory, way) -> its export, not to be changed."""
    root = tmp_path_factory.mktemp("exports")

    @cache
    def made(source: Path, way: Way) -> Made:
        return make(source, root / f"{source.name}-{'-'.join(way)}", way)

    return made
