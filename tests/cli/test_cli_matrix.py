"""Matrices, settings and origins on the command line."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import QWEN
from cli_types import Command, run_process, write_spec

from mlxpipe import run_matrix
from mlxpipe.spec import load_spec

SOURCE = {"path": str(QWEN)}
LOGITS = {"id": "out", "type": "logits", "tokens": [1, 2, 3]}
PERPLEXITY = {"type": "perplexity", "data": "text.txt", "context": 16, "windows": 2}
SEEDS = {"run.seed": [1, 2, 3]}
#: The second of three fails once it runs: there is no such token.
TOKENS = {"tasks.out.tokens": {"one": [1, 2], "bad": [1, 999999], "two": [3]}}


def matrix_spec(folder: Path, matrix: Any, **sections: Any) -> str:
    sections = {"source": SOURCE, "tasks": [LOGITS], "matrix": matrix, **sections}
    return write_spec(folder, **sections).name


# --- run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    (folder / "text.txt").write_text("It is a truth universally acknowledged. " * 20)
    axes = {"tasks.perplexity.context": [8, 16], "model.dtype": ["float32"]}
    matrix_spec(folder, axes, tasks=[LOGITS, PERPLEXITY])
    result = run_process(folder, "run", "spec.yaml", "--format", "json")
    assert (result.code, "Traceback" in result.err) == (0, False)
    read: dict[str, Any] = result.json
    return read


def test_run_prints_one_object_with_a_record_for_each_combination(
    record: dict[str, Any], folder: Path
) -> None:
    assert record.keys() == {"name", "runs", "skipped", "summary", "exit_code"}
    assert (record["name"], record["exit_code"], record["skipped"]) == ("spec", 0, [])
    labels = ["context-8_dtype-float32", "context-16_dtype-float32"]
    assert [run["label"] for run in record["runs"]] == labels
    assert record["runs"][0]["matrix"] == {"tasks.perplexity.context": 8, "model.dtype": "float32"}
    for run, label in zip(record["runs"], labels, strict=True):
        left = Path(run["run_dir"])
        assert left.parent == folder / "runs" / "spec" / label
        assert json.loads((left / "run.json").read_text()) == run
        assert load_spec(left / "spec.resolved.yaml").spec.model.dtype == "float32"
        assert {task["status"] for task in run["tasks"]} == {"done"}


def test_the_summary_is_a_file_too(record: dict[str, Any], folder: Path) -> None:
    (summary,) = (folder / "runs" / "spec").glob("matrix-*.json")
    assert Path(record["summary"]) == summary
    assert json.loads(summary.read_text()) == record


def test_a_table_compares_the_combinations(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("It is a truth universally acknowledged. " * 20)
    tasks = [PERPLEXITY, {**PERPLEXITY, "context": 8}]
    result = cli("run", matrix_spec(tmp_path, SEEDS, tasks=tasks), "--only", "run.seed=2")
    lines = result.out.strip().splitlines()
    row, summary = lines[-2:]
    # Two tasks have the same metrics, so these say whose they are.
    assert "perplexity-2" in lines[0] and "bits per weight" in lines[0]
    assert "bits_per_byte" not in result.out
    assert row.startswith("seed-2") and row.rstrip().endswith("done")
    assert summary.startswith("summary: runs/spec/matrix-")


def test_a_spec_without_a_matrix_keeps_its_record(cli: Command, tmp_path: Path) -> None:
    path = write_spec(tmp_path, source=SOURCE, tasks=[LOGITS])
    told = cli("run", path, "--format", "json", "--set", "run.seed=5").json
    assert told["seed"] == 5
    assert not {"runs", "matrix", "label"} & told.keys()
    assert Path(told["run_dir"]).parent == tmp_path / "runs" / "spec"


def statuses(told: Any) -> list[tuple[str, int]]:
    return [(run["label"], run["exit_code"]) for run in told["runs"]]


def test_a_failed_combination_ends_the_run(cli: Command, tmp_path: Path) -> None:
    result = cli("run", matrix_spec(tmp_path, TOKENS), "--format", "json")
    assert (result.code, result.json["exit_code"]) == (5, 5)
    assert statuses(result.json) == [("one", 0), ("bad", 5)]
    assert result.json["skipped"] == ["two"]
    assert "bad:\nerror[token-out-of-range]" in result.err


def test_keep_going_goes_on_and_ends_with_the_worst(cli: Command, tmp_path: Path) -> None:
    result = cli("run", matrix_spec(tmp_path, TOKENS), "--keep-going")
    assert result.code == 5
    rows = [line.split()[0] + " " + line.split()[-1] for line in result.out.splitlines() if line]
    assert {"one done", "bad failed", "two done"} <= set(rows)


def test_a_typo_in_the_last_combination_costs_nothing(cli: Command, tmp_path: Path) -> None:
    matrix = {"quantization.overrides": [[], [{"match": "*.gat", "bits": 8}]]}
    result = cli("run", matrix_spec(tmp_path, matrix))
    assert (result.code, result.out) == (4, "")
    assert "error[unmatched-override]" in result.err
    assert "in combination overrides-2" in result.err
    assert not (tmp_path / "runs").exists()


def test_keep_going_runs_the_combinations_that_can_be_planned(cli: Command, tmp_path: Path) -> None:
    matrix = {"source.path": {"none": "no-such-model", "some": str(QWEN)}}
    spec = matrix_spec(tmp_path, matrix)
    result = cli("run", spec, "--keep-going", "--format", "json")
    assert result.code == 3
    assert statuses(result.json) == [("none", 3), ("some", 0)]
    assert result.json["runs"][0]["error"].startswith("error[missing-path]")
    assert cli("run", spec).code == 3


def test_shards_share_the_work(cli: Command, tmp_path: Path) -> None:
    spec = matrix_spec(tmp_path, SEEDS)
    parts = [cli("run", spec, "--shard", f"{part}/4", "--format", "json") for part in (1, 2, 3, 4)]
    assert [part.code for part in parts] == [0, 0, 0, 0]
    labels = [[run["label"] for run in part.json["runs"]] for part in parts]
    assert labels == [["seed-1"], ["seed-2"], ["seed-3"], []]
    result = cli("run", spec, "--shard", "5/4")
    assert result.code == 2
    assert "--> --shard 5/4" in result.err


def test_an_interruption_stops_all_and_leaves_the_summary_so_far(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxpipe.tasks import logits

    done, real = [], logits.run

    def interrupt(context: Any, number: int, folder: Path) -> Any:
        done.append(context.loaded.label)
        if len(done) == 2:
            raise KeyboardInterrupt
        return real(context, number, folder)

    monkeypatch.setattr("mlxpipe.tasks.logits.run", interrupt)
    result = cli("run", matrix_spec(tmp_path, SEEDS), "--keep-going", "--format", "json")
    assert (result.code, result.json["exit_code"]) == (130, 130)
    assert statuses(result.json) == [("seed-1", 0), ("seed-2", 130)]
    assert result.json["skipped"] == ["seed-3"]
    (summary,) = tmp_path.glob("runs/spec/matrix-*.json")
    assert json.loads(summary.read_text()) == result.json
    (left,) = tmp_path.glob("runs/spec/seed-2/*/run.json")
    assert json.loads(left.read_text())["exit_code"] == 130


def test_ctrl_c_in_a_process(tmp_path: Path, start: Callable[..., Any]) -> None:
    tasks = [{"type": "generate", "prompt": "x", "max_tokens": 100000, "chat": False}]
    matrix_spec(tmp_path, SEEDS, tasks=tasks)
    with start("run", "spec.yaml", "--keep-going") as process:
        while not list(tmp_path.glob("runs/spec/seed-1/*/tasks/generate")):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.endswith("interrupted\n") and "Traceback" not in err
    assert "seed-3" in out and "skipped" in out


def test_a_place_that_cannot_be_written(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    result = cli("run", matrix_spec(tmp_path, SEEDS))
    assert result.code == 5
    assert "error[cannot-write]" in result.err


def test_run_matrix_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tmp_path / matrix_spec(tmp_path, TOKENS)
    record = run_matrix(spec, set={"run.seed": 9}, only=["one", "bad"], keep_going=True)
    assert [each.status for each in record.combinations] == ["done", "failed"]
    assert record.combinations[1].error is not None
    assert record.combinations[1].error.code == "token-out-of-range"
    assert record.combinations[0].record is not None
    assert record.combinations[0].record.seed == 9


# --- plan, explain, check, show


def test_plan_has_a_row_for_each_combination(cli: Command, tmp_path: Path) -> None:
    matrix = {"model.dtype": ["float32", "float16"]}
    spec = matrix_spec(tmp_path, matrix)
    rows = cli("plan", spec).out.splitlines()
    assert [row.split()[0] for row in rows] == ["combination", "dtype-float32", "dtype-float16"]
    assert "bits per weight" in rows[0] and "nvfp4 4-bit g16" in rows[1]
    told = cli("plan", spec, "--format", "json").json
    assert [each["label"] for each in told["combinations"]] == ["dtype-float32", "dtype-float16"]
    assert told["combinations"][0]["modules"]
    one = cli("plan", spec, "--only", "dtype-float16", "--format", "json").json
    assert one["numerics"]["dtype"] == "float16"


def test_plan_of_a_matrix_ends_with_the_worst(cli: Command, tmp_path: Path) -> None:
    matrix = {"quantization.overrides": [[], [{"match": "*.gat", "bits": 8}]]}
    result = cli("plan", matrix_spec(tmp_path, matrix))
    assert result.code == 4
    assert len(result.out.splitlines()) == 3
    assert "in combination overrides-2" in result.err


def test_an_expectation_that_one_combination_misses(cli: Command, tmp_path: Path) -> None:
    expect = [{"plan": "modules", "max": 1}, {"task": "out", "metric": "tokens", "max": 2}]
    spec = matrix_spec(tmp_path, {"tasks.out.tokens": [[1, 2], [1, 2, 3]]}, expect=expect[1:])
    result = cli("run", spec, "--format", "json")
    assert statuses(result.json) == [("tokens-1", 0), ("tokens-2", 1)]
    assert result.code == 1
    spec = matrix_spec(tmp_path, SEEDS, expect=expect[:1])
    planned = cli("plan", spec, "--only", "run.seed=1", "--only", "run.seed=3")
    assert planned.code == 1
    assert "in combination seed-3" in planned.err


def test_explain_needs_one_combination(cli: Command, tmp_path: Path) -> None:
    spec = matrix_spec(tmp_path, SEEDS)
    result = cli("explain", spec)
    assert result.code == 2
    assert "error[several-combinations]" in result.err and "--only" in result.err
    assert cli("explain", spec, "--only", "seed-2").code == 0


def test_check_looks_at_every_combination(cli: Command, tmp_path: Path) -> None:
    matrix = {"tasks": {"fine": [LOGITS], "wrong": [PERPLEXITY]}}
    spec = matrix_spec(tmp_path, matrix)
    result = cli("check", spec)
    assert (result.code, result.out) == (2, "spec.yaml: failed\n")
    assert "text.txt cannot be read" in result.err
    assert cli("check", spec, "--only", "fine").code == 0
    assert cli("check", spec, "--only", "wrong", "--set", "tasks=[]").code == 2


def test_show_prints_the_outcome_with_origins(cli: Command, tmp_path: Path) -> None:
    spec = matrix_spec(tmp_path, SEEDS)
    every = cli("show", spec).out
    assert every.count("--- # seed-") == 3
    one = cli("show", spec, "--only", "seed-2", "--set", "model.dtype=float32", "--origins").out
    assert "  seed: 2 " in one and "(matrix)" in one
    assert "# --set model.dtype=float32" in one
    told = cli("show", spec, "--only", "seed-2", "--origins", "--format", "json").json
    assert told["spec"]["run"] == {"seed": 2}
    assert told["origins"]["run.seed"].endswith("(matrix)")
    assert told["origins"]["model.dtype"] == "default"
    plain = cli("show", spec, "--only", "seed-2", "--format", "json").json
    assert plain == told["spec"]
    several = cli("show", spec, "--format", "json").json
    assert [each["matrix"] for each in several["combinations"]] == [
        {"run.seed": number} for number in (1, 2, 3)
    ]


def test_show_writes_a_spec_that_comes_out_the_same(cli: Command, tmp_path: Path) -> None:
    shown = cli("show", matrix_spec(tmp_path, SEEDS), "--only", "seed-2", "--origins").out
    (tmp_path / "again.yaml").write_text(shown)
    assert cli("show", "again.yaml").out == cli("show", "spec.yaml", "--only", "seed-2").out


@pytest.mark.parametrize("command", ["run", "plan", "explain", "check", "show"])
def test_a_wrong_setting_is_named_by_every_command(
    cli: Command, tmp_path: Path, command: str
) -> None:
    path = write_spec(tmp_path, source=SOURCE, tasks=[LOGITS])
    result = cli(command, path.name, "--set", "model.dtyp=float32")
    assert result.code == 2
    assert "--> --set model.dtyp=float32" in result.err
    assert "did you mean 'model.dtype'?" in result.err


def test_settings_of_a_checkpoint_directory(cli: Command) -> None:
    told = cli("plan", QWEN, "--set", "model.dtype=float16", "--format", "json").json
    assert told["numerics"]["dtype"] == "float16"
    result = cli("plan", QWEN, "--only", "x")
    assert (result.code, "no matrix" in result.err) == (2, True)
