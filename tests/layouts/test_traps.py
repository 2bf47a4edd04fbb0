"""The traps of FORMATS §3, where producers' own formats fall into them.

For MLX's and Ollama's formats they are tested elsewhere:

1. partial overrides: `tests/quant/test_schemes.py`, `tests/plan/test_claims_in_a_plan.py`
2. a global mode alone: `tests/plan/test_claims_in_a_plan.py`, `tests/quant/test_judge.py`
3. namespaces of keys: `tests/graph/test_derived_checkpoints.py`, `tests/naming/test_names.py`
4. two blocks: `tests/quant/test_mlx_claims.py`, `tests/plan/test_claims_in_a_plan.py`
5. stamps of the globals: `tests/plan/test_claims_in_a_plan.py` (the store of the zoo)
6. lists of skipped modules: `tests/quant_dialects/test_dialects.py`
7. two kinds of bias, parameters called `scale`: `tests/naming/test_conventions.py`
8. unequal experts: `tests/naming/test_experts.py`
9. tied embeddings: `tests/plan/test_what_does_not_fit.py`
10. renamed config keys: `test_config_keys.py`
"""

from __future__ import annotations

import json

import decoders
import mlx.core as mx
import numpy as np
import pytest
from builders import spec, write_checkpoint
from mlx_lm.utils import load_model
from tiny_checkpoints import (
    BLOCK,
    DOWN,
    EXPERTS,
    HEAD,
    TOKENS,
    VOCABULARY,
    Q,
    dense,
    llama_config,
    llama_shapes,
    moe_config,
    moe_shapes,
    raw,
    rest,
)

from mlxpipe import load, make_plan
from mlxpipe.errors import PlanError
from mlxpipe.quant.modes import Scheme

GATE = f"{BLOCK}.mlp.gate_proj"
NVFP4, FP8 = Scheme("nvfp4", 4, 16), Scheme("mxfp8", 8, 32)


def affine(bits, size):
    return Scheme("affine", bits, size)


def gptq4(rng, rows, columns):
    return decoders.gptq(rng, rows, columns, 4, 64)


def gptq8(rng, rows, columns):
    return decoders.gptq(rng, rows, columns, 8, 64)


def nvfp4(rng, rows, columns):
    return decoders.floats4(rng, rows, columns, "multiplied")


def fp8(rng, rows, columns):
    return decoders.floats8(rng, rows, columns, "tensor")


class Model:
    """Tensors of a model in a producer's format, and of the same model dense."""

    def __init__(self, config, make, **others):
        """`others`: last segments of module paths -> how these are stored; None: dense."""
        rng = np.random.default_rng(1)
        self.config = config
        moe = {"num_experts", "num_local_experts"} & config.keys()
        shapes = moe_shapes(config) if moe else llama_shapes(config)
        self.packed = rest(config, rng)
        self.dense = dict(self.packed)
        for path, (rows, columns) in shapes.items():
            chosen = others.get(path.rpartition(".")[2], make)
            weight = rng.normal(scale=0.05, size=(rows, columns))
            if chosen is None:
                self.add_dense(path, weight)
            else:
                self.add(path, chosen(rng, rows, columns))

    def add(self, path, stored):
        for leaf, tensor in stored.leaves.items():
            self.packed[f"{path}.{leaf}"] = raw(tensor)
        self.dense[f"{path}.weight"] = dense(stored.weight)

    def add_dense(self, path, weight):
        self.packed[f"{path}.weight"] = self.dense[f"{path}.weight"] = dense(weight)

    def write(self, folder, block=None, rename=lambda name: name, **changes):
        config = {**self.config, **({"quantization_config": block} if block else {}), **changes}
        tensors = {rename(name): tensor for name, tensor in self.packed.items()}
        return write_checkpoint(folder / "packed", dict(sorted(tensors.items())), config)

    def expected(self, folder):
        write_checkpoint(folder / "dense", dict(sorted(self.dense.items())), self.config)
        return load_model(folder / "dense")[0](TOKENS)


def assert_answers(folder, expected):
    loaded = spec(folder, model={"dtype": "float32", "kernels": "packed"})
    found = load(loaded, tokenizer=False)[0](TOKENS)
    assert (mx.abs(found - expected).max() / mx.abs(expected).max()).item() < 1e-4


def schemes(plan, *paths):
    return [plan.modules[path].scheme for path in paths]


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": False}
AUTOROUND = {
    "quant_method": "auto-round",
    "bits": 4,
    "group_size": 64,
    "packing_format": "auto_round:auto_gptq",
}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [HEAD]}


# --- 1: a partial override --------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        {**GPTQ, "dynamic": {rf"+:.*\.{name}_proj": {"bits": 8} for name in ("down", "q")}},
        {**AUTOROUND, "extra_config": {DOWN: {"bits": 8}, Q: {"bits": 8}}},
    ],
    ids=["gptq dynamic", "autoround extra_config"],
)
def test_trap_1_these_producers_overrides_inherit_each_field(tmp_path, block):
    """`{"bits": 8}` keeps the top's groups of 64; in MLX's block it would take MLX's defaults."""
    model = Model(llama_config(), gptq4, down_proj=gptq8, q_proj=gptq8)
    folder = model.write(tmp_path, block)
    plan = make_plan(folder).require_sound()
    assert schemes(plan, Q, DOWN, GATE) == [affine(8, 64), affine(8, 64), affine(4, 64)]
    assert {plan.modules[path].verdict.source for path in (Q, DOWN, GATE)} == {"config"}
    assert_answers(folder, model.expected(tmp_path))


