"""gpt-oss as its producer ships it: interleaved MXFP4 blocks in uint8.

The zoo's model has its experts as mlx-lm stores them. Its tensors are turned back into the
producer's: gate = rows ::2 and up = rows 1::2 of one fused projection, sixteen bytes for 32 codes.
"""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from builders import GPTOSS, MXFP4, Raw, read_safetensors, spec, write_checkpoint

from mlxpipe import load, make_plan

CONFIG = json.loads((GPTOSS / "config.json").read_text())
ITEM = {"U8": np.uint8, "U32": np.uint32, "BF16": np.uint16}


def as_array(raw):
    return np.frombuffer(raw.data, ITEM[raw.dtype]).reshape(raw.shape)


def interleaved(gate, up):
    """[E, o, …] twice -> [E, 2o, …], rows taken in turn."""
    one, other = as_array(gate), as_array(up)
    both = np.stack([one, other], axis=2).reshape(one.shape[0], -1, *one.shape[2:])
    return Raw(gate.dtype, both.shape, both.tobytes())


def in_blocks(raw):
    """U32 [E, o, i/8] -> U8 [E, o, i/32, 16]."""
    *lead, words = raw.shape
    return Raw("U8", (*lead, words // 4, 16), raw.data)


def producers_tensors():
    tensors = dict(read_safetensors(GPTOSS / "model.safetensors")[0])
    for layer in range(CONFIG["num_hidden_layers"]):
        experts = f"model.layers.{layer}.mlp.experts"
        own = {
            (name, leaf): tensors.pop(f"{experts}.{name}_proj.{leaf}")
            for name in ("gate", "up", "down")
            for leaf in ("weight", "scales", "bias")
        }
        for leaf, suffix in (("weight", "_blocks"), ("scales", "_scales"), ("bias", "_bias")):
            fused = interleaved(own["gate", leaf], own["up", leaf])
            down = own["down", leaf]
            if leaf == "weight":
                fused, down = in_blocks(fused), in_blocks(down)
            tensors[f"{experts}.gate_up_proj{suffix}"] = fused
            tensors[f"{experts}.down_proj{suffix}"] = down
    return dict(sorted(tensors.items()))


def producers_config():
    block = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn.q"]}
    kept = {key: value for key, value in CONFIG.items() if key != "quantization"}
    return {**kept, "quantization_config": block}


CONFIGS = {"mlx's block": CONFIG, "the producer's block": producers_config()}


@pytest.mark.parametrize("config", CONFIGS)
def test_blocks_are_the_same_model(tmp_path, config):
    folder = write_checkpoint(tmp_path, producers_tensors(), CONFIGS[config])
    found, expected = make_plan(folder).require_sound(), make_plan(GPTOSS)
    assert found.unmatched == ()
    assert found.unloaded == ()
    forms = {
        path: (module.scheme, module.landing, module.grade, module.kind)
        for path, module in found.modules.items()
    }
    assert forms == {
        path: (module.scheme, module.landing, module.grade, module.kind)
        for path, module in expected.modules.items()
    }
    experts = [module for module in found.modules.values() if module.kind == "experts"]
    assert len(experts) == 6
    assert {(module.scheme, module.grade) for module in experts} == {(MXFP4, "exact")}
    assert {module.verdict.source for module in experts} == {"config"}


@pytest.mark.parametrize("kernels", ["packed", "dense"])
def test_blocks_give_the_same_logits(tmp_path, kernels):
    folder = write_checkpoint(tmp_path, producers_tensors(), CONFIG)
    tokens = mx.load(str(GPTOSS / "reference.safetensors"))["tokens"]
    answers = [
        load(spec(path, model={"kernels": kernels, "dtype": "float32"}), tokenizer=False)[0](tokens)
        for path in (folder, GPTOSS)
    ]
    assert mx.array_equal(*answers)
