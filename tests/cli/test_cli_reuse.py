"""What a run takes over from earlier ones: finished tasks, and the steps of interrupted ones."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import QWEN
from cli_types import Command, write_spec

SOURCE = {"path": str(QWEN)}
LOGITS = {"id": "raw", "type": "logits", "tokens": [1, 2, 3]}
GENERATE = {"id": "gen", "type": "generate", "prompt": ["one", "two", "three"], "max_tokens": 4}
PERPLEXITY = {"id": "ppl", "type": "perplexity", "data": "text.txt", "context": 16}

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(autouse=True)
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("It is a truth universally acknowledged. " * 20)
    return path


def run(cli: Command, *options: str) -> dict[str, Any]:
    result = cli("run", "spec.yaml", "--format", "json", *options)
    assert result.code == 0, result.err
    read: dict[str, Any] = result.json
    return read


def reused(record: dict[str, Any]) -> list[str]:
    return [task["id"] for task in record["tasks"] if "reused_from" in task]


def files(record: dict[str, Any]) -> dict[str, bytes]:
    """Every output file of a run, by its path inside."""
    root = Path(record["run_dir"])
    found = (path for path in (root / "tasks").rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def forbid_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("mlxpipe.graph.build.build_model", refuse)


# --- finished tasks --------------------------------------------------------------------------


def test_finished_tasks_are_reused_without_a_model(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS, GENERATE, PERPLEXITY])
    first = run(cli)
    forbid_loading(monkeypatch)

    second = run(cli)

    assert reused(first) == []
    assert reused(second) == ["raw", "gen", "ppl"]
    assert {task["reused_from"] for task in second["tasks"]} == {Path(first["run_dir"]).name}
    assert [task["status"] for task in second["tasks"]] == ["done"] * 3
    assert files(second) == files(first)
    for task in second["tasks"]:
        assert all(path.startswith(second["run_dir"]) for path in task["outputs"].values())


def test_a_reused_task_says_so_and_shows_its_text_again(cli: Command, tmp_path: Path) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[GENERATE])
    first = cli("run", "spec.yaml")
    second = cli("run", "spec.yaml")

    shown = first.out.partition("task")[0]
    assert shown.count("\n") >= 3
    assert second.out.startswith(shown)
    assert "nothing changed, reused from" in second.err
    assert "reused" in second.out


def test_records_of_a_run_and_of_one_that_reused_it_compare_equal(
    cli: Command, tmp_path: Path
) -> None:
    from mlxpipe.execution.record import comparable

    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS, PERPLEXITY])

    assert comparable(run(cli)) == comparable(run(cli))


def test_force_does_everything_again(cli: Command, tmp_path: Path) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS, GENERATE])
    first, second = run(cli), run(cli, "--force")

    assert reused(second) == []
    assert files(second) == files(first)


def test_only_the_task_that_changed_is_done_again(cli: Command, tmp_path: Path) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS, GENERATE, PERPLEXITY])
    run(cli)
    write_spec(tmp_path, source=SOURCE, tasks=[{**GENERATE, "max_tokens": 5}, PERPLEXITY, LOGITS])

    assert reused(run(cli)) == ["ppl", "raw"]


@pytest.mark.parametrize(
    "sections",
    [
        {"run": {"seed": 1}},
        {"model": {"kernels": "packed"}},
        {"model": {"dtype": "checkpoint"}},
    ],
    ids=json.dumps,
)
def test_other_settings_are_other_inputs(
    cli: Command, tmp_path: Path, sections: dict[str, Any]
) -> None:
    model = sections.get("model", {}) | {
        "kernels": sections.get("model", {}).get("kernels", "dense")
    }
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS], model={"kernels": "dense"})
    run(cli)
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS], **{**sections, "model": model})

    assert reused(run(cli)) == []


def test_changed_data_are_other_inputs(cli: Command, tmp_path: Path, text: Path) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS, PERPLEXITY])
    run(cli)
    text.write_text(text.read_text().replace("truth", "trust", 1))

    assert reused(run(cli)) == ["raw"]


def test_a_refactored_spec_reuses(cli: Command, tmp_path: Path, text: Path) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[PERPLEXITY])
    run(cli)
    text.rename(tmp_path / "austen.txt")
    rule = {"match": r"re:.*\.mlp\.gate", "bits": 8, "group_size": 64}
    tasks = [{**PERPLEXITY, "data": "austen.txt", "id": "renamed"}]
    write_spec(tmp_path, source=SOURCE, tasks=tasks, quantization={"overrides": [rule]})

    assert reused(run(cli)) == ["renamed"]


def test_a_changed_output_is_not_reused(cli: Command, tmp_path: Path) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS, GENERATE])
    first = run(cli)
    Path(first["tasks"][1]["outputs"]["completions"]).write_text("{}\n")

    second = run(cli)

    assert reused(second) == ["raw"]
    assert Path(first["tasks"][1]["outputs"]["completions"]).read_text() == "{}\n"


def test_a_missing_output_is_not_reused(cli: Command, tmp_path: Path) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS])
    Path(run(cli)["tasks"][0]["outputs"]["logits"]).unlink()

    assert reused(run(cli)) == []


def test_runs_that_moved_are_reused(cli: Command, tmp_path: Path) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS])
    run(cli)
    (tmp_path / "runs").rename(tmp_path / "kept")
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS], outputs={"dir": "kept"})

    assert reused(run(cli)) == ["raw"]


def test_a_type_that_measures_the_moment_is_never_reused(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxpipe.execution.executor.NEVER_REUSED", frozenset({"logits"}))
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS, PERPLEXITY])
    run(cli)

    assert reused(run(cli)) == ["ppl"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"run_dir": "x", "tasks": [{"id": "../.."}, 1, {}]}', '{"run_dir": 1}'],
)
def test_a_record_that_is_none_is_passed_over(cli: Command, tmp_path: Path, text: str) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS])
    first = Path(run(cli)["run_dir"])
    broken = first.parent / "99999999-000000-ffff"
    broken.mkdir()
    (broken / "run.json").write_text(text)
    (first.parent / "a-file").write_text("")

    assert reused(run(cli)) == ["raw"]


# --- interrupted ones ------------------------------------------------------------------------


#: The command line, with a mark in the file `steps` and a pause for each step of a task.
COUNTED = """
import sys, time
from mlxpipe.cli import main
from mlxpipe.tasks import generate, perplexity
def counted(function):
    def step(*arguments):
        with open("steps", "a") as file:
            file.write("x")
        time.sleep(float(sys.argv[1]))
        return function(*arguments)
    return step