# --- 2: a global alone ------------------------------------------------------------------------


def test_trap_2_a_producers_global_keeps_its_bits_where_shapes_leave_several(tmp_path):
    """Without an architecture 4 bits in 64s are 8 bits in 32s; the declaration tells."""
    model = Model(llama_config(), gptq4)
    told = make_plan(model.write(tmp_path / "told", GPTQ), architecture=False)
    assert schemes(told, Q, DOWN) == [affine(4, 64)] * 2
    silent = make_plan(model.write(tmp_path / "silent"), architecture=False)
    assert set(silent.modules[Q].verdict.open) == {affine(2, 128), affine(4, 64), affine(8, 32)}


# --- 3: the namespace of keys -----------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "model.", "language_model.", "model.language_model."])
def test_trap_3_an_allow_list_speaks_of_modules_whatever_its_prefix(tmp_path, prefix):
    listed = {
        f"{prefix}{path.removeprefix('model.')}": {
            "quant_algo": "FP8" if "attn" in path else "NVFP4"
        }
        for path in llama_shapes(llama_config())
    }
    block = {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": listed,
    }
    attention = dict.fromkeys([f"{name}_proj" for name in "qkvo"], fp8)
    model = Model(llama_config(), nvfp4, **attention)
    folder = model.write(tmp_path, block)
    plan = make_plan(folder).require_sound()
    assert plan.unmatched == ()
    assert schemes(plan, Q, DOWN) == [FP8, NVFP4]
    assert {plan.modules[path].verdict.source for path in (Q, DOWN)} == {"config"}


@pytest.mark.parametrize("prefix", ["language_model.", "model.language_model."])
def test_trap_3_wrapped_tensors_and_the_keys_of_their_module(tmp_path, prefix):
    """Tensors with a wrapper, keys without; the override is met and not passed over."""

    def rename(name):
        return prefix + name.removeprefix("model.") if name.startswith("model.") else name

    block = {**GPTQ, "dynamic": {r"+:.*layers\.0\.mlp\.down_proj": {"bits": 8}}}
    model = Model(llama_config(), gptq4, down_proj=gptq8)
    folder = model.write(tmp_path, block, rename)
    plan = make_plan(folder).require_sound()
    assert schemes(plan, Q, DOWN) == [affine(4, 64), affine(8, 64)]
    assert_answers(folder, model.expected(tmp_path))


# --- 4: several declarations ------------------------------------------------------------------


def test_trap_4_a_producers_block_under_text_config(tmp_path):
    model = Model(llama_config(), gptq4)
    folder = model.write(tmp_path, text_config={"quantization_config": GPTQ})
    plan = make_plan(folder).require_sound()
    assert plan.modules[Q].verdict.source == "config"
    assert plan.modules[Q].verdict.origin.pointer == "/text_config/quantization_config"
    assert plan.modules[Q].variant == "gptq"


@pytest.mark.parametrize("order", ["config > sidecar", "sidecar > config"])
def test_trap_4_of_a_side_file_that_disagrees_the_more_trusted_decides(tmp_path, order):
    """Of two variants that the tensors cannot tell apart the more trusted source's is taken."""
    model = Model(llama_config(), gptq4)
    folder = model.write(tmp_path, GPTQ)
    side = {**GPTQ, "checkpoint_format": "gptq_v2"}
    (folder / "quantize_config.json").write_text(json.dumps(side))
    plan = make_plan(spec(folder, quantization={"precedence": order})).require_sound()
    assert plan.modules[Q].variant == ("gptq" if order.startswith("config") else "gptq_v2")


def test_trap_4_two_variants_that_disagree_are_a_conflict(tmp_path):
    """They decode to other zero points, and the tensors cannot tell."""
    folder = Model(llama_config(), gptq4).write(tmp_path, GPTQ)
    side = {**GPTQ, "checkpoint_format": "gptq_v2"}
    (folder / "quantize_config.json").write_text(json.dumps(side))
    assert make_plan(folder).conflicts


# --- 6: lists of skipped modules --------------------------------------------------------------


@pytest.mark.parametrize("entry", ["gate", "mlp.gate", "proj", "o_pro", "layer", "down"])
def test_trap_6_a_skipped_name_hits_whole_segments_only(tmp_path, entry):
    """`gate` is a router's name; `gate_proj` is packed, and would contradict a dense claim."""
    block = {"quant_method": "fp8", "modules_to_not_convert": [entry, HEAD]}

    def make(rng, rows, columns):
        return decoders.blocks8(rng, rows, columns, (128, 128), powers=True)

    plan = make_plan(Model(llama_config(), make).write(tmp_path, block)).require_sound()
    assert schemes(plan, GATE, DOWN) == [FP8, FP8]


