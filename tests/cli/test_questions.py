"""The gallery's questions are answered as their files say, of any model that `vars` name."""

import subprocess
import sys
from pathlib import Path

import pytest
from builders import QWEN
from cli_types import ROOT, Command

from mlxpipe import load_spec, run, run_matrix
from mlxpipe.shipped import copy

QUESTIONS = sorted((ROOT / "pipelines/questions").glob("*.yaml"))
TEXT = ROOT / "examples/quickstart/emma-excerpt.txt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the gallery, with what its specs say to make first."""
    root = tmp_path_factory.mktemp("gallery")
    copy("questions", root)
    make_store = root / "examples/quickstart/make_ollama_store.py"
    subprocess.run([sys.executable, str(make_store)], check=True, capture_output=True)
    assert run(root / "pipelines/questions/convert.yaml").exit_code == 0
    return root / "pipelines/questions"


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_a_question_checks_and_plans_as_it_stands(cli: Command, folder: Path, path: Path) -> None:
    assert cli("check", folder / path.name).code == 0
    assert cli("plan", folder / path.name).code == 0


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_a_question_can_be_asked_of_another_model(cli: Command, folder: Path, path: Path) -> None:
    settings = ("--set", f"vars.model={QWEN}", "--set", f"vars.text={TEXT}")

    assert cli("plan", folder / path.name, *settings).code == 0
    if path.name not in ("same-as-the-directory.yaml", "did-it-change.yaml"):
        assert str(QWEN) in cli("show", folder / path.name, *settings).out


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_every_question_is_in_the_readme_and_says_how_to_ask_it(path: Path) -> None:
    assert f"({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")
    command = "mlxpipe run pipelines/questions/"
    assert command in path.read_text(encoding="utf-8")


def test_a_recipe_that_costs_too_much_fails_and_the_others_do_not(
    cli: Command, folder: Path
) -> None:
    result = cli(
        *("run", folder / "which-recipe.yaml", "--keep-going", "--format", "json"),
        *("--only", "as-it-is", "--only", "mixed-2-6", "--set", "vars.windows=1"),
    )

    assert result.code == 1
    runs = {run["label"]: run for run in result.json["runs"]}
    assert {label: run["exit_code"] for label, run in runs.items()} == {
        "as-it-is": 0,
        "mixed-2-6": 1,
    }
    assert runs["as-it-is"]["tasks"][0]["metrics"]["kl_divergence"] == 0


def test_a_conversion_changed_nothing(folder: Path) -> None:
    record = run_matrix(folder / "did-it-change.yaml", set={"vars.windows": 1})

    assert record.exit_code == 0
    assert [each.loaded.label for each in record.combinations] == ["directory", "store"]


def test_the_store_is_the_same_as_the_directory(cli: Command, folder: Path) -> None:
    spec = folder / "same-as-the-directory.yaml"

    assert cli("run", spec, "--set", "vars.windows=1").code == 0


def test_believing_metadata_that_lies_cannot_work(cli: Command, folder: Path) -> None:
    store = folder.parents[1] / "examples/quickstart/ollama-store"
    settings = ("--set", "source.ollama=tiny-austen:nvfp4-mixed", "--set", f"source.store={store}")
    asked = ("check", folder / "whom-to-believe.yaml", *settings)

    assert cli(*asked, "--only", "config-first").code == 0
    result = cli(*asked, "--only", "metadata-first")

    assert result.code == 4
    assert "contradiction" in result.err


def test_the_reference_of_the_dtypes_is_float32() -> None:
    path = ROOT / "pipelines/questions/reference.yaml"

    assert load_spec(path).spec.model.dtype == "float32"
