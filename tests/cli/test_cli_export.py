"""`mlxpipe export`, and the task of that type."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import DATA, QWEN
from cli_types import Command

from mlxpipe import make_plan

SOURCE = {"path": str(QWEN)}
FP8 = DATA / "mo-fp8-llama"

Write = Callable[..., Path]


def test_a_task_writes_a_model_that_loads(cli: Command, write: Write, tmp_path: Path) -> None:
    tokens = [1, 5, 9, 63]
    logits = {"type": "logits", "tokens": tokens}
    export = {"id": "out", "type": "export", "path": "out/model", "format": "mlx"}
    write(source=SOURCE, tasks=[logits, export])

    record = cli("run", "spec.yaml", "--format", "json").json

    task = record["tasks"][1]
    assert (task["id"], task["status"]) == ("out", "done")
    assert task["outputs"]["model"] == str(tmp_path / "out/model")
    assert task["metrics"]["modules_identical"] == 53
    assert task["metrics"]["shards"] == 1
    size = (tmp_path / "out/model/model.safetensors").stat().st_size
    assert 0 < size - task["metrics"]["bytes"] < 40_000
    modules = json.loads(Path(task["outputs"]["modules"]).read_text())
    gate = modules["language_model.model.layers.0.mlp.gate"]
    assert gate == {"scheme": "affine 8-bit g64", "fidelity": "identical"}

    write("again.yaml", source={"path": "out/model"}, tasks=[logits])
    again = cli("run", "again.yaml", "--format", "json").json
    files = [Path(run["tasks"][0]["outputs"]["logits"]) for run in (record, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_export_needs_no_model_in_memory(
    cli: Command, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*arguments: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr("mlxpipe.graph.build.build_model", forbidden)
    write(source=SOURCE, tasks=[{"type": "export", "path": "out"}])

    assert cli("run", "spec.yaml").code == 0


def test_a_taken_target_is_known_before_the_first_task(
    cli: Command, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    write(
        source=SOURCE,
        tasks=[{"type": "logits", "tokens": [1]}, {"type": "export", "path": "out"}],
    )

    result = cli("run", "spec.yaml")

    assert result.code == 2
    assert "error[target-exists]" in result.err
    assert "spec.yaml:" in result.err and "(tasks.1)" in result.err
    assert not (tmp_path / "runs").exists()


def test_a_task_adds_an_entry_to_a_store(cli: Command, write: Write, tmp_path: Path) -> None:
    task = {"type": "export", "path": "store", "format": "ollama", "name": "tiny:v1"}
    write(source=SOURCE, tasks=[task])

    assert cli("run", "spec.yaml").code == 0

    write("entry.yaml", source={"ollama": "tiny:v1", "store": "store"})
    plan = make_plan(tmp_path / "entry.yaml").require_sound()
    assert (plan.conflicts, plan.stale) == ((), ())


@pytest.mark.parametrize(
    ("task", "code"),
    [
        ({"format": "ollama"}, "missing-key"),
        ({"name": "a:b"}, "exclusive-keys"),
        ({"format": "ollama", "name": "a", "unsupported": "keep"}, "exclusive-keys"),
        ({"format": "ollama", "name": "../b"}, "bad-name"),
        ({"format": "gguf"}, "unknown-value"),
        ({"max_shard_bytes": 0}, "out-of-range"),
        ({"overwite": True}, "unknown-key"),
    ],
    ids=lambda each: str(each),
)
def test_what_a_task_may_not_say(
    cli: Command, write: Write, tmp_path: Path, task: dict[str, object], code: str
) -> None:
    write(source=SOURCE, tasks=[{"type": "export", "path": "out", **task}])

    result = cli("show", "spec.yaml")

    assert result.code == 2
    assert f"error[{code}]" in result.err
    assert "spec.yaml:" in result.err


def test_the_command(cli: Command, tmp_path: Path) -> None:
    result = cli("export", FP8, "-o", "out")

    assert result.code == 0
    assert "2 of 16 modules identical" in result.out
    assert "14 modules dequantised: a factor on its output" in result.out
    make_plan(tmp_path / "out").require_sound()


def test_the_command_in_json(cli: Command, tmp_path: Path) -> None:
    arguments = ("--to", "ollama", "--name", "tiny", "--format", "json")
    told = cli("export", QWEN, "-o", tmp_path / "store", *arguments).json

    assert told["path"] == str(tmp_path / "store")
    assert told["modules_identical"] == len(told["modules"]) == 53
    head = told["modules"]["language_model.lm_head"]
    assert head["scheme"] == "affine 6-bit g32"
    assert "no quant_type" in head["reason"]


def test_a_refusal_of_the_command_names_the_modules(cli: Command, tmp_path: Path) -> None:
    result = cli("export", FP8, "-o", "out", "--unsupported", "error")

    assert result.code == 5
    assert "error[unsupported-modules]" in result.err
    assert "model.layers.0.mlp.down_proj: a factor" in result.err
    assert "… and 6 others" in result.err
    assert list(tmp_path.iterdir()) == []


SLOW = """
import sys, time
from mlxpipe import cli
from mlxpipe.exports import files
original = files.fill
def slow(*arguments):
    print("writing", flush=True)
    time.sleep(30)
files.fill = slow
sys.exit(cli.main(sys.argv[1:]))
"""


def test_ctrl_c_leaves_nothing(start: Callable[..., object], tmp_path: Path) -> None:
    process = start("export", QWEN, "-o", "deep/out", python=("-c", SLOW))
    try:
        assert process.stdout.readline() == "writing\n"
        assert list(tmp_path.glob("deep/.out.*.partial/*.safetensors"))
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()

    assert process.returncode == 130
    assert err.endswith("interrupted\n")
    assert list(tmp_path.iterdir()) == []
