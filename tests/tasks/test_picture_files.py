"""Pictures are looked at before a model is loaded; each wrong one is an error at its place."""

from __future__ import annotations

from types import ModuleType

import pytest

from mlxpipe.errors import ExecutionError, MlxpipeError, UsageError
from mlxpipe.spec import LoadedSpec, parse_spec
from mlxpipe.tasks import picture_files
from mlxpipe.tasks.texts import check_inputs

#: A PNG of one pixel, and the same cut short.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c4944415408d763f8ffff3f0005fe02fedccc59e70000000049454e44ae426082"
)


def spec(tmp_path, images: str) -> LoadedSpec:
    text = "version: 1\nsource: {path: model}\ntasks:\n  - type: generate\n    prompt: What?\n"
    return parse_spec(f"{text}    images: {images}\n", "s.yaml", tmp_path)


def refusal(tmp_path, images: str) -> MlxpipeError:
    with pytest.raises(MlxpipeError) as caught:
        check_inputs(spec(tmp_path, images))
    return caught.value


@pytest.fixture
def installed(monkeypatch):
    """As if mlx-vlm were there; Pillow comes with it."""
    pytest.importorskip("PIL")
    monkeypatch.setattr(picture_files, "find_spec", lambda name: ModuleType(name))


def test_without_mlx_vlm_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "find_spec", lambda name: None)
    error = refusal(tmp_path, "one.png")
    assert isinstance(error, ExecutionError)
    assert error.code == "no-mlx-vlm"
    assert "pip install 'mlxpipe[vision]'" in str(error)
    assert "s.yaml:6:13" in str(error)


def test_a_spec_without_pictures_does_not_ask_for_mlx_vlm(tmp_path, monkeypatch):
    monkeypatch.setattr(picture_files, "find_spec", lambda name: pytest.fail("asked"))
    text = "version: 1\nsource: {path: m}\ntasks: [{type: generate, prompt: What?}]\n"
    loaded = parse_spec(text, "s.yaml", tmp_path)
    check_inputs(loaded)
    assert not loaded.spec.vision


def test_a_whole_picture_passes(tmp_path, installed):
    (tmp_path / "one.png").write_bytes(PNG)
    check_inputs(spec(tmp_path, "[one.png, ./one.png]"))


def test_a_picture_that_is_missing(tmp_path, installed):
    (tmp_path / "one.png").write_bytes(PNG)
    error = refusal(tmp_path, "[one.png, two.png]")
    assert isinstance(error, UsageError)
    assert error.code == "missing-file"
    assert "two.png cannot be read" in str(error)
    assert "s.yaml:6:23" in str(error)


@pytest.mark.parametrize("url", ["https://example.org/one.png", "data:image/png;base64,AAAA"])
def test_an_address_is_a_file_that_is_not_there(tmp_path, installed, url):
    error = refusal(tmp_path, f'"{url}"')
    assert error.code == "missing-file"
    assert "local files" in str(error)


@pytest.mark.parametrize(
    "content", [b"", b"no picture at all", PNG[:44], PNG[:45] + b"\0" * 24], ids=repr
)
def test_a_file_that_is_no_picture(tmp_path, installed, content):
    (tmp_path / "one.png").write_bytes(content)
    error = refusal(tmp_path, "one.png")
    assert error.code == "not-an-image"
    assert str(tmp_path) not in str(error)


def test_a_directory_is_no_picture(tmp_path, installed):
    (tmp_path / "one.png").mkdir()
    assert refusal(tmp_path, "one.png").code == "missing-file"


@pytest.mark.parametrize("images", ["[]", "3", '""', "[one.png, 4]"])
def test_what_images_may_be(tmp_path, images):
    with pytest.raises(UsageError) as caught:
        spec(tmp_path, images)
    assert "images" in str(caught.value) or "s.yaml:6" in str(caught.value)
