"""`mlxpipe lock` and `run --locked`."""

import json
import shutil
from pathlib import Path

import pytest
from builders import QWEN
from cli_types import Command, write_spec

TASKS = [
    {"id": "raw", "type": "logits", "tokens": [1, 2, 3]},
    {"id": "ppl", "type": "perplexity", "data": "text.txt", "context": 16, "windows": 4},
]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A spec with a model of its own, so that the model can be damaged."""
    shutil.copytree(QWEN, tmp_path / "model")
    (tmp_path / "text.txt").write_text("It is a truth universally acknowledged. " * 20)
    write_spec(tmp_path, source={"path": "model"}, tasks=TASKS)
    return tmp_path


def damage(project: Path) -> None:
    shard = project / "model/model.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


def runs(project: Path) -> list[Path]:
    return sorted(project.glob("runs/spec/*"))


def test_lock_then_check(cli: Command, project: Path) -> None:
    assert cli("lock", "spec.yaml").code == 0
    assert (project / "spec.lock.yaml").is_file()

    result = cli("lock", "spec.yaml", "--check")

    assert (result.code, result.out) == (0, "spec.lock.yaml: everything is as locked\n")


def test_check_says_what_changed_and_where(cli: Command, project: Path) -> None:
    cli("lock", "spec.yaml")
    damage(project)

    result = cli("lock", "spec.yaml", "--check")

    assert (result.code, result.out) == (3, "")
    assert result.err.startswith("error[file-changed]: model.safetensors is not as locked")
    assert "differs within bytes" in result.err


def test_differences_as_json(cli: Command, project: Path) -> None:
    cli("lock", "spec.yaml")
    damage(project)

    result = cli("lock", "spec.yaml", "--check", "--format", "json")

    assert result.code == result.json["exit_code"] == 3
    (found,) = result.json["differences"]
    assert found["code"] == "file-changed"
    assert found["origin"].startswith("spec.lock.yaml:")


def test_check_writes_nothing(cli: Command, project: Path) -> None:
    result = cli("lock", "spec.yaml", "--check")

    assert result.code == 3
    assert "no-lock" in result.err
    assert not (project / "spec.lock.yaml").exists()


def test_an_unsound_plan_is_not_locked(cli: Command, project: Path) -> None:
    rules = {"overrides": [{"match": "*.mlp.gate", "mode": "nvfp4"}]}
    write_spec(project, source={"path": "model"}, quantization=rules, tasks=TASKS)

    assert cli("lock", "spec.yaml").code == 4
    assert not (project / "spec.lock.yaml").exists()


def test_a_lock_elsewhere(cli: Command, project: Path) -> None:
    assert cli("lock", "spec.yaml", "--lock-file", "other.lock.yaml").code == 0

    assert cli("lock", "spec.yaml", "--lock-file", "other.lock.yaml", "--check").code == 0
    assert not (project / "spec.lock.yaml").exists()


def test_a_locked_run_of_what_is_as_locked(cli: Command, project: Path) -> None:
    cli("lock", "spec.yaml")

    record = cli("run", "spec.yaml", "--locked", "--format", "json").json

    assert record["locked"] is True
    (run,) = runs(project)
    assert (run / "spec.lock.yaml").read_bytes() == (project / "spec.lock.yaml").read_bytes()


def test_a_locked_run_of_what_changed_leaves_nothing(cli: Command, project: Path) -> None:
    cli("lock", "spec.yaml")
    damage(project)

    result = cli("run", "spec.yaml", "--locked")

    assert result.code == 3
    assert "file-changed" in result.err
    assert runs(project) == []


def test_a_locked_run_without_a_lock(cli: Command, project: Path) -> None:
    result = cli("run", "spec.yaml", "--locked")

    assert result.code == 3
    assert "mlxpipe lock SPEC" in result.err
    assert runs(project) == []


def test_versions_can_be_allowed(cli: Command, project: Path) -> None:
    cli("lock", "spec.yaml")
    path = project / "spec.lock.yaml"
    path.write_text(path.read_text().replace("  mlxpipe: ", "  mlxpipe: 9."))

    assert cli("run", "spec.yaml", "--locked").code == 3
    assert cli("run", "spec.yaml", "--locked", "--allow-versions").code == 0


def test_check_of_many_specs_passes_over_their_locks(cli: Command, project: Path) -> None:
    cli("lock", "spec.yaml")

    result = cli("check", "spec.yaml", "spec.lock.yaml", "--format", "json")

    assert result.code == 0
    assert [each["spec"] for each in result.json["specs"]] == ["spec.yaml"]


def test_a_lock_given_as_a_spec_is_an_error_that_says_so(cli: Command, project: Path) -> None:
    cli("lock", "spec.yaml")

    result = cli("run", "spec.lock.yaml")

    assert result.code == 2
    assert "spec.lock.yaml is a lock" in result.err
    assert "spec.yaml" in result.err


def test_two_locks_can_be_compared(cli: Command, project: Path) -> None:
    cli("lock", "spec.yaml", "--lock-file", "one.lock.yaml")
    damage(project)
    recipe = [{"match": "lm_head", "bits": 4, "group_size": 32}]
    write_spec(project, source={"path": "model"}, quantize=recipe, tasks=TASKS)
    cli("lock", "spec.yaml", "--lock-file", "other.lock.yaml")

    told = cli("diff", "one.lock.yaml", "other.lock.yaml", "--format", "json").json

    assert {each["name"] for each in told["settings"]} == {
        "files.model.safetensors.sha256",
        "table.sha256",
    }
    assert [each["modules"] for each in told["modules"]] == [["language_model.lm_head"]]


def test_the_same_locked_spec_run_twice(cli: Command, project: Path) -> None:
    from mlxpipe.execution.record import comparable

    cli("lock", "spec.yaml")
    for _ in range(2):
        assert cli("run", "spec.yaml", "--locked", "--force").code == 0

    one, other = (json.loads((run / "run.json").read_text()) for run in runs(project))
    assert one != other
    assert comparable(one) == comparable(other)
    assert all(task["digests"] for task in one["tasks"] if task["outputs"])
    logits = [(run / "tasks/raw/logits.safetensors").read_bytes() for run in runs(project)]
    assert logits[0] == logits[1]


def test_other_weights_do_not_compare_equal(cli: Command, project: Path) -> None:
    from mlxpipe.execution.record import comparable

    first = cli("run", "spec.yaml", "--format", "json").json
    damage(project)
    second = cli("run", "spec.yaml", "--format", "json").json

    assert comparable(first) != comparable(second)


def test_each_combination_of_a_matrix_has_a_lock_of_its_own(cli: Command, project: Path) -> None:
    raw = TASKS[0]
    write_spec(project, source={"path": "model"}, tasks=[raw], matrix={"run.seed": [1, 2]})
    assert cli("lock", "spec.yaml").code == 0
    locks = sorted(path.name for path in project.glob("*.lock.yaml"))
    assert len(locks) == 2
    assert cli("run", "spec.yaml", "--locked", "-q").code == 0
    damage(project)

    result = cli("lock", "spec.yaml", "--check", "--format", "json")

    assert result.code == result.json["exit_code"] == 3
    assert [Path(each["lock"]).name for each in result.json["locks"]] == locks
    assert cli("lock", "spec.yaml", "--lock-file", "one.lock.yaml").code == 2


def test_composing_a_spec_otherwise_locks_the_same(cli: Command, project: Path) -> None:
    cli("lock", "spec.yaml")
    (project / "spec.yaml").rename(project / "base.yaml")
    write_spec(project, extends="base.yaml", vars={"seed": 0}, run={"seed": "${vars.seed}"})

    assert cli("lock", "spec.yaml", "--check").code == 0
    assert cli("lock", "spec.yaml", "--check", "--set", "run.seed=1").code == 3