generate.collect = counted(generate.collect)
perplexity.negative_log_likelihood = counted(perplexity.negative_log_likelihood)
sys.exit(main(sys.argv[2:]))
"""

#: Each run of a test is such a process, since a program may compute with another BLAS than the
#: command line, and does not reuse its results then.
PYTHON = ("-c", COUNTED)

STEPS = 12


def kept_steps(folder: Path) -> int:
    """How many steps the one run that has any has kept."""
    written = folder.glob("runs/spec/*/tasks/*/progress.jsonl")
    return max((len(path.read_bytes().splitlines()) for path in written), default=0)


def stop_half_way(start: Start, folder: Path, how: signal.Signals) -> int:
    """Start a run, stop it after a few steps, and say how many it had done."""
    process = start("0.5", "run", "spec.yaml", python=PYTHON)
    try:
        ends = time.monotonic() + 60
        while kept_steps(folder) < 3 and time.monotonic() < ends:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(how)
        process.communicate(timeout=30)
    finally:
        process.kill()
    return kept_steps(folder)


def go_on(process: Command, folder: Path, *options: str) -> tuple[dict[str, Any], int]:
    """Run to the end; returns the record and how many steps were done."""
    (folder / "steps").write_text("")
    result = process("0", "run", "spec.yaml", "--format", "json", *options, python=PYTHON)
    assert result.code == 0, result.err
    return result.json, len((folder / "steps").read_text())


def slow_task(kind: str) -> dict[str, Any]:
    if kind == "perplexity":
        return {**PERPLEXITY, "windows": STEPS}
    prompts = [f"prompt {number}" for number in range(STEPS)]
    return {**GENERATE, "prompt": prompts, "temperature": 0.8}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "ctrl-c"])
@pytest.mark.parametrize("kind", ["perplexity", "generate"])
def test_an_interrupted_run_goes_on_where_it_ended(
    process: Command, start: Start, tmp_path: Path, kind: str, how: signal.Signals
) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS, slow_task(kind)])
    done = stop_half_way(start, tmp_path, how)
    (stopped,) = tmp_path.glob("runs/spec/*")
    left = json.loads((stopped / "run.json").read_text())
    state = "running" if how is signal.SIGKILL else "interrupted"
    assert [each["status"] for each in left["tasks"]] == ["done", state]

    resumed, rest = go_on(process, tmp_path)
    whole, every = go_on(process, tmp_path, "--force")

    assert reused(resumed) == ["raw"]
    assert resumed["tasks"][1]["resumed_from"] == stopped.name
    assert (rest, every) == (STEPS - done, STEPS)
    assert files(resumed) == files(whole)
    assert resumed["tasks"][1]["metrics"] == whole["tasks"][1]["metrics"]
    assert resumed["tasks"][1]["digests"] == whole["tasks"][1]["digests"]
    assert json.loads((stopped / "run.json").read_text()) == left


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from mlxpipe.tasks import generate

    function, counted = generate.collect, []

    def counting(*arguments: Any) -> Any:
        counted.append(1)
        return function(*arguments)

    monkeypatch.setattr(generate, "collect", counting)
    return counted


def test_a_torn_line_is_done_again(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[GENERATE])
    fail_at(monkeypatch, 3)
    assert cli("run", "spec.yaml").code == 5
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (left,) = tmp_path.glob("runs/spec/*/tasks/gen/progress.jsonl")
    left.write_bytes(left.read_bytes()[:-7])
    counted = count_steps(monkeypatch)

    run(cli)

    assert len(counted) == 2


def test_with_force_nothing_is_resumed(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[GENERATE])
    fail_at(monkeypatch, 3)
    assert cli("run", "spec.yaml").code == 5
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    counted = count_steps(monkeypatch)

    run(cli, "--force")

    assert len(counted) == 3


def fail_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    from mlxpipe.tasks import generate

    function, calls = generate.collect, []

    def failing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            raise RuntimeError("out of memory")
        return function(*arguments)

    monkeypatch.setattr(generate, "collect", failing)


def test_two_runs_at_once_do_not_meet(start: Start, tmp_path: Path) -> None:
    write_spec(tmp_path, source=SOURCE, tasks=[LOGITS, GENERATE])
    processes = [start("run", "spec.yaml", "--format", "json") for _ in range(2)]
    outcomes = [process.communicate(timeout=120)[0] for process in processes]

    one, other = map(json.loads, outcomes)
    assert one["run_dir"] != other["run_dir"]
    assert files(one) == files(other)
    assert {task["status"] for task in (*one["tasks"], *other["tasks"])} == {"done"}
