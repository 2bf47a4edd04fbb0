"""`mlxpipe init`: a first spec that loads, names the same source and says what was found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import AFFINE_4_64, QWEN, STORE, STORE_MODEL, layer, write_checkpoint
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlxpipe.errors import SourceError, UsageError
from mlxpipe.spec import LoadedSpec, parse_spec
from mlxpipe.starter import starter_spec, write_spec

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40
).filter(lambda name: name not in (".", "..") and "${" not in name and len(name.encode()) < 200)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def write_tiny(directory: Path, **config: object) -> Path:
    tensors = layer("model.layers.0.mlp.up_proj", AFFINE_4_64, 64, 64)
    quantization = {"group_size": 64, "bits": 4}
    return write_checkpoint(
        directory, tensors, {"model_type": "llama", "quantization": quantization, **config}
    )


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def parse(text: str, output: Path) -> LoadedSpec:
    return parse_spec(text, output.name, output.parent)


# --- the source ------------------------------------------------------------------------------


@given(name=NAMES)
@example("a b")
@example('it\'s "quoted"')
@example("-o")
@example("--force")
@example("# not a comment")
@example("key: value")
@example("~")
@example("~root")
@example("null")
@example("0x10")
@example("{flow}, [list]")
@example("*anchor & !tag")
@example("tab\tline\nbreak\r\u2028\ufeff\x85\x7f")
@example("Ünïcödé 模型 🤖")
@example(" both ends ")
@example("back\\slash")
@settings(max_examples=30)
def test_any_directory_name_survives_the_way_through_yaml(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    (folder / name).symlink_to(checkpoint)
    output = folder / "specs" / "spec.yaml"
    output.parent.mkdir()

    loaded = parse(starter_spec(str(folder / name), str(output)), output)

    assert loaded.spec.source.path is not None
    assert loaded.resolve(loaded.spec.source.path).samefile(checkpoint)
    assert [task.type for task in loaded.spec.tasks] == ["generate"]


@pytest.mark.parametrize("name", ["-o", "~x", "hub:x", "a: b # c"])
def test_relative_names_of_the_current_directory(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / name).symlink_to(checkpoint)
    monkeypatch.chdir(tmp_path)

    loaded = parse(starter_spec(f"./{name}"), Path("spec.yaml"))

    assert loaded.spec.source.path is not None
    assert loaded.resolve(loaded.spec.source.path).samefile(checkpoint)


def test_the_path_is_relative_to_the_output(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "specs").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(checkpoint)

    text = starter_spec(str(tmp_path / "models" / "tiny"), str(tmp_path / "specs" / "s.yaml"))

    assert "\n  path: ../models/tiny\n" in text


def test_an_output_in_no_directory(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        starter_spec(str(checkpoint), str(tmp_path / "missing" / "spec.yaml"))

    assert caught.value.code == "missing-directory"


def test_the_path_is_relative_to_the_current_directory_when_printed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)

    assert f"\n  path: {checkpoint.name}\n" in starter_spec(str(checkpoint))


def test_an_output_behind_a_link_still_finds_the_model(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "er")
    output = tmp_path / "link" / "spec.yaml"

    loaded = parse(starter_spec(str(checkpoint), str(output)), output)

    assert loaded.spec.source.path is not None
    assert loaded.resolve(loaded.spec.source.path).samefile(checkpoint)


@pytest.mark.parametrize(
    ("model", "hub", "revision"),
    [
        ("hub:org/name", "org/name", None),
        ("hub:org/name-1.5B@main", "org/name-1.5B", "main"),
        ("hub:org/name@1234567", "org/name", "1234567"),
        ("hub:org/name@0x10", "org/name", "0x10"),
    ],
)
def test_the_hub_is_not_asked(model: str, hub: str, revision: str | None) -> None:
    source = parse_spec(starter_spec(model)).spec.source

    assert (source.hub, source.revision) == (hub, revision)


def test_an_ollama_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(STORE))

    text = starter_spec(f"ollama:{STORE_MODEL}")

    assert parse_spec(text).spec.source.ollama == STORE_MODEL
    assert "stale" in text


# --- what it says ----------------------------------------------------------------------------


def test_it_says_what_was_found() -> None:
    text = starter_spec(str(QWEN))

    assert text.startswith("# qwen3_5_moe: 132 tensors, 712.1 kB\n")
    assert "38 nvfp4 4-bit g16" in text
    assert "8 affine 8-bit g64" in text
    assert "Claims: all agree" in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_contradiction_comes_with_what_settles_it(tmp_path: Path) -> None:
    shutil.copytree(QWEN, tmp_path / "broken")
    config = json.loads((tmp_path / "broken" / "config.json").read_text())
    config["quantization"]["language_model.lm_head"] = {"mode": "mxfp8"}
    config.pop("quantization_config", None)
    (tmp_path / "broken" / "config.json").write_text(json.dumps(config))

    text = starter_spec(str(tmp_path / "broken"))

    assert "1 contradicted by the tensors" in text
    assert "To settle it, by the tensors it is " in text.replace("\n# ", " ")
    parse_spec(text)


def test_an_unmatched_override_comes_with_the_line_that_allows_it(tmp_path: Path) -> None:
    quantization = {"group_size": 64, "bits": 4, "mtp.layers.0.fc": {"bits": 8}}
    write_tiny(tmp_path, quantization=quantization)

    text = starter_spec(str(tmp_path))

    line = '# quantization: {allow_unmatched: ["*mtp.*"]}'
    assert line in text.splitlines()
    parse_spec(text.replace(line, line.removeprefix("# ")))


def test_side_parts_come_with_the_line_that_drops_them(tmp_path: Path) -> None:
    tensors = layer("model.layers.0.mlp.up_proj", None, 64, 64)
    tensors |= layer("vision_tower.blocks.0.mlp", None, 64, 64)
    write_checkpoint(tmp_path, tensors, {"model_type": "llama"})

    text = starter_spec(str(tmp_path))

    line = '# naming: {drop: ["*vision_tower.*"]}'
    assert line in text.splitlines()
    assert parse_spec(text.replace(line, line.removeprefix("# "))).spec.naming.drop


def test_names_from_a_checkpoint_cannot_leave_their_comment(tmp_path: Path) -> None:
    quantization = {"group_size": 64, "bits": 4, "mtp\nversion: 2\n\x85tasks: []": {"bits": 8}}
    write_tiny(tmp_path, quantization=quantization, model_type="x\ntasks: []\n#")

    loaded = parse_spec(starter_spec(str(tmp_path)))

    assert loaded.spec.version == 1
    assert len(loaded.spec.tasks) == 1


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "code", "advice"),
    [
        ("tiny-modle", "unknown-model", "did you mean 'tiny-model'?"),
        ("org/name", "unknown-model", "hub:org/name"),
        ("qwen3", "unknown-model", "ollama:qwen3"),
        ("", "unknown-model", ""),
        ("spec.yaml", "not-a-directory", "mlxpipe plan spec.yaml"),
        ("model.safetensors", "not-a-directory", "the directory that holds it"),
        ("hub:name", "bad-model", ""),
        ("hub:", "bad-model", ""),
        ("hub:../x@main", "bad-model", ""),
        ("ollama:", "bad-model", ""),
        ("ollama:../../etc", "bad-model", ""),
        ("money${x}", "bad-path", "link"),
    ],
)
def test_what_names_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, code: str, advice: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tiny-model", "money${x}"):
        (tmp_path / name).mkdir()
    for name in ("spec.yaml", "model.safetensors"):
        (tmp_path / name).touch()

    with pytest.raises(UsageError) as caught:
        starter_spec(model)

    assert caught.value.code == code
    assert advice in caught.value.diagnostics[0].help


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no-weights"),
        (lambda folder: (folder / "config.json").unlink(), "missing-config"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x09"), "header-too-small"),
    ],
)
def test_a_checkpoint_that_cannot_be_read(
    tmp_path: Path, damage: Callable[[Path], None], code: str
) -> None:
    write_tiny(tmp_path)
    damage(tmp_path)

    with pytest.raises(SourceError) as caught:
        starter_spec(str(tmp_path))

    assert caught.value.code == code


# --- the file --------------------------------------------------------------------------------


def test_writing_refuses_to_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    write_spec(path, "one\n")
    with pytest.raises(UsageError) as caught:
        write_spec(path, "two\n", force=False)

    assert caught.value.code == "exists"
    assert path.read_text() == "one\n"

    write_spec(path, "two\n", force=True)
    assert path.read_text() == "two\n"
    assert names(tmp_path) == ["spec.yaml"]


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(UsageError, match="exists"):
        write_spec(tmp_path / "spec.yaml", "one\n")


@pytest.mark.parametrize("name", ["missing/spec.yaml", "file/spec.yaml", "folder"])
def test_where_nothing_can_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()

    with pytest.raises(UsageError) as caught:
        write_spec(tmp_path / name, "text\n", force=True)

    assert caught.value.code == "cannot-write"
    assert names(tmp_path) == ["file", "folder"]
