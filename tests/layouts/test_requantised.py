"""Blocks of FP8 that the spec wants packed although MLX cannot hold them."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import pytest

import mlxpipe
from mlxpipe.spec import parse_spec

ZOO = Path(__file__).parents[1] / "data"


def spec(name: str, choice: str):
    source = f"version: 1\nsource: {{path: {ZOO / name}}}\n"
    return parse_spec(f"{source}quantization: {{float8_blocks: {choice}}}\n")


def distance(loaded, name: str) -> float:
    model, _ = mlxpipe.load(loaded, tokenizer=False, dtype="float32")
    reference = mx.load(str(ZOO / name / "reference.safetensors"))
    y = model(reference["tokens"])
    return (mx.linalg.norm(y - reference["logits"]) / mx.linalg.norm(reference["logits"])).item()


def test_they_are_packed_and_called_lossy():
    plan = mlxpipe.make_plan(spec("fp8-block-qwen3", "mxfp8")).require_sound()
    packed = [module for module in plan.modules.values() if module.layout == "float8_blocks"]
    assert packed
    for module in packed:
        assert str(module.landing) == "mxfp8 8-bit g32"
        assert module.grade == "lossy"


def test_they_cost_a_few_per_cent_where_dense_weights_cost_nothing():
    dense = distance(spec("fp8-block-qwen3", "dense"), "fp8-block-qwen3")
    requantised = distance(spec("fp8-block-qwen3", "mxfp8"), "fp8-block-qwen3")
    assert dense < 2e-3 < requantised < 0.2


@pytest.mark.parametrize("choice", ["dense", "mxfp8"])
def test_powers_of_two_are_exact_either_way(choice):
    name = "fp8-blockpow2-llama"
    plan = mlxpipe.make_plan(spec(name, choice))
    assert {module.grade for module in plan.modules.values()} == {"exact"}
    assert distance(spec(name, choice), name) < 2e-3
