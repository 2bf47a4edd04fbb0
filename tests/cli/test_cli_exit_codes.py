"""Wrong inputs as people make them: the contracted exit code, and one clear error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import QWEN, STORE, STORE_MODEL, layer, write_checkpoint
from cli_types import Command, write_spec

LOGITS = {"type": "logits", "tokens": [1, 2, 3]}
Case = Callable[[Path], str]


def spec_of(folder: Path, **sections: Any) -> str:
    """A spec that is right but for what a case puts in."""
    return write_spec(folder, **{"source": {"path": str(QWEN)}, "tasks": [LOGITS]} | sections).name


def unknown_key(folder: Path) -> str:
    return spec_of(folder, source={"hub": "org/name", "revison": "main"})


def yaml_syntax(folder: Path) -> str:
    (folder / "spec.yaml").write_text("version: 1\nsource: {path: model\ntasks: []\n")
    return "spec.yaml"


def missing_spec(folder: Path) -> str:
    spec_of(folder)
    return "spce.yaml"


def missing_directory(folder: Path) -> str:
    (folder / "model-4bit").mkdir()
    return spec_of(folder, source={"path": "modle-4bit"})


def truncated_weights(folder: Path) -> str:
    shutil.copytree(QWEN, folder / "model")
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return spec_of(folder, source={"path": "model"})


def missing_ollama_model(folder: Path) -> str:
    name = STORE_MODEL.replace("mixed", "mixd")
    return spec_of(folder, source={"ollama": name, "store": str(STORE)})


def hub_without_network(folder: Path) -> str:
    return spec_of(folder, source={"hub": "nobody/nothing-at-all", "revision": "0" * 40})


def contradiction(folder: Path) -> str:
    source = {"ollama": STORE_MODEL, "store": str(STORE)}
    return spec_of(folder, source=source, quantization={"precedence": "metadata > config"})


def unknown_architecture(folder: Path) -> str:
    tensors = layer("model.layers.0.mlp.up_proj", None, 64, 64)
    write_checkpoint(folder / "model", tensors, {"model_type": "lama"})
    return spec_of(folder, source={"path": "model"})


def unmatched_override(folder: Path) -> str:
    overrides = [{"match": "*.mlp.gat", "mode": "affine", "bits": 8}]
    return spec_of(folder, quantization={"overrides": overrides})


def token_out_of_range(folder: Path) -> str:
    return spec_of(folder, tasks=[{"type": "logits", "tokens": [1, 999999]}])


BEFORE_THE_RUN = [
    (unknown_key, 2, "unknown-key", "did you mean 'revision'?"),
    (yaml_syntax, 2, "yaml-syntax", "spec.yaml:"),
    (missing_spec, 2, "file-not-found", "did you mean 'spec.yaml'?"),
    (missing_directory, 3, "missing-path", "did you mean 'model-4bit'?"),
    (truncated_weights, 3, None, "model.safetensors"),
    (missing_ollama_model, 3, "model-not-found", f"did you mean '{STORE_MODEL}'?"),
    (hub_without_network, 3, "hub-offline", "hf download nobody/nothing-at-all"),
    (contradiction, 4, "contradiction", "config > metadata"),
    (unknown_architecture, 4, None, "llama"),
    (unmatched_override, 4, "unmatched-override", "*.mlp.gat"),
]


def case_id(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize("format_", ["human", "json"])
@pytest.mark.parametrize(("case", "exit_code", "code", "says"), BEFORE_THE_RUN, ids=case_id)
def test_run_refuses(
    cli: Command,
    tmp_path: Path,
    case: Case,
    exit_code: int,
    code: str | None,
    says: str,
    format_: str,
) -> None:
    result = cli("run", case(tmp_path), "--format", format_)

    assert result.code == exit_code
    assert result.out == ""
    assert result.err.startswith(f"error[{code}]: " if code else "error[")
    assert says in result.err
    assert "Traceback" not in result.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("case", "exit_code", "code", "says"),
    [each for each in BEFORE_THE_RUN if each[0] is not unknown_architecture],
    ids=case_id,
)
def test_plan_refuses_alike(
    cli: Command, tmp_path: Path, case: Case, exit_code: int, code: str | None, says: str
) -> None:
    result = cli("plan", case(tmp_path))

    assert result.code == exit_code
    assert f"error[{code or ''}" in result.err
    assert says in result.err


def test_plan_needs_no_architecture(cli: Command, tmp_path: Path) -> None:
    result = cli("plan", unknown_architecture(tmp_path))

    assert result.code == 0
    assert "dense" in result.out
    said = result.out + result.err
    assert "warning[unknown-architecture]" in said
    assert "warning[unverified]" in said


@pytest.mark.parametrize(
    ("case", "exit_code"), [(each[0], each[1]) for each in BEFORE_THE_RUN], ids=case_id
)
def test_debug_gives_the_traceback_of_what_is_raised(
    cli: Command, tmp_path: Path, case: Case, exit_code: int
) -> None:
    with pytest.raises(Exception) as caught:
        cli("run", case(tmp_path), "--debug")

    assert caught.value.exit_code == exit_code  # type: ignore[attr-defined]


def test_a_task_that_fails_leaves_its_record(cli: Command, tmp_path: Path) -> None:
    result = cli("run", token_out_of_range(tmp_path))

    assert result.code == 5
    assert "error[token-out-of-range]: token 999999" in result.err
    assert "spec.yaml:" in result.err
    assert "Traceback" not in result.err
    (written,) = tmp_path.glob("runs/spec/*/run.json")
    record = json.loads(written.read_text())
    assert record["exit_code"] == 5
    assert [task["status"] for task in record["tasks"]] == ["failed"]


def test_a_task_that_fails_is_one_json_record(cli: Command, tmp_path: Path) -> None:
    result = cli("run", token_out_of_range(tmp_path), "--format", "json")

    assert result.code == result.json["exit_code"] == 5
    assert result.json["tasks"][0]["error"].startswith("error[token-out-of-range]")


def test_the_tasks_after_a_failure_are_skipped(cli: Command, tmp_path: Path) -> None:
    tasks = [LOGITS, {"type": "logits", "tokens": [999999]}, LOGITS]

    record = cli("run", spec_of(tmp_path, tasks=tasks), "--format", "json").json

    assert [task["status"] for task in record["tasks"]] == ["done", "failed", "skipped"]


def test_an_error_of_a_library_is_wrapped(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise ValueError("[matmul] shapes do not match")

    monkeypatch.setattr("mlxpipe.tasks.logits.run", fail)

    result = cli("run", spec_of(tmp_path))

    assert result.code == 5
    assert "error[task-failed]: task 'logits' (logits) failed" in result.err
    assert "[matmul] shapes do not match" in result.err


def test_a_run_directory_that_cannot_be_made(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()

    result = cli("run", spec_of(tmp_path))

    assert result.code == 5
    assert "error[cannot-write]" in result.err


def test_a_contradiction_stays_a_plan_in_json(cli: Command, tmp_path: Path) -> None:
    result = cli("plan", contradiction(tmp_path), "--format", "json")

    assert result.code == 4
    assert {problem["code"] for problem in result.json["problems"]} == {"contradiction"}
    assert "error[contradiction]" in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("runn", "spec.yaml"),
        ("run",),
        ("run", "spec.yaml", "--formt", "json"),
        ("plan", "spec.yaml", "--format", "xml"),
        ("check",),
    ],
)
def test_a_wrong_command_line(cli: Command, arguments: tuple[str, ...]) -> None:
    result = cli(*arguments)

    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("usage: mlxpipe")


def test_check_ends_with_the_worst(cli: Command, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    spec_of(good)
    contradiction(bad)

    result = cli("check", "good/spec.yaml", "bad/spec.yaml", "none.yaml")

    assert result.code == 4
    assert result.out.splitlines() == [
        "good/spec.yaml: ok",
        "bad/spec.yaml: failed",
        "none.yaml: failed",
    ]
    told = cli("check", "good/spec.yaml", "bad/spec.yaml", "none.yaml", "--format", "json").json
    assert [each["exit_code"] for each in told["specs"]] == [0, 4, 2]
    assert told["exit_code"] == 4


def test_init_refuses_to_overwrite(cli: Command, tmp_path: Path) -> None:
    first = cli("init", QWEN, "-o", "spec.yaml")
    text = (tmp_path / "spec.yaml").read_text()

    assert (first.code, first.out) == (0, "")
    assert first.err == "wrote spec.yaml; next: mlxpipe plan spec.yaml\n"
    again = cli("init", QWEN, "-o", "spec.yaml")
    assert again.code == 2
    assert "error[exists]" in again.err
    assert (tmp_path / "spec.yaml").read_text() == text
    assert cli("init", QWEN, "-o", "spec.yaml", "--force").code == 0
    assert cli("check", "spec.yaml").code == 0
