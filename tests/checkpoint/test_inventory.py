"""The values: documents on demand, origins with lines, nothing that can be changed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from checkpoint_files import Refused, weights, write

from mlxpipe.checkpoint import Checkpoint, JsonDocument, open_directory


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    write(
        tmp_path,
        {
            "model.safetensors": weights("b", "a"),
            "config.json": b'{\n\t"quantization": {"bits": 4}\n}',
            "list.json": b"[1]",
            "broken.json": b"{",
        },
    )
    return open_directory(tmp_path, "tiny")


def test_documents_are_parsed_once(checkpoint: Checkpoint):
    assert checkpoint.document("config.json") is checkpoint.config
    assert checkpoint.document("absent.json") is None


def test_documents_are_parsed_on_demand(checkpoint: Checkpoint):
    with Refused("malformed-json") as refused:
        checkpoint.document("broken.json")
    assert "tiny/broken.json:1:2" in refused.text


def test_the_top_must_be_what_the_caller_asks_for(checkpoint: Checkpoint):
    with Refused("json-type"):
        checkpoint.document("list.json")
    assert checkpoint.document("list.json", list).data == [1]
    assert checkpoint.document("list.json", object).data == [1]


def test_missing_config(tmp_path: Path):
    write(tmp_path, {"model.safetensors": weights("a"), "confg.json": {}})
    with Refused("missing-config") as refused:
        _ = open_directory(tmp_path, "tiny").config
    assert "did you mean 'confg.json'?" in refused.text


def test_an_origin_has_a_line_and_an_excerpt_without_tabs(checkpoint: Checkpoint):
    origin = checkpoint.config.origin("/quantization/bits")
    assert str(origin) == "tiny/config.json:2:19#/quantization/bits"
    assert origin.text[origin.column - 1 :][: origin.width] == '"bits"'
    assert "\t" not in origin.text


def test_an_origin_without_a_line(checkpoint: Checkpoint, tmp_path: Path):
    assert str(checkpoint.config.origin()) == "tiny/config.json"
    assert str(checkpoint.config.origin("/absent")) == "tiny/config.json#/absent"
    gone = JsonDocument("x.json", tmp_path / "gone.json", "x.json", {})
    assert str(gone.origin("/a")) == "x.json#/a"


def test_values_are_frozen(checkpoint: Checkpoint):
    with pytest.raises(FrozenInstanceError):
        checkpoint.label = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        checkpoint.tensors["c"] = checkpoint.tensors["a"]  # type: ignore[index]
    with pytest.raises(TypeError):
        checkpoint.files["c"] = Path()  # type: ignore[index]


def test_a_repr_does_not_list_the_tensors(checkpoint: Checkpoint):
    assert "Tensor(" not in repr(checkpoint)


def test_the_package_imports_nothing_heavy():
    heavy = {"mlx", "mlx_lm", "numpy", "pydantic", "huggingface_hub", "safetensors"}
    code = "import sys, mlxpipe.checkpoint; print(*{n.partition('.')[0] for n in sys.modules})"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert not heavy & set(done.stdout.split())
