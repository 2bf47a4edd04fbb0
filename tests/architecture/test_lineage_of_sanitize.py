"""What `sanitize` does to each tensor, read from MLX's graph over placeholders."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from builders import QWEN, llama, llama_config, read_safetensors

from mlxpipe.architecture.lineage import trace_sanitize
from mlxpipe.architecture.skeleton import build_skeleton
from mlxpipe.errors import PlanError

OURS = "language_model.model.layers"
THEIRS = "model.language_model.layers"


@pytest.fixture(scope="module")
def qwen():
    return build_skeleton(json.loads((QWEN / "config.json").read_text())).model


@pytest.fixture(scope="module")
def hugging_face(qwen):
    """Name -> (dtype, shape) as transformers saves this model: dense, fused, unshifted."""
    skeleton = build_skeleton(json.loads((QWEN / "config.json").read_text()))
    tensors = {}
    for name, shape in skeleton.parameters.items():
        theirs = name.replace("language_model.model", "model.language_model").replace(
            "language_model.lm_head", "lm_head"
        )
        if "conv1d" in name:
            shape = (shape[0], shape[2], shape[1])
        if ".switch_mlp.up_proj" in name:
            continue
        if ".switch_mlp." in name:
            theirs = theirs.replace("switch_mlp", "experts").removesuffix(".weight")
        if ".switch_mlp.gate_proj" in name:
            theirs = theirs.replace("gate_proj", "gate_up_proj")
            shape = (shape[0], 2 * shape[1], shape[2])
        tensors[theirs] = ("BF16", shape)
    return tensors


@pytest.fixture(scope="module")
def lineages(qwen, hugging_face):
    return trace_sanitize(qwen, hugging_face)


def test_everything_the_model_needs_comes_out(lineages):
    skeleton = build_skeleton(json.loads((QWEN / "config.json").read_text()))
    assert {name: lineage.shape for name, lineage in lineages.items()} == skeleton.parameters
    assert {lineage.dtype for lineage in lineages.values()} == {"BF16"}


@pytest.mark.parametrize(
    ("name", "source", "operation", "changes"),
    [
        ("0.input_layernorm.weight", "0.input_layernorm.weight", "Add", True),
        ("3.self_attn.q_norm.weight", "3.self_attn.q_norm.weight", "Add", True),
        ("0.mlp.switch_mlp.gate_proj.weight", "0.mlp.experts.gate_up_proj", "Slice", False),
        ("0.mlp.switch_mlp.up_proj.weight", "0.mlp.experts.gate_up_proj", "Slice", False),
        ("0.linear_attn.conv1d.weight", "0.linear_attn.conv1d.weight", "Transpose", False),
        ("0.mlp.switch_mlp.down_proj.weight", "0.mlp.experts.down_proj", None, False),
        ("0.mlp.gate.weight", "0.mlp.gate.weight", None, False),
        ("0.linear_attn.A_log", "0.linear_attn.A_log", None, False),
    ],
)
def test_each_parameters_inputs_and_operations(lineages, name, source, operation, changes):
    lineage = lineages[f"{OURS}.{name}"]
    assert lineage.inputs == (f"{THEIRS}.{source}",)
    assert (operation in lineage.operations) if operation else lineage.operations == ()
    assert lineage.changes_values == changes


def test_a_renaming_alone_has_no_operations(qwen):
    tensors, _ = read_safetensors(QWEN / "model.safetensors")
    traced = trace_sanitize(
        qwen, {name: (each.dtype, each.shape) for name, each in tensors.items()}
    )
    assert all(lineage.operations == () for lineage in traced.values())
    assert {name: lineage.inputs for name, lineage in traced.items()} == {
        name: (name,) for name in tensors
    }
    assert {lineage.dtype for lineage in traced.values()} == {"BF16", "U32", "U8"}


class Stacks:
    """A sanitize that stacks experts and shifts a norm."""

    def sanitize(self, weights):
        experts = [weights.pop(f"e.{number}.w") for number in range(3)]
        return {"e.w": mx.stack(experts), **weights}


class Looks:
    """A sanitize that depends on values."""

    def sanitize(self, weights):
        return {name: array * array.sum().item() for name, array in weights.items()}


class Fails:
    """A sanitize that expects a tensor by name."""

    def sanitize(self, weights):
        return {"x": weights["missing"]}


class Silent:
    """A model without a sanitize."""


def test_several_inputs_are_all_named():
    tensors = {f"e.{number}.w": ("F16", (4, 8)) for number in range(3)} | {"n": ("F32", (8,))}
    traced = trace_sanitize(Stacks(), tensors)
    assert traced["e.w"].inputs == ("e.0.w", "e.1.w", "e.2.w")
    assert (traced["e.w"].shape, traced["e.w"].dtype) == ((3, 4, 8), "F16")
    assert not traced["e.w"].changes_values
    assert traced["n"].operations == ()


@pytest.mark.parametrize(
    ("model", "code"), [(Looks(), "sanitize-evaluates"), (Fails(), "sanitize-failed")]
)
def test_a_sanitize_that_cannot_be_traced_is_an_error(model, code):
    with pytest.raises(PlanError) as caught:
        trace_sanitize(model, {"w": ("F32", (4,))})
    assert caught.value.code == code


def test_a_model_without_sanitize_takes_names_as_they_are():
    tensors = {name: (each.dtype, each.shape) for name, each in llama().items()}
    traced = trace_sanitize(Silent(), tensors)
    assert {name: (one.dtype, one.shape) for name, one in traced.items()} == tensors
    assert set(build_skeleton(llama_config()).parameters) == set(traced)
