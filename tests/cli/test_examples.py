"""`mlxpipe examples`: everybody who has mlxpipe has its examples, and copies run as they are."""

import zipfile
from pathlib import Path

import pytest
from cli_types import ROOT, Command

import mlxpipe.shipped
from mlxpipe.shipped import NEEDS, Shipped, copy, shipped
from mlxpipe.spec import LOCK_SUFFIX

#: Specs that are there to be refused, or whose checkpoints are made or fetched first.
REFUSED = {"contradiction.yaml"}
NOT_AT_HAND = {"ollama.yaml", "same-as-the-directory.yaml", "did-it-change.yaml"}

SELF_CONTAINED = [
    name for name, each in shipped().items() if each.path.suffix != ".yaml" and name != "smollm2"
]


def test_every_spec_of_the_repository_is_listed_with_a_line(cli: Command) -> None:
    result = cli("examples", "--format", "json")

    listed = {spec["path"]: spec for each in result.json["examples"] for spec in each["specs"]}
    there = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("examples/*/*.yaml", "pipelines/*.yaml", "pipelines/*/*.yaml")
        for path in ROOT.glob(pattern)
        if not path.name.endswith(LOCK_SUFFIX)
    }
    assert set(listed) == there
    assert all(spec["about"] for spec in listed.values())
    assert all(each["about"] for each in result.json["examples"])


def test_the_list_is_for_people_by_default(cli: Command) -> None:
    result = cli("examples")

    assert result.code == 0
    assert result.out.startswith("quickstart")
    assert "smollm2-135m-instruct" in result.out


@pytest.mark.parametrize(
    ("comment", "line"),
    [
        ("# Why: the smallest model. And more.\n", "The smallest model"),
        ("# Which one? Each in turn.\n", "Which one?"),
        (
            "# One sentence over\n# two lines. Another.\n#\n#   mlxpipe run x\n",
            "One sentence over two lines",
        ),
        (
            "# Why: nvfp4 is global; a file.yaml is not. So.\n",
            "nvfp4 is global; a file.yaml is not",
        ),
        ("# No full stop\n", "No full stop"),
        ("version: 1\n# late\n", ""),
    ],
)
def test_a_line_is_the_first_sentence_of_the_comment(
    tmp_path: Path, comment: str, line: str
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(comment + "version: 1\n", encoding="utf-8")

    assert mlxpipe.shipped._about(spec) == line


def test_no_two_examples_share_a_name() -> None:
    paths = [*(ROOT / "examples").iterdir(), *(ROOT / "pipelines").iterdir()]
    names = [path.stem for path in paths if path.is_dir() or path.suffix == ".yaml"]

    assert sorted(names) == sorted(set(names))
    assert set(NEEDS) <= set(shipped())


@pytest.mark.parametrize("name", SELF_CONTAINED)
def test_a_copy_checks_whole_wherever_it_is(cli: Command, tmp_path: Path, name: str) -> None:
    assert cli("examples", "copy", name, "there").code == 0

    specs = [
        tmp_path / "there" / spec.path
        for spec in shipped()[name].specs
        if spec.path.name not in REFUSED | NOT_AT_HAND
    ]
    assert specs
    result = cli("check", *specs)
    assert (result.code, result.err) == (0, "")


def test_a_copy_brings_what_it_needs_and_leaves_what_is_there(cli: Command, tmp_path: Path) -> None:
    cli("examples", "copy", "quickstart")
    mine = tmp_path / "examples/quickstart/spec.yaml"
    mine.write_text("mine", encoding="utf-8")

    result = cli("examples", "copy", "compose", "--format", "json")

    assert result.json == {"written": ["examples/compose"]}
    assert mine.read_text(encoding="utf-8") == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"examples"}


def test_a_pipeline_is_copied_alone(cli: Command, tmp_path: Path) -> None:
    name = "smollm2-135m-instruct"

    assert cli("examples", "copy", name).out == f"wrote pipelines/{name}.yaml\n"
    copied = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in copied] == [f"{name}.yaml"]
    assert copied[0].read_bytes() == (ROOT / "pipelines" / f"{name}.yaml").read_bytes()


def test_nothing_is_overwritten(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "examples/quickstart").mkdir(parents=True)

    result = cli("examples", "copy", "quickstart")

    assert result.code == 2
    assert "error[exists]: examples/quickstart exists already" in result.err
    assert list((tmp_path / "examples/quickstart").iterdir()) == []


def test_what_a_run_left_in_a_checkout_is_not_copied(tmp_path: Path) -> None:
    example = tmp_path / "root/examples/one"
    for left in ("runs", "out", "ollama-store", "__pycache__"):
        (example / left).mkdir(parents=True)
        (example / left / "file").write_text("left", encoding="utf-8")
    (example / "spec.yaml").write_text("# One.\n", encoding="utf-8")
    one = Shipped("one", tmp_path / "root", Path("examples/one"), "One", ())

    mlxpipe.shipped._copy_all([one], tmp_path / "there")

    there = tmp_path / "there/examples/one"
    assert [path.name for path in there.iterdir()] == ["spec.yaml"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("copy", "quickstrat"), "did you mean 'quickstart'?"),
        (("copy", "../examples/quickstart"), "there is no example '../examples/quickstart'"),
        (("copy",), "needs a NAME"),
        (("list", "quickstart"), "takes no name"),
    ],
)
def test_a_wrong_request_is_one_error(cli: Command, arguments: tuple[str, ...], said: str) -> None:
    result = cli("examples", *arguments)

    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error[")
    assert said in result.err


def test_a_copy_that_cannot_be_written_is_one_error_and_leaves_nothing(
    cli: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    result = cli("examples", "copy", "quickstart", "file")

    assert result.code == 5
    assert result.err.startswith("error[cannot-write]: quickstart cannot be copied to file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_copy_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def fail_later(source: str, target: str) -> str:
        if len(copied) == 5:
            raise OSError(28, "No space left on device")
        copied.append(source)
        return target

    monkeypatch.setattr(mlxpipe.shipped, "_copy_file", fail_later)
    with pytest.raises(mlxpipe.ExecutionError, match="cannot be copied") as caught:
        copy("compose", tmp_path)

    assert caught.value.diagnostics[0].found.endswith("No space left on device")
    assert len(copied) == 5
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_installation_without_examples_says_so(
    cli: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mlxpipe.shipped, "_PLACES", (tmp_path / "nowhere",))

    result = cli("examples")

    assert result.code == 5
    assert "error[no-examples]" in result.err


def test_the_wheel_has_what_the_repository_has_and_stays_small(tmp_path: Path) -> None:
    hatchling = pytest.importorskip("hatchling.builders.wheel")

    (wheel,) = hatchling.WheelBuilder(str(ROOT)).build(directory=str(tmp_path))

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    root = tmp_path / "installed/mlxpipe/_shipped"
    for each in shipped().values():
        for spec in each.specs:
            assert (root / spec.path).read_bytes() == (ROOT / spec.path).read_bytes()
    assert (root / "examples/quickstart/model/model.safetensors").is_file()
    assert not (tmp_path / "installed/examples").exists()
    assert Path(wheel).stat().st_size < 5_000_000


def test_an_editable_install_can_be_built_all_the_same(tmp_path: Path) -> None:
    hatchling = pytest.importorskip("hatchling.builders.wheel")

    builder = hatchling.WheelBuilder(str(ROOT))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["editable"])

    with zipfile.ZipFile(wheel) as archive:
        (paths,) = [name for name in archive.namelist() if name.endswith(".pth")]
        assert archive.read(paths).decode().split() == [str(ROOT)]