@pytest.mark.parametrize("entry", ["gate_proj", "mlp.gate_proj", GATE])
def test_trap_6_a_skipped_name_does_hit_its_module(tmp_path, entry):
    block = {"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": [entry]}

    def make(rng, rows, columns):
        return decoders.awq(rng, rows, columns, 64)

    folder = Model(llama_config(), make, gate_proj=None).write(tmp_path, block)
    plan = make_plan(folder).require_sound()
    assert schemes(plan, GATE, DOWN) == [None, affine(4, 64)]
    assert plan.modules[GATE].verdict.source == "config"


# --- 7: two kinds of bias ---------------------------------------------------------------------


@pytest.mark.parametrize("make", [gptq4, nvfp4, fp8], ids=["gptq", "nvfp4", "fp8"])
def test_trap_7_the_bias_of_a_linear_is_added_to_its_output(tmp_path, make):
    """Beside β, which the layout makes, and after the factor, which makes results small."""
    config = llama_config(attention_bias=True)
    model = Model(config, make)
    rng = np.random.default_rng(5)
    for name, rows in (("q", 128), ("k", 64), ("v", 64), ("o", 128)):
        path = f"{BLOCK}.self_attn.{name}_proj.bias"
        model.packed[path] = model.dense[path] = dense(rng.normal(size=rows))
    block = make(rng, 64, 64).config
    folder = model.write(tmp_path, block)
    assert_answers(folder, model.expected(tmp_path))


# --- 8: one scheme for all experts ------------------------------------------------------------


def expert(number, name):
    return f"{EXPERTS}.{number}.{name}_proj"


def allow_list(**algorithms):
    """`quantized_layers` of all layers in NVFP4 but those named."""
    layers = {path: {"quant_algo": "NVFP4"} for path in moe_shapes(moe_config())}
    layers |= {path: {"quant_algo": said} for path, said in algorithms.items()}
    return {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers}


def test_trap_8_claims_on_each_expert_become_one(tmp_path):
    model = Model(moe_config(), nvfp4)
    folder = model.write(tmp_path, allow_list())
    plan = make_plan(folder).require_sound()
    (module,) = [each for path, each in plan.modules.items() if path.endswith("switch_mlp.up_proj")]
    assert (module.scheme, module.verdict.source) == (NVFP4, "config")
    assert plan.unmatched == ()
    assert_answers(folder, model.expected(tmp_path))


def test_trap_8_claims_that_divide_the_experts_are_an_error(tmp_path):
    folder = Model(moe_config(), nvfp4).write(tmp_path, allow_list(**{expert(2, "up"): "FP8"}))
    problems = make_plan(folder).problems
    assert [each.code for each in problems] == ["divided-experts"]
    assert expert(2, "up") in problems[0].found


def test_trap_8_experts_stored_unlike_each_other_are_an_error(tmp_path):
    model = Model(moe_config(), nvfp4)
    path = expert(1, "down")
    for leaf in ("weight", "weight_scale", "weight_scale_2", "input_scale"):
        del model.packed[f"{path}.{leaf}"]
    model.add(path, fp8(np.random.default_rng(0), 128, 64))
    with pytest.raises(PlanError, match="expert 1") as caught:
        make_plan(model.write(tmp_path, MODELOPT))
    assert caught.value.code == "unequal-experts"


# --- 9: tied embeddings -----------------------------------------------------------------------


@pytest.mark.parametrize("make", [gptq4, nvfp4, fp8], ids=["gptq", "nvfp4", "fp8"])
def test_trap_9_a_tied_heads_left_overs_go_with_their_companions(tmp_path, make):
    model = Model(llama_config(tie_word_embeddings=True), make)
    del model.packed[f"{HEAD}.weight"], model.dense[f"{HEAD}.weight"]
    expected = model.expected(tmp_path)
    left = make(np.random.default_rng(2), VOCABULARY, 128)
    model.packed |= {f"{HEAD}.{leaf}": raw(tensor) for leaf, tensor in left.leaves.items()}
    folder = model.write(tmp_path, {**left.config, "ignore": []})
    plan = make_plan(folder).require_sound()
    assert HEAD not in plan.modules
    assert_answers(folder, expected)


# --- 10: config keys of transformers 5 ----------------------------------------------------------


def test_trap_10_renamed_config_keys_give_the_same_model(tmp_path):
    """A base of the rotation that is not the default, so that a lost key would show."""
    model = Model(moe_config(rope_theta=500.0), nvfp4)
    expected = model.expected(tmp_path)
    old = dict(model.config)
    new = {key: value for key, value in old.items() if key not in ("rope_theta", "num_experts")}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": old["rope_theta"]}
    new["num_local_experts"] = old["num_experts"]
    new["dtype"] = "bfloat16"
    model.config = new
    folder = model.write(tmp_path, MODELOPT)
    assert "rope_theta" not in json.loads((folder / "config.json").read_text())
    assert_answers(folder, expected)
    model.config = {**new, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    with pytest.raises(AssertionError):
        assert_answers(model.write(tmp_path / "other", MODELOPT), expected)
