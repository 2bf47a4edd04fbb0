"""The zoo's model under other producers' names: other files, the same logits to the bit."""

from __future__ import annotations

import json
import re
import struct
from functools import cache
from math import prod

import mlx.core as mx
import pytest
from builders import (
    ITEM_BYTES,
    NVFP4,
    QWEN,
    Blob,
    Raw,
    read_safetensors,
    spec,
    write_checkpoint,
    write_store,
)

from mlxpipe import load, make_plan
from mlxpipe.errors import PlanError
from mlxpipe.graph.layers import PackedEmbedding, PackedExperts, PackedLinear

CONFIG = json.loads((QWEN / "config.json").read_text())
STAMP = {"quant_type": "nvfp4", "group_size": "16"}
EXPERT = re.compile(r"^(.*)\.switch_mlp\.(\w+)\.(\w+)$")


@cache
def zoo():
    return read_safetensors(QWEN / "model.safetensors")[0]


def tokens():
    return mx.load(str(QWEN / "reference.safetensors"))["tokens"]


def answer(source, dtype="checkpoint"):
    return load(source, dtype=dtype, tokenizer=False)[0](tokens())


@cache
def expected():
    return answer(QWEN)


def same(source):
    return mx.array_equal(answer(source), expected())


# --- raw bytes -------------------------------------------------------------------------------


def experts_of(stacked):
    """[E, ...] as E tensors."""
    count, *rest = stacked.shape
    size = ITEM_BYTES[stacked.dtype] * prod(rest)
    return [
        Raw(stacked.dtype, tuple(rest), stacked.data[at * size : (at + 1) * size])
        for at in range(count)
    ]


def fused(gate, up):
    """Two [E, o, c] as one [E, 2 o, c]: each expert's gate rows, then its up rows."""
    data = b"".join(
        one.data + other.data for one, other in zip(experts_of(gate), experts_of(up), strict=True)
    )
    count, rows, columns = gate.shape
    return Raw(gate.dtype, (count, 2 * rows, columns), data)


def floats(*values, shape=None):
    return Raw(
        "F32", (len(values),) if shape is None else shape, struct.pack(f"<{len(values)}f", *values)
    )


# --- forms of the experts --------------------------------------------------------------------

#: How the weight and the scales of `<block>.experts.<projection>` may be called.
FORMS = {
    "mlx": ("{}.weight", "{}.scales"),
    "bare, mlx": ("{}", "{}.scales"),
    "ollama": ("{}.weight", "{}.weight.scale"),
    "bare, ollama": ("{}", "{}.scale"),
}


def spell(form, path, leaf):
    return FORMS[form][("weight", "scales").index(leaf)].format(path)


def stacked_experts(form):
    """`<block>.experts.<projection>` for each stacked projection."""
    return {
        spell(form, f"{at[1]}.experts.{at[2]}", at[3]) if (at := EXPERT.match(name)) else name: raw
        for name, raw in zoo().items()
    }


def numbered_experts(form):
    """`<block>.experts.<number>.<projection>`, one tensor each."""
    tensors = {}
    for name, stacked in zoo().items():
        if (at := EXPERT.match(name)) is None:
            tensors[name] = stacked
            continue
        for number, one in enumerate(experts_of(stacked)):
            tensors[spell(form, f"{at[1]}.experts.{number}.{at[2]}", at[3])] = one
    return tensors


def fused_experts(form):
    """`<block>.experts.gate_up_proj` and `<block>.experts.down_proj`."""
    tensors = {}
    for name, raw in zoo().items():
        at = EXPERT.match(name)
        if at is None:
            tensors[name] = raw
        elif at[2] == "gate_proj":
            up = zoo()[name.replace("gate_proj", "up_proj")]
            tensors[spell(form, f"{at[1]}.experts.gate_up_proj", at[3])] = fused(raw, up)
        elif at[2] == "down_proj":
            tensors[spell(form, f"{at[1]}.experts.down_proj", at[3])] = raw
    return tensors


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [stacked_experts, fused_experts], ids=lambda make: make.__name__)
def test_experts_of_any_form_give_the_unfused_logits(tmp_path, shape, form):
    assert same(write_checkpoint(tmp_path, shape(form), CONFIG))


