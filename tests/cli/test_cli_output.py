"""What the commands print and write: the contracts other programs rely on."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import QWEN, STORE, STORE_MODEL
from cli_types import Command, run_process, write_spec
from safetensors.numpy import load_file

Write = Callable[..., Path]

SOURCE = {"path": str(QWEN)}
GATE = "language_model.model.layers.0.mlp.gate"
LOGITS = {"type": "logits", "tokens": [3, 1, 4, 1, 5]}
GENERATE = {"type": "generate", "prompt": ["one", "two"], "max_tokens": 5, "chat": False}
PERPLEXITY = {"type": "perplexity", "data": "text.txt", "context": 32, "windows": 2}
PLAN_KEYS = {"modules", "conflicts", "stale", "unmatched", "totals"}


# --- run -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    (folder / "text.txt").write_text("It is a truth universally acknowledged. " * 20)
    write_spec(folder, source=SOURCE, tasks=[LOGITS, GENERATE, PERPLEXITY])
    result = run_process(folder, "run", "spec.yaml", "--format", "json")
    assert (result.code, "Traceback" in result.err) == (0, False)
    read: dict[str, Any] = result.json
    return read


def test_run_prints_the_contracted_record(record: dict[str, Any], folder: Path) -> None:
    assert record.keys() >= {"run_dir", "tasks", "expectations", "exit_code"}
    assert record["exit_code"] == 0
    assert Path(record["run_dir"]).parent == folder / "runs" / "spec"
    for task in record["tasks"]:
        contracted = {"id", "type", "status", "metrics", "outputs", "seconds"}
        assert task.keys() == contracted | {"digests", "fingerprint"}
        assert task["status"] == "done"
        assert task["seconds"] > 0
        assert all(Path(path).is_file() for path in task["outputs"].values())


def test_run_leaves_a_complete_directory(record: dict[str, Any], folder: Path) -> None:
    left = Path(record["run_dir"])
    files = {path.relative_to(left).as_posix() for path in left.rglob("*") if path.is_file()}

    assert files == {
        "spec.yaml",
        "spec.resolved.yaml",
        "spec.lock.yaml",
        "plan.json",
        "run.json",
        "tasks/logits/logits.safetensors",
        "tasks/generate/completions.jsonl",
    }
    assert json.loads((left / "run.json").read_text()) == record
    assert (left / "spec.yaml").read_text() == (folder / "spec.yaml").read_text()
    assert json.loads((left / "plan.json").read_text()).keys() >= PLAN_KEYS


def test_the_resolved_spec_of_a_run_is_a_spec(record: dict[str, Any], cli: Command) -> None:
    resolved = Path(record["run_dir"]) / "spec.resolved.yaml"

    assert cli("show", resolved).out == resolved.read_text()


def test_logits(record: dict[str, Any]) -> None:
    task = record["tasks"][0]
    arrays = load_file(task["outputs"]["logits"])

    assert arrays.keys() == {"tokens", "logits"}
    assert (arrays["tokens"].dtype.name, arrays["tokens"].tolist()) == ("int32", [[3, 1, 4, 1, 5]])
    assert (arrays["logits"].dtype.name, arrays["logits"].shape) == ("float32", (1, 5, 256))
    assert task["metrics"] == {"tokens": 5, "vocabulary": 256}


def test_completions(record: dict[str, Any]) -> None:
    task = record["tasks"][1]
    lines = Path(task["outputs"]["completions"]).read_text(encoding="utf-8").splitlines()
    completions = [json.loads(line) for line in lines]

    assert [each["prompt"] for each in completions] == ["one", "two"]
    for each in completions:
        assert each.keys() == {"prompt", "text", "tokens", "finish_reason"}
        assert each["finish_reason"] in ("stop", "length")
        assert len(each["tokens"]) <= 5
    generated = sum(len(each["tokens"]) for each in completions)
    assert task["metrics"]["generated_tokens"] == generated
    assert task["metrics"]["prompt_tokens"] > 0


def test_perplexity(record: dict[str, Any]) -> None:
    metrics = record["tasks"][2]["metrics"]

    assert metrics.keys() >= {"perplexity", "tokens", "bits_per_byte"}
    assert metrics["perplexity"] > 1


def test_the_store_and_the_directory_give_the_same_logits(cli: Command, write: Write) -> None:
    sources = {"store": {"ollama": STORE_MODEL, "store": str(STORE)}, "folder": SOURCE}
    logits = {}
    for name, source in sources.items():
        write(f"{name}.yaml", source=source, tasks=[LOGITS])
        told = cli("run", f"{name}.yaml", "--format", "json").json
        logits[name] = load_file(told["tasks"][0]["outputs"]["logits"])["logits"]

    assert (logits["store"] == logits["folder"]).all()


def test_run_for_people(cli: Command, write: Write) -> None:
    write(source=SOURCE, tasks=[GENERATE])

    result = cli("run", "spec.yaml")
    quiet = cli("run", "spec.yaml", "-q")

    assert result.code == quiet.code == 0
    assert "generated_tokens" in result.out
    assert "record: " in result.out
    assert "\x1b" not in result.out + result.err
    assert "generate:" in result.err
    assert "generate:" not in quiet.err


def test_a_bare_directory_runs_no_tasks(cli: Command, tmp_path: Path) -> None:
    result = cli("run", QWEN, "--format", "json")

    assert result.json["tasks"] == []
    assert Path(result.json["run_dir"]).is_relative_to(tmp_path / "runs")


# --- plan and explain ------------------------------------------------------------------------


def test_plan_prints_the_contracted_object(cli: Command, write: Write) -> None:
    write(source=SOURCE)

    told = cli("plan", "spec.yaml", "--format", "json").json

    assert told.keys() >= PLAN_KEYS
    for module in told["modules"].values():
        assert module.keys() >= {"grade", "source", "origin"}
        assert module.get("dense") is True or module.keys() >= {"mode", "bits", "group_size"}
    assert told["modules"][GATE]["mode"] == "affine"
    assert told["modules"][GATE]["source"] == "config"
    assert "config.json:" in told["modules"][GATE]["origin"]
    assert told["totals"]["schemes"]["nvfp4 4-bit g16"] == 38


def test_plan_for_people(cli: Command) -> None:
    short, long = cli("plan", QWEN), cli("plan", QWEN, "--all")

    assert (short.code, short.err) == (0, "")
    assert "132 tensors" in short.out
    assert len(short.out.splitlines()) < 20
    assert len(long.out.splitlines()) > 50


def test_plan_names_a_stale_source(cli: Command, write: Write) -> None:
    write(source={"ollama": STORE_MODEL, "store": str(STORE)})

    assert "9 stale claims of metadata" in cli("plan", "spec.yaml").out


@pytest.mark.parametrize(
    "name",
    [
        GATE,
        f"{GATE}.weight",
        f"{GATE}.scales",
        "model.language_model.layers.0.mlp.gate",
    ],
)
def test_explain_finds_a_module_by_any_of_its_names(cli: Command, name: str) -> None:
    result = cli("explain", QWEN, name)

    assert result.code == 0
    assert result.out.startswith(f"{GATE}  ")
    assert "affine 8-bit g64" in result.out
    assert "config.json" in result.out
    assert "arithmetic" in result.out


def test_explain_several_as_json(cli: Command) -> None:
    told = cli("explain", QWEN, GATE, "language_model.lm_head", "--format", "json").json

    assert [each["path"] for each in told["explanations"]] == [GATE, "language_model.lm_head"]
    assert {claim["fate"] for claim in told["explanations"][0]["claims"]} >= {"won"}


def test_explain_an_unknown_name_gives_the_nearest(cli: Command) -> None:
    result = cli("explain", QWEN, GATE.replace("gate", "gait"))

    assert result.code == 4
    assert result.out == ""
    assert "error[unknown-name]" in result.err
    assert GATE in result.err


def test_explain_without_a_name_tells_what_is_notable(cli: Command, write: Write) -> None:
    write(source={"ollama": STORE_MODEL, "store": str(STORE)})

    assert "nothing is wrong" in cli("explain", QWEN).out
    told = cli("explain", "spec.yaml", "--format", "json").json
    assert {each["code"] for each in told["findings"]} == {"stale-claim"}


# --- the others ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["show", "plan", "check", "explain"])
def test_json_is_one_object(cli: Command, write: Write, command: str) -> None:
    write(source=SOURCE, tasks=[LOGITS])

    result = cli(command, "spec.yaml", "--format", "json")

    assert isinstance(result.json, dict)
    assert result.err == ""


def test_show_is_the_spec_with_its_defaults(cli: Command, write: Write) -> None:
    write(source=SOURCE)

    told = cli("show", "spec.yaml", "--format", "json").json

    assert told["name"] == "spec"
    assert told["quantization"]["precedence"].startswith("spec > config")


def test_schema_is_the_one_in_the_repository(cli: Command) -> None:
    root = Path(__file__).parents[2]

    assert cli("schema").out == (root / "mlxpipe.schema.json").read_text(encoding="utf-8")


def test_init_prints_a_spec_that_runs(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(cli("init", QWEN).out)

    assert cli("run", "spec.yaml", "--format", "json").json["tasks"][0]["type"] == "generate"


def test_control_characters_of_a_checkpoint_are_shown_not_obeyed(
    cli: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    name = "model.\x1b[2J.weight"
    header = json.dumps({name: {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 256]}})
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(header)) + header.encode() + bytes(256)
    )

    results = [cli(command, "model") for command in ("plan", "check", "explain", "run", "init")]

    assert all("\x1b" not in result.out + result.err for result in results)


# --- expectations ----------------------------------------------------------------------------


def test_a_missed_expectation_ends_with_1_and_is_reported(cli: Command, write: Write) -> None:
    write(
        source=SOURCE,
        tasks=[GENERATE],
        expect=[
            {"task": "generate", "metric": "generated_tokens", "max": 5},
            {"plan": "conflicts", "max": 0},
        ],
        outputs={"reports": ["json", "junit", "github"]},
    )

    result = cli("run", "spec.yaml", "--format", "json")

    assert result.code == 1
    assert result.json["exit_code"] == 1
    assert [(each["name"], each["passed"]) for each in result.json["expectations"]] == [
        ("plan.conflicts", True),
        ("generate.generated_tokens", False),
    ]
    assert "::error title=expectation,file=spec.yaml,line=" in result.err
    reports = Path(result.json["run_dir"]) / "reports"
    assert json.loads((reports / "report.json").read_text()) == result.json
    assert 'failures="1"' in (reports / "junit.xml").read_text()


def test_plan_checks_what_is_expected_of_it(cli: Command, write: Write) -> None:
    write(source=SOURCE, expect=[{"module": "*.mlp.gate", "bits": 4}])

    result = cli("plan", "spec.yaml")

    assert result.code == 1
    assert "error[expectation]: *.mlp.gate is not as expected" in result.err
    assert "affine 8-bit g64" in result.err
