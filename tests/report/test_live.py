"""What people are shown while a run goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mlxpipe.report.console import number
from mlxpipe.report.live import ConsoleReporter

ROWS = [("model.layers.0", 0.14704, None), ("model.\x1b[2J", 0.000012, 3)]


def shown(*, quiet: bool = False) -> str:
    out = io.StringIO()
    reporter = ConsoleReporter(None, Console(file=out, width=80), quiet=quiet)
    reporter.table("the worst", ("module", "error", "count"), ROWS)
    return out.getvalue()


def test_a_table_has_short_numbers_and_dashes_for_nothing():
    lines = [line.split() for line in shown().splitlines()]
    assert lines[:3] == [
        ["the", "worst"],
        ["module", "error", "count"],
        ["model.layers.0", "0.1470", "–"],
    ]


def test_control_characters_in_a_table_are_shown_not_obeyed():
    assert "\x1b" not in shown()
    assert r"model.\x1b[2J" in shown()


def test_a_quiet_reporter_shows_no_table():
    assert shown(quiet=True) == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(24.95, "24.9500"), (0.0, "0.0000"), (1.234e-5, "1.23e-05"), (12, "12"), (-0.5, "-0.5000")],
)
def test_numbers_say_something_even_when_they_are_small(value, text):
    assert number(value) == text