@pytest.mark.parametrize("form", ["mlx", "ollama"])
def test_numbered_packed_experts_are_stacked(tmp_path, form):
    assert same(write_checkpoint(tmp_path, numbered_experts(form), CONFIG))


def test_a_missing_expert_is_named(tmp_path):
    lost = "language_model.model.layers.1.mlp.experts.5.up_proj"
    tensors = {
        name: raw for name, raw in numbered_experts("mlx").items() if not name.startswith(lost)
    }
    with pytest.raises(PlanError, match="expert 5"):
        make_plan(write_checkpoint(tmp_path, tensors, CONFIG))


def test_an_override_of_a_fused_projection_speaks_of_its_parts(tmp_path):
    key = "language_model.model.layers.0.mlp.experts.gate_up_proj"
    block = {**CONFIG["quantization"], key: {"mode": "nvfp4", "bits": 4, "group_size": 16}}
    config = {**CONFIG, "quantization": block, "quantization_config": block}
    plan = make_plan(write_checkpoint(tmp_path, fused_experts("mlx"), config)).require_sound()
    for part in ("gate_proj", "up_proj"):
        row = plan.modules[f"language_model.model.layers.0.mlp.switch_mlp.{part}"].as_json()
        assert row["origin"].endswith(f"/{key}")


# --- prefixes --------------------------------------------------------------------------------


def to_hugging_face(name):
    """`language_model.model.x` -> `model.language_model.x`; the head has no wrapper."""
    inner = name.replace("language_model.model.", "model.language_model.", 1)
    return inner.replace("language_model.lm_head", "lm_head", 1)


PREFIXES = {
    "model.language_model": to_hugging_face,
    "none": lambda name: re.sub(r"^language_model\.", "", name),
}


