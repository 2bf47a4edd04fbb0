"""The command line as a user meets it: in this process, or in one of its own."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cli_types import Command, Result, run_process, start_process, write_spec

from mlxpipe.cli import main


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Command:
    """Run a command line in this process, in `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(each) for each in arguments])
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def process(tmp_path: Path) -> Command:
    """Run a command line in a process of its own, in `tmp_path`."""
    return partial(run_process, tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start a command line in a process of its own, in `tmp_path`, and do not wait."""
    return partial(start_process, tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a spec in `tmp_path`."""
    return partial(write_spec, tmp_path)
