"""source -> export -> load: the logits are the source's, bit for bit."""

from __future__ import annotations

import json
from functools import cache

import mlx.core as mx
import pytest
from builders import GPTOSS, llama_config, quantised_llama, spec, write_checkpoint
from export_tools import (
    DIRECTORIES,
    ENTRY,
    QUICKSTART,
    QWEN,
    answer,
    contents,
    entry_spec,
    make,
    same,
    zoo_store_spec,
    zoo_tokens,
)
from mlx_lm.utils import load_model

import mlxpipe
from mlxpipe.errors import ExecutionError, UsageError
from mlxpipe.exports.forms import amax_of
from mlxpipe.graph import arrays
from mlxpipe.graph.arrays import multiplier_of
from mlxpipe.quant.modes import Scheme

BY_NAME = pytest.mark.parametrize("folder", DIRECTORIES, ids=lambda folder: folder.name)

#: Formats and what becomes of modules with a factor.
WAYS = [("mlx", "dense"), ("mlx", "keep"), ("ollama", "dense")]

#: Producers whose factors mlx-lm has no place for.
FACTORS = {
    "ct-fp8dyn-qwen3",
    "ct-mixed-llama",
    "ct-nvfp4a16-llama",
    "mo-fp8-llama",
    "mo-mixed-qwen3",
    "mo-nvfp4-qwen3moe",
}

#: Those whose conversion 16 bits would round, so that a load in 16 bits has less than an export.
ROUNDED = {"ar-awq-llama", "ct-w4a16asym-qwen3", "fp8-block-qwen3"}


@cache
def expected(folder, kernels="dense", dtype="float32"):
    return answer(folder, zoo_tokens(folder), kernels, dtype)


@pytest.mark.parametrize("way", WAYS, ids="-".join)
@BY_NAME
def test_every_producer_in_float32(shared, folder, way):
    _, made, done = shared(folder, way)
    assert same(answer(made, zoo_tokens(folder)), expected(folder))
    if done.count("identical") == len(done.modules):
        packed = answer(made, zoo_tokens(folder), "packed")
        assert same(packed, expected(folder, "packed"))
    assert way != ("mlx", "keep") or done.count("identical") == len(done.modules)


@pytest.mark.parametrize(
    "folder", [each for each in DIRECTORIES if each.name not in ROUNDED], ids=lambda each: each.name
)
def test_every_producer_as_stored(shared, folder):
    """What mlxpipe computes on a GPU: packed, in the checkpoint's dtype."""
    _, made, _ = shared(folder, ("mlx", "keep"))
    stored = answer(made, zoo_tokens(folder), "packed", "checkpoint")
    assert same(stored, expected(folder, "packed", "checkpoint"))


@pytest.mark.parametrize("name", sorted(ROUNDED))
def test_16_bits_where_they_are_asked_for(tmp_path, name):
    folder = QWEN.parent / name
    _, made, done = make(folder, tmp_path / "out", ("mlx", "dense"), dtype="checkpoint")
    assert done.count("rounded") > 0
    stored = answer(made, zoo_tokens(folder), "packed", "checkpoint")
    assert same(stored, expected(folder, "packed", "checkpoint"))


@BY_NAME
def test_mlx_lm_loads_every_one_and_answers_alike(shared, folder):
    path, made, done = shared(folder, ("mlx", "dense"))
    theirs, config = load_model(path)
    assert config.get("quantization") == config.get("quantization_config")
    assert ("quantization" in config) == any(form.scheme for form in done.modules.values())
    if folder.name == "mo-nvfp4-qwen3moe":
        return  # MLX computes experts with a factor on a GPU only
    ours = answer(made, zoo_tokens(folder), "packed", "checkpoint")
    assert same(theirs(zoo_tokens(folder)), ours)


@BY_NAME
def test_modules_that_change_are_counted_and_their_reason_is_given(shared, folder):
    done = shared(folder, ("mlx", "dense")).report
    changed = [form for form in done.modules.values() if form.fidelity != "identical"]
    assert bool(changed) == (folder.name in FACTORS)
    assert all(form.fidelity == "dequantised" and form.reason for form in changed)
    assert done.metrics["modules_dequantised"] == len(changed)


