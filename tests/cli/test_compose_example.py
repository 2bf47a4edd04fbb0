"""The example of specs made of specs does what its README says."""

import shutil
from pathlib import Path

import pytest
from cli_types import ROOT, Command

from mlxpipe.spec import load_specs

EXAMPLES = ROOT / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the example beside the quickstart, so that its runs leave no trace here."""
    written = shutil.ignore_patterns("runs", "*.py", "ollama-store")
    shutil.copytree(EXAMPLES / "compose", tmp_path / "compose", ignore=written)
    shutil.copytree(EXAMPLES / "quickstart", tmp_path / "quickstart", ignore=written)
    return tmp_path / "compose"


def test_one_axis_is_three_runs_and_one_table(cli: Command, folder: Path) -> None:
    result = cli("run", folder / "contexts.yaml", "--set", "tasks.text.max_tokens=2")

    assert result.code == 0
    rows = [line.split() for line in result.out.splitlines() if line.startswith("context-")]
    assert [(row[0], row[-1]) for row in rows] == [
        *(("context-32", "done"), ("context-64", "done"), ("context-128", "done")),
    ]
    assert len(list(folder.glob("runs/contexts/*/*/run.json"))) == 3


def test_two_axes_share_a_base(cli: Command, folder: Path) -> None:
    specs = load_specs(folder / "settings.yaml")

    assert [each.label for each in specs] == [
        "greedy_dtype-float32",
        "greedy_dtype-checkpoint",
        "lively_dtype-float32",
        "lively_dtype-checkpoint",
    ]
    assert {each.spec.source.path for each in specs} == {"../quickstart/model"}
    assert cli("check", *sorted(folder.glob("*.yaml"))).code == 0


@pytest.mark.parametrize(
    "path", sorted((EXAMPLES / "compose").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_spec_is_in_the_example_s_readme(path: Path) -> None:
    assert f"`{path.name}`" in (EXAMPLES / "compose" / "README.md").read_text(encoding="utf-8")
