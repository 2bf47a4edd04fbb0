"""The command line in processes of its own: imports, signals, pipes."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import QWEN
from cli_types import Command

from mlxpipe import __version__
from mlxpipe.cli import COMMANDS

Start = Callable[..., subprocess.Popen[str]]
Write = Callable[..., Path]

SOURCE = {"path": str(QWEN)}
LOGITS = {"type": "logits", "tokens": [1, 2, 3]}

#: Runs a command line and prints, as JSON, which of the modules named first were imported.
IMPORTED = """
import contextlib, io, json, sys
from mlxpipe.cli import main
wanted = sys.argv[1].split(",")
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(sys.argv[2:])
print(json.dumps([name for name in wanted if name in sys.modules]))
"""


# --- help ------------------------------------------------------------------------------------


def test_help_lists_every_command(cli: Command) -> None:
    result = cli("--help")

    assert result.code == 0
    assert "exit codes" in result.out
    assert all(f"\n    {command.name} " in result.out for command in COMMANDS)


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_help_of_a_command(cli: Command, command: str) -> None:
    result = cli(command, "--help")

    assert result.code == 0
    assert result.out.startswith(f"usage: mlxpipe {command}")
    assert f"examples:\n  mlxpipe {command}" in result.out
    assert "--format" in result.out


@pytest.mark.parametrize("command", [command.name for command in COMMANDS])
def test_every_command_is_implemented(command: str) -> None:
    from mlxpipe.commands import command as find

    assert callable(find(command))


def test_python_m(process: Command) -> None:
    result = process("--version")

    assert (result.code, result.out) == (0, f"mlxpipe {__version__}\n")


# --- what is imported ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "never"),
    [
        (("--help",), "pydantic,yaml,mlx.core,rich,numpy,huggingface_hub"),
        (("check", QWEN), "mlx.core,mlx_lm,transformers,numpy,huggingface_hub,rich"),
        (("show", "spec.yaml"), "mlx.core,mlx_lm,transformers,numpy,huggingface_hub"),
        (("init", QWEN), "mlx.core,mlx_lm,transformers,numpy,huggingface_hub"),
        (("plan", QWEN), "transformers,huggingface_hub"),
        (("explain", QWEN), "transformers,huggingface_hub"),
    ],
)
def test_nothing_is_imported_in_vain(
    process: Command, write: Write, arguments: tuple[object, ...], never: str
) -> None:
    write(source=SOURCE)

    result = process(never, *arguments, python=("-c", IMPORTED))

    assert (result.code, result.json) == (0, [])


# --- interrupted -----------------------------------------------------------------------------


def test_an_interrupted_task_is_recorded(
    cli: Command, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlxpipe.tasks.logits.run", interrupt)
    write(source=SOURCE, tasks=[LOGITS, LOGITS])

    result = cli("run", "spec.yaml")

    assert result.code == 130
    assert result.err.endswith("interrupted\n")
    (written,) = tmp_path.glob("runs/spec/*/run.json")
    record = json.loads(written.read_text())
    assert record["exit_code"] == 130
    assert [task["status"] for task in record["tasks"]] == ["interrupted", "skipped"]


def test_ctrl_c(start: Start, write: Write, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a b c d e f g " * 40_000)
    slow = {"type": "perplexity", "data": "text.txt", "context": 16}
    write(source=SOURCE, tasks=[slow])
    process = start("run", "spec.yaml")
    try:
        wait_for_task(tmp_path)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()

    assert process.returncode == 130
    assert err.endswith("interrupted\n")
    assert "Traceback" not in err
    assert statuses(tmp_path) == ["interrupted"]


def wait_for_task(folder: Path) -> None:
    """Until the run's first task is running."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        if "running" in statuses(folder):
            return
        time.sleep(0.05)
    raise AssertionError("the task never began")


def statuses(folder: Path) -> list[str]:
    return [
        task["status"]
        for path in folder.glob("runs/spec/*/run.json")
        for task in json.loads(path.read_text())["tasks"]
    ]


# --- pipes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [("schema",), ("show", "spec.yaml"), ("check", "spec.yaml"), ("plan", "spec.yaml")],
    ids=lambda arguments: arguments[0],
)
def test_a_reader_that_went_away(start: Start, write: Write, arguments: tuple[str, ...]) -> None:
    write(source=SOURCE)
    process = start(*arguments)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        err = process.stderr.read()

    assert process.wait(30) == 128 + signal.SIGPIPE
    assert err == ""


def test_a_run_goes_on_without_its_reader(start: Start, write: Write, tmp_path: Path) -> None:
    prompts = ["one", "two", "three"]
    generate = {"type": "generate", "prompt": prompts, "max_tokens": 8, "chat": False}
    write(source=SOURCE, tasks=[generate, LOGITS])
    process = start("run", "spec.yaml")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    with process.stderr:
        err = process.stderr.read()

    assert process.wait(30) == 128 + signal.SIGPIPE
    assert "Traceback" not in err
    assert statuses(tmp_path) == ["done", "done"]


def test_json_on_stdout_is_all_there_is(process: Command, write: Write) -> None:
    write(source=SOURCE, tasks=[LOGITS])

    result = process("run", "spec.yaml", "--format", "json")

    assert result.code == 0
    assert result.json["tasks"][0]["status"] == "done"
    assert "Traceback" not in result.err