@pytest.mark.parametrize("name", sorted(FACTORS))
def test_what_the_format_cannot_hold_can_be_refused(tmp_path, name):
    with pytest.raises(ExecutionError) as caught:
        make(QWEN.parent / name, tmp_path / "out", ("mlx", "error"))
    assert caught.value.code == "unsupported-modules"
    assert "model.layers.0." in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_mlx_lm_refuses_what_was_kept_for_mlxpipe_alone(shared):
    kept = shared(QWEN.parent / "mo-fp8-llama", ("mlx", "keep"))
    with pytest.raises(ValueError, match="multiplier"):
        load_model(kept.folder)


@pytest.mark.parametrize("way", WAYS[1:], ids="-".join)
def test_from_a_store(tmp_path, way):
    _, made, done = make(zoo_store_spec(), tmp_path / "out", way)
    assert same(answer(made, zoo_tokens()), expected(QWEN))
    assert done.count("identical") == len(done.modules)


@pytest.mark.parametrize("way", WAYS[1:], ids="-".join)
def test_the_quickstart(shared, way):
    made = shared(QUICKSTART, way).spec
    tokens = mx.array([[1, 5, 9, 63, 7, 12]])
    for kernels, dtype in (("dense", "float32"), ("packed", "checkpoint")):
        source = answer(QUICKSTART, tokens, kernels, dtype)
        assert same(answer(made, tokens, kernels, dtype), source)