@pytest.mark.parametrize("keys", ["module paths", "checkpoint names"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_other_prefixes_of_tensors_and_override_keys(tmp_path, prefix, keys):
    rename = PREFIXES[prefix]
    block = CONFIG["quantization"]
    if keys == "checkpoint names":
        block = {rename(key): said for key, said in block.items()}
    tensors = {rename(name): raw for name, raw in zoo().items()}
    config = {**CONFIG, "quantization": block, "quantization_config": block}
    assert same(write_checkpoint(tmp_path, tensors, config))


def test_the_users_rule_for_a_prefix_that_is_no_wrapper(tmp_path):
    tensors = {f"thinker.{name}": raw for name, raw in zoo().items()}
    block = {
        key if key in ("mode", "bits", "group_size") else f"thinker.{key}": said
        for key, said in CONFIG["quantization"].items()
    }
    config = {**CONFIG, "quantization": block, "quantization_config": block}
    write_checkpoint(tmp_path, tensors, config)
    rules = [{"match": r"^thinker\.(.*)$", "replace": r"\1"}]
    assert same(spec(tmp_path, naming={"rules": rules}))


# --- stores ----------------------------------------------------------------------------------

COMPANION = re.compile(r"\.(scales|biases)$")
OLLAMA_LEAF = {"scales": "weight.scale", "biases": "weight.bias"}


def store_blobs(tensors):
    """One blob per layer, every packed one stamped with the model's global scheme."""
    blobs = {}
    for name, raw in tensors.items():
        main = re.sub(r"\.(scale|bias)$", "", name)
        blobs.setdefault(main, {})[name] = raw
    return [Blob(main, parts, STAMP if len(parts) > 1 else {}) for main, parts in blobs.items()]


@pytest.mark.parametrize(
    "experts", [stacked_experts, fused_experts], ids=lambda make: make.__name__
)
@pytest.mark.parametrize("prefix", ["model.language_model", "none"])
def test_a_store_under_the_names_of_ollamas_importer(tmp_path, experts, prefix):
    """`<prefix>.experts.<projection>.weight`, stale stamps, and config.json's module paths."""
    tensors = {
        PREFIXES[prefix](COMPANION.sub(lambda leaf: f".{OLLAMA_LEAF[leaf[1]]}", name)): raw
        for name, raw in experts("ollama").items()
    }
    write_store(tmp_path, store_blobs(tensors), CONFIG)
    assert same(spec(tmp_path, source={"ollama": "tiny", "store": "."}))


# --- tensor scales ---------------------------------------------------------------------------

HEAD = "language_model.lm_head"
FACTOR = 3.0


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_ollamas_global_scale_is_a_factor_on_the_output(tmp_path, shape):
    tensors = {
        COMPANION.sub(lambda leaf: f".{OLLAMA_LEAF[leaf[1]]}", name): raw
        for name, raw in zoo().items()
    }
    tensors[f"{HEAD}.weight.global_scale"] = floats(FACTOR, shape=shape)
    write_checkpoint(tmp_path, tensors, CONFIG)
    found = answer(spec(tmp_path, model={"kernels": "packed"}), "float32")
    plain = answer(spec(QWEN, model={"kernels": "packed"}), "float32")
    assert mx.allclose(found, FACTOR * plain, rtol=1e-5, atol=1e-5)


def test_mlxs_global_scale_is_an_amax(tmp_path):
    tensors = zoo() | {f"{HEAD}.global_scale": floats(FACTOR * 2688)}
    write_checkpoint(tmp_path, tensors, CONFIG)
    found = answer(spec(tmp_path, model={"kernels": "packed"}), "float32")
    plain = answer(spec(QWEN, model={"kernels": "packed"}), "float32")
    assert mx.allclose(found, FACTOR * plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
@pytest.mark.parametrize("kernels", ["packed", "dense"])
def test_numbered_experts_have_a_factor_each(tmp_path, shape, kernels):
    """Ones change nothing; the factor of an expert is that of its number."""
    source = spec(QWEN, model={"kernels": kernels})
    tensors = numbered_experts("ollama")
    for name in [
        name for name in tensors if name.endswith("down_proj.weight") and ".experts." in name
    ]:
        tensors[f"{name}.global_scale"] = floats(1.0, shape=shape)
    write_checkpoint(tmp_path, tensors, CONFIG)
    found = answer(spec(tmp_path, model={"kernels": kernels}), "float32")
    assert mx.allclose(found, answer(source, "float32"), atol=1e-5)


def quantised(*shape):
    weight = mx.random.normal(shape, key=mx.random.key(0))
    codes, scales = mx.quantize(weight, mode="nvfp4", group_size=16, bits=4)
    return {"weight": codes, "scales": scales}


@pytest.mark.parametrize("multiplier", [mx.array(2.5), mx.array([2.5])], ids=["scalar", "one"])
def test_a_linears_multiplier_comes_before_its_bias(multiplier):
    x, arrays = mx.random.normal((3, 64), key=mx.random.key(1)), quantised(8, 64)
    bias = mx.arange(8.0)
    plain = PackedLinear(NVFP4, dict(arrays))(x)
    layer = PackedLinear(NVFP4, {**arrays, "multiplier": multiplier, "bias": bias})
    assert mx.allclose(layer(x), plain * 2.5 + bias, rtol=1e-5)


def test_an_experts_multiplier_is_that_of_the_chosen_expert():
    arrays = quantised(4, 8, 64)
    factors = mx.array([1.0, 2.0, 3.0, 4.0])
    indices = mx.array([[0, 1], [1, 3], [2, 3]])
    x = mx.random.normal((3, 1, 1, 64), key=mx.random.key(1))
    plain = PackedExperts(NVFP4, dict(arrays))(x, indices)
    found = PackedExperts(NVFP4, {**arrays, "multiplier": factors})(x, indices)
    assert found.shape == (3, 2, 1, 8)
    assert mx.allclose(found, plain * factors[indices][..., None, None], rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,)], ids=str)
def test_an_embeddings_multiplier_holds_for_rows_and_for_the_tied_head(shape):
    arrays = quantised(8, 64)
    factor = mx.full(shape, 2.5)
    plain = PackedEmbedding(NVFP4, dict(arrays), dtype=mx.float32)
    layer = PackedEmbedding(NVFP4, {**arrays, "multiplier": factor}, dtype=mx.float32)
    ids = mx.array([[0, 7, 3]])
    x = mx.random.normal((2, 64), key=mx.random.key(1))
    assert mx.allclose(layer(ids), plain(ids) * 2.5, rtol=1e-5)
    assert mx.allclose(layer.as_linear(x), plain.as_linear(x) * 2.5, rtol=1e-5)
