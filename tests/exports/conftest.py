"""Exports of the zoo, made once for all tests that only read them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from export_tools import Made, Way, make


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, Way], Made]:
    """(directory, way) -> its export, not to be changed."""
    root = tmp_path_factory.mktemp("exports")

    @cache
    def made(source: Path, way: Way) -> Made:
        return make(source, root / f"{source.name}-{'-'.join(way)}", way)

    return made