def test_an_export_of_an_export_is_the_same(tmp_path):
    mlxpipe.export(QWEN, tmp_path / "one")
    mlxpipe.export(tmp_path / "one", tmp_path / "store", format="ollama", name=ENTRY)
    mlxpipe.export(entry_spec(tmp_path / "store"), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("folder", [QWEN, GPTOSS], ids=lambda folder: folder.name)
def test_equal_sources_give_equal_bytes(tmp_path, shared, folder):
    for way in WAYS:
        again = make(folder, tmp_path / "-".join(way), way)
        assert contents(again.folder) == contents(shared(folder, way).folder)


def test_shards(tmp_path):
    _, made, done = make(QWEN, tmp_path / "out", WAYS[0], max_shard_bytes=40_000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    assert len(shards) == done.files > 5
    assert set(index["weight_map"].values()) == {path.name for path in shards}
    assert index["metadata"]["total_size"] == done.nbytes
    for path in shards:
        tensors = mx.load(str(path))
        assert sum(array.nbytes for array in tensors.values()) <= 40_000 or len(tensors) == 1
    assert same(answer(made, zoo_tokens()), expected(QWEN))
    theirs, _ = load_model(tmp_path / "out")
    assert same(theirs(zoo_tokens()), expected(QWEN, "packed", "checkpoint"))


def test_a_source_of_more_blobs_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "OPEN_FILES", 2)
    made = make(zoo_store_spec(), tmp_path / "out", ("mlx", "dense")).spec
    assert same(answer(made, zoo_tokens()), expected(QWEN))
    assert same(answer(zoo_store_spec, zoo_tokens()), expected(QWEN))


def test_a_dense_model_has_no_quantisation(tmp_path):
    write_checkpoint(tmp_path / "in", quantised_llama(lambda path: None), llama_config())
    mlxpipe.export(tmp_path / "in", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert not {"quantization", "quantization_config"} & config.keys()
    tokens = mx.array([[1, 5, 9]])
    theirs, _ = load_model(tmp_path / "out")
    assert same(theirs(tokens), answer(tmp_path / "in", tokens, "packed", "checkpoint"))


def test_what_the_spec_overrides_is_what_is_exported(tmp_path):
    """The export says of itself what the spec had to say of its source."""
    tensors = quantised_llama(lambda path: Scheme("affine", 4, 64))
    block = {"group_size": 32, "bits": 8}
    write_checkpoint(tmp_path / "in", tensors, llama_config(quantization=block))
    rule = {"match": "*", "mode": "affine", "bits": 4, "group_size": 64}
    loaded = spec(tmp_path / "in", quantization={"overrides": [rule]})
    mlxpipe.export(loaded, tmp_path / "out")
    again = mlxpipe.make_plan(tmp_path / "out").require_sound()
    assert (again.conflicts, again.stale, again.notes) == ((), (), ())
    assert {str(module.scheme) for module in again.modules.values()} == {"affine 4-bit g64"}


def test_an_unsound_plan_is_not_exported(tmp_path):
    unsound = zoo_store_spec(quantization={"precedence": "metadata > config"})
    with pytest.raises(mlxpipe.PlanError):
        mlxpipe.export(unsound, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_architecture_that_would_change_an_export_again_is_refused(tmp_path, monkeypatch):
    """A `sanitize` that adds one to norms whenever it is called."""
    from mlx_lm.models import llama

    original = llama.Model.sanitize

    def shifting(self, weights):
        weights = original(self, weights)
        return {key: each + 1 if "norm" in key else each for key, each in weights.items()}

    monkeypatch.setattr(llama.Model, "sanitize", shifting)
    write_checkpoint(tmp_path / "in", quantised_llama(lambda path: None), llama_config())
    with pytest.raises(ExecutionError) as caught:
        mlxpipe.export(tmp_path / "in", tmp_path / "out")
    assert caught.value.code == "unfaithful-export"
    assert "norm.weight" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


# --- factors ---------------------------------------------------------------------------------


def test_an_amax_gives_back_its_factor_or_there_is_none():
    amax = mx.abs(mx.random.normal((4096,), key=mx.random.key(0)))
    found = amax_of(multiplier_of(amax))
    assert found is not None
    assert mx.array_equal(multiplier_of(found), multiplier_of(amax))
    wide = mx.array([1.0 + number * 2**-23 for number in range(2**12)]) * 1.75
    assert amax_of(wide) is None


def test_factors_of_modelopts_experts_are_mlx_lms_own(shared):
    path, _, done = shared(QWEN.parent / "mo-nvfp4-qwen3moe", WAYS[0])
    block = json.loads((path / "config.json").read_text())["quantization"]
    entry = block["model.layers.0.mlp.switch_mlp.up_proj"]
    assert entry == {"group_size": 16, "bits": 4, "mode": "nvfp4", "global_scale": True}
    assert done.modules["model.layers.0.mlp.switch_mlp.up_proj"].fidelity == "identical"
    theirs, _ = load_model(path)
    stored = theirs.model.layers[0].mlp.switch_mlp.up_proj.global_scale
    assert stored is not None and stored.dtype == mx.float32


@pytest.mark.parametrize(
    "options",
    [
        {"format": "ollama"},
        {"format": "gguf"},
        {"name": "a:b"},
        {"format": "ollama", "name": "../../etc"},
        {"format": "ollama", "name": "a", "unsupported": "keep"},
        {"max_shard_bytes": 0},
        {"colour": "red"},
    ],
    ids=str,
)
def test_options_are_checked_as_a_spec_is(tmp_path, options):
    with pytest.raises(UsageError):
        mlxpipe.export(QWEN, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


# --- recipes ---------------------------------------------------------------------------------

RECIPES = {
    "packed again": {"match": "*.mlp.*", "mode": "mxfp8"},
    "dense": {"match": "*.self_attn.*", "dense": True},
    "a preset": {"match": "*", "preset": "mixed_4_6"},
}


@pytest.mark.parametrize("rule", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("name", ["mo-nvfp4-qwen3moe", "ct-w4a16asym-qwen3", "fp8-block-qwen3"])
def test_what_a_recipe_makes_is_what_is_exported(tmp_path, name, rule):
    folder = QWEN.parent / name

    def recipe(**more):
        return spec(folder, quantize=[rule], **more)

    _, made, done = make(recipe(), tmp_path / "out", ("mlx", "keep"))
    plan = mlxpipe.make_plan(recipe())
    again = mlxpipe.make_plan(tmp_path / "out").require_sound()
    already = rule.get("dense") and name == "fp8-block-qwen3"
    assert already or any(module.changed for module in plan.modules.values())
    assert {path: form.scheme for path, form in done.modules.items()} == {
        path: module.landing for path, module in plan.modules.items()
    }
    assert {path: module.landing for path, module in again.modules.items()} == {
        path: module.landing for path, module in plan.modules.items()
    }
    for kernels in ("dense", "packed"):
        source = answer(recipe, zoo_tokens(folder), kernels)
        assert same(answer(made, zoo_tokens(folder), kernels), source)


def test_a_spec_is_exported_whatever_its_own_tasks_are(tmp_path):
    """Its expectations are of those tasks, and none of them is done."""
    missing = {"id": "ppl", "type": "perplexity", "data": "no-such-file.txt"}
    expect = [{"task": "ppl", "metric": "perplexity", "max": 1}]
    loaded = spec(QWEN, tasks=[missing], expect=expect)
    assert mlxpipe.export(loaded, tmp_path / "out").count("identical") == 53
