"""What others' CI and commits are checked with: the workflow's own commands, and the hook's."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_types import ENVIRONMENT, ROOT

from mlxpipe.cli import build_parser
from mlxpipe.shipped import copy

WORKFLOW = yaml.safe_load((ROOT / "examples/ci/mlxpipe.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
PATHS = ("SPECS", "LOCKED", "MATRIX")


def steps(job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = WORKFLOW["jobs"][job]["steps"]
    return found


def commands(job: str, part: int = 1) -> list[str]:
    """The job's own commands of mlxpipe, as Actions would hand them to bash."""
    runs = [step["run"] for step in steps(job) if "run" in step]
    return [
        re.sub(r"\$\{\{ matrix\.part \}\}", str(part), run)
        for run in runs
        if run.startswith("mlxpipe ")
    ]


def every_command() -> Iterator[str]:
    for name, job in WORKFLOW["jobs"].items():
        parts = job.get("strategy", {}).get("matrix", {}).get("part", [1])
        for part in parts:
            yield from commands(name, part)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody's repository with the example in it, and a `mlxpipe` to call."""
    root = tmp_path_factory.mktemp("repository")
    copy("ci", root)
    program = root / "bin/mlxpipe"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m mlxpipe "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    assert bash(root, "mlxpipe lock $LOCKED").returncode == 0
    return root


def bash(root: Path, command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command as a step of the workflow."""
    given = {
        **ENVIRONMENT,
        **{name: WORKFLOW["env"][name] for name in PATHS},
        "PATH": f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}",
        **environment,
    }
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command],
        cwd=root,
        env=given,
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- the workflow ----------------------------------------------------------------------------


def test_every_command_of_the_workflow_is_one_of_ours() -> None:
    found = list(every_command())

    assert {shlex.split(command)[1] for command in found} == {"check", "lock", "run", "report"}
    for command in found:
        command = re.sub(r"\$\(.*?\)", "RUN", command)
        options = build_parser().parse_args(shlex.split(command)[1:])
        assert getattr(options, "shard", None) in (None, *(f"{part}/4" for part in range(1, 5)))


@pytest.mark.parametrize("job", ["check", "run", "matrix"])
def test_a_job_s_commands_do_what_they_say(repository: Path, job: str) -> None:
    assert commands(job)
    for command in commands(job):
        done = bash(repository, command)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    if job != "check":
        assert list((repository / "examples/ci/runs").rglob("junit.xml"))


def test_the_report_is_about_every_part(repository: Path, tmp_path: Path) -> None:
    for part in (1, 2):
        (command,) = commands("matrix", part)
        assert bash(repository, command, MATRIX="examples/ci/matrix.yaml").returncode == 0
    shutil.copytree(repository / "bin", tmp_path / "bin")
    shutil.copytree(repository / "examples/ci/runs/ci-matrix", tmp_path / "parts")

    (command,) = commands("report")
    done = bash(tmp_path, command)

    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "as-it-is" in page
    assert "router8" in page


def test_the_parts_are_the_matrix() -> None:
    strategy = WORKFLOW["jobs"]["matrix"]["strategy"]

    assert strategy["matrix"]["part"] == [1, 2, 3, 4]
    assert all("/4" in command for part in (1, 2, 3, 4) for command in commands("matrix", part))


def test_a_broken_spec_fails_the_check_beside_its_line(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    broken = tmp_path / "examples/ci/broken.yaml"
    broken.write_text("version: 1\nsorce: {path: model}\n", encoding="utf-8")

    (command,) = commands("check")
    done = bash(tmp_path, command, GITHUB_ACTIONS="true")

    assert done.returncode == 2
    assert "::error title=unknown-key,file=examples/ci/broken.yaml,line=2,col=1::" in done.stderr


def test_a_model_that_is_not_as_locked_fails_the_run(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository, tmp_path, dirs_exist_ok=True)
    config = tmp_path / "examples/quickstart/model/config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")

    for command in commands("run"):
        done = bash(tmp_path, command)
        assert done.returncode == 3, command
        assert "config.json" in done.stderr


# --- the hook --------------------------------------------------------------------------------


def hook() -> dict[str, Any]:
    (found,) = HOOKS
    return dict(found)


def test_the_hook_has_what_pre_commit_requires() -> None:
    required = {"id", "name", "entry", "language"}

    assert required <= set(hook())
    assert (hook()["id"], hook()["language"]) == ("mlxpipe-check", "python")
    build_parser().parse_args([*shlex.split(hook()["entry"])[1:], "spec.yaml"])
    assert shlex.split(hook()["entry"])[0] == "mlxpipe"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("specs/one.yaml", True),
        ("specs/deep/two.yml", True),
        ("pipelines/questions/base.yaml", True),
        ("specs/one.lock.yaml", False),
        (".github/workflows/ci.yml", False),
        ("mkdocs.yaml", False),
        ("docs/specs/one.yaml", False),
    ],
)
def test_the_hook_takes_specs_and_no_other_yaml(path: str, wanted: bool) -> None:
    taken = re.search(hook()["files"], path) and not re.search(hook()["exclude"], path)

    assert bool(taken) == wanted


def test_the_hook_passes_a_good_spec_and_stops_a_broken_one(repository: Path) -> None:
    good = bash(repository, f"{hook()['entry']} examples/ci/locked.yaml")
    assert (good.returncode, good.stdout, good.stderr) == (0, "", "")

    (repository / "broken.yaml").write_text("version: 1\nsorce: {}\n", encoding="utf-8")
    bad = bash(repository, f"{hook()['entry']} examples/ci/locked.yaml broken.yaml")
    assert bad.returncode == 2
    assert "broken.yaml:2:1" in bad.stderr


def test_the_hook_needs_nothing_that_only_running_needs(repository: Path) -> None:
    watched = "mlxpipe() { " + shlex.quote(sys.executable) + ' -X importtime -m mlxpipe "$@"; }; '
    done = bash(repository, f"{watched}{hook()['entry']} examples/ci/locked.yaml")

    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mlxpipe.spec" in imported
    assert not imported & {"mlx.core", "mlx_lm", "transformers"}
