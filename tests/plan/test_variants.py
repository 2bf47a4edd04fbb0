"""Two formats of GPTQ differ in the zero points alone; symmetric ones tell which it is."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from builders import DATA, QWEN, write_safetensors, zeros
from builders import Raw as Tensor

from mlxpipe import load, make_plan
from mlxpipe.checkpoint import open_directory
from mlxpipe.checkpoint.tables import repeated_code
from mlxpipe.errors import PlanError

GPTQ = DATA / "ar-gptq-mixed-qwen3"
AUTOROUND = DATA / "ar-autoround-mixed-qwen3"


def declared(tmp_path, folder, **fields):
    """The checkpoint with fields of its block changed, or without any block."""
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    block = config.pop("quantization_config")
    if fields:
        config["quantization_config"] = block | fields
    (tmp_path / "config.json").write_text(json.dumps(config, indent=1))
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "fields"),
    [(GPTQ, {"checkpoint_format": "gptq_v2"}), (AUTOROUND, {"packing_format": "auto_round"})],
    ids=["gptq", "autoround"],
)
def test_zero_points_contradict_the_other_format(tmp_path, folder, fields):
    with pytest.raises(PlanError) as caught:
        load(declared(tmp_path, folder, **fields), tokenizer=False)
    finding = caught.value.diagnostics[0]
    assert finding.code == "contradiction"
    assert "not stored as gptq_v2" in finding.message
    assert "repeat 7, and gptq stores 7 for 8" in finding.found
    assert finding.origin.file == "config.json" or finding.origin.file.endswith("/config.json")
    assert finding.origin.line


@pytest.mark.parametrize("folder", [GPTQ, AUTOROUND], ids=["gptq", "autoround"])
def test_without_a_declaration_symmetric_zero_points_leave_one_answer(tmp_path, folder):
    tokens = mx.load(str(folder / "reference.safetensors"))["tokens"]
    answers = [
        load(source, tokenizer=False, dtype="float32")[0](tokens)
        for source in (folder, declared(tmp_path, folder))
    ]
    assert mx.array_equal(*answers)


def test_the_format_is_what_it_was_declared_before(tmp_path):
    undeclared = make_plan(declared(tmp_path, GPTQ)).require_sound()
    assert {module.variant for module in undeclared.modules.values()} == {"", "gptq"}
    as_declared = {path: module.variant for path, module in make_plan(GPTQ).modules.items()}
    assert {path: module.variant for path, module in undeclared.modules.items()} == as_declared


CODES = {
    "sevens": (4, b"\x77" * 32, 7),
    "eights": (4, b"\x88" * 32, 8),
    "bytes": (8, b"\x7f" * 64, 127),
    "threes of three bits": (3, bytes([0b11011011, 0b10110110, 0b01101101]) * 8, 3),
    "one differs": (4, b"\x77" * 31 + b"\x87", None),
    "too few": (4, b"\x77" * 16, None),
    "none": (4, b"", None),
}


@pytest.mark.parametrize(("bits", "data", "code"), CODES.values(), ids=CODES)
def test_a_code_is_repeated_or_not(tmp_path, bits, data, code):
    tensors = {"x": Tensor("U8", (len(data),), data), "y": zeros("U8", 8)}
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert repeated_code(open_directory(tmp_path), "x", bits) == code


def test_other_layouts_have_no_variant():
    assert {module.variant for module in make_plan(QWEN).modules.values()} == {""}
