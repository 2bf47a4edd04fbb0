"""Vision-language checkpoints against mlx-vlm's own loader: the logits are equal bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("mlx_vlm")

import tiny_vlms
from builders import Blob, read_safetensors, spelled, write_store
from mlx_vlm.utils import load_model, prepare_inputs
from PIL import Image
from tiny_vlms import CONFIGS, FAMILIES, IMAGE, PATCH, RECIPES

import mlxpipe
from mlxpipe.checkpoint.source import open_source
from mlxpipe.graph.layers import PackedLinear, SealedLinear
from mlxpipe.plan.plan import Plan
from mlxpipe.plan.planner import plan_checkpoint
from mlxpipe.quant.modes import Scheme
from mlxpipe.spec import parse_spec, spec_for_source

#: Architectures whose pictures are prepared by hand -> how many tokens one becomes. The processor
#: of mlx-vlm 0.7.10 for LLaVA cannot be called with transformers 5.23, and Gemma 4's wants more
#: than a tiny tokenizer has.
UNPROCESSED = {"llava": 16, "gemma4": 4}


class Inputs(NamedTuple):
    """What mlx-vlm's models are called with."""

    tokens: mx.array
    pixels: mx.array
    rest: dict[str, Any]


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> Path:
    return tiny_vlms.write_picture(tmp_path_factory.mktemp("pictures") / "square.png")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Name and recipe -> directory, each written once."""
    written: dict[tuple[str, str], Path] = {}

    def write(name: str, recipe: str) -> Path:
        if (name, recipe) not in written:
            directory = tmp_path_factory.mktemp(f"{name}-{recipe}")
            written[name, recipe] = tiny_vlms.write(directory, name, RECIPES[recipe])
        return written[name, recipe]

    return write


def inputs_for(name: str, processor: Any, picture: Path) -> Inputs:
    """A prompt with the picture, by the processor, or by hand where mlx-vlm's own is broken."""
    if name in UNPROCESSED:
        square = Image.open(picture).resize((4 * PATCH, 4 * PATCH))
        pixels = mx.array(np.asarray(square, dtype=np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
        tokens = [5, *[IMAGE] * UNPROCESSED[name], 7, 8, 9]
        return Inputs(mx.array([tokens]), pixels, {"mask": None})
    text = f"What is {FAMILIES[name].picture} good for?"
    found = prepare_inputs(processor, images=[str(picture)], prompts=text, image_token_index=IMAGE)
    return Inputs(found.pop("input_ids"), found.pop("pixel_values"), found)


def logits_of(model: Any, inputs: Inputs) -> mx.array:
    rest = {"mask" if key == "attention_mask" else key: each for key, each in inputs.rest.items()}
    return model(inputs.tokens, inputs.pixels, **rest).logits


def planned(directory: Path) -> Plan:
    spec = spec_for_source(directory)
    return plan_checkpoint(spec, open_source(spec), vision=True)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_mlx_vlms_own_loader(name, recipe, checkpoint, picture):
    directory = checkpoint(name, recipe)
    model, processor = mlxpipe.load(
        directory, vision=True, dtype="checkpoint", tokenizer=name not in UNPROCESSED
    )
    inputs = inputs_for(name, processor, picture)
    ours = logits_of(model, inputs)
    theirs = logits_of(load_model(directory), inputs)
    assert mx.array_equal(ours, theirs)
    assert mx.all(mx.isfinite(ours))
    blank = inputs._replace(pixels=mx.zeros_like(inputs.pixels))
    assert not mx.array_equal(ours, logits_of(model, blank))


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - UNPROCESSED.keys()))
def test_the_processor_gives_what_mlx_vlms_own_gives(name, checkpoint, picture):
    import mlx_vlm

    directory = checkpoint(name, "affine")
    _, ours = mlxpipe.load(directory, vision=True)
    _, theirs = mlx_vlm.load(str(directory))
    for one, other in zip(
        *(inputs_for(name, each, picture) for each in (ours, theirs)), strict=True
    ):
        if isinstance(one, mx.array):
            assert mx.array_equal(one, other)
    assert ours.tokenizer.stopping_criteria.eos_token_ids == (
        theirs.tokenizer.stopping_criteria.eos_token_ids
    )


def test_an_audio_part_without_tensors_is_left_out(checkpoint):
    """config.json does not say that there is none, so mlx-vlm builds one."""
    directory = checkpoint("gemma4", "affine")
    model, _ = mlxpipe.load(directory, vision=True, tokenizer=False)
    assert model.audio_tower is None
    assert model.embed_audio is None
    assert planned(directory).problems == ()


# --- claims ----------------------------------------------------------------------------------


def test_gates_are_affine_where_the_rest_is_nvfp4_and_the_tower_dense(checkpoint):
    """The override has no mode: affine, as the origin's checkpoints have it."""
    directory = checkpoint("qwen3_5_moe", "nvfp4")
    block = json.loads((directory / "config.json").read_text())["quantization"]
    key = "language_model.model.layers.0.mlp.gate"
    assert block[key] == {"group_size": 64, "bits": 8}
    plan = planned(directory).require_sound()
    schemes = {path: module.scheme for path, module in plan.modules.items()}
    assert schemes[key] == Scheme("affine", 8, 64)
    assert schemes["language_model.model.layers.0.mlp.switch_mlp.up_proj"] == (
        Scheme("nvfp4", 4, 16)
    )
    tower = {scheme for path, scheme in schemes.items() if path.startswith("vision_tower.")}
    assert tower == {None}


def test_a_quantised_tower_is_judged_like_the_rest(checkpoint):
    plan = planned(checkpoint("qwen3_5_moe", "whole")).require_sound()
    module = plan.modules["vision_tower.blocks.1.attn.qkv"]
    assert module.scheme == Scheme("affine", 8, 32)
    assert module.verdict.source == "config"


def test_an_override_by_the_originals_name_finds_its_module(checkpoint, tmp_path):
    directory = checkpoint("qwen3_5_moe", "nvfp4")
    config = json.loads((directory / "config.json").read_text())
    block = config["quantization"]
    config["quantization"] = {
        key.replace("language_model.model.", "model.language_model."): value
        for key, value in block.items()
    }
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    (renamed / "config.json").write_text(json.dumps(config))
    (renamed / "model.safetensors").symlink_to(directory / "model.safetensors")
    plan = planned(renamed).require_sound()
    assert plan.unmatched == ()
    assert plan.modules["language_model.model.layers.1.mlp.gate"].verdict.source == "config"


def test_without_pictures_the_language_model_runs_alone(checkpoint):
    directory = checkpoint("qwen3_5_moe", "nvfp4")
    plan = mlxpipe.make_plan(directory).require_sound()
    assert not plan.vision
    assert not any("vision_tower" in path for path in plan.modules)
    assert planned(directory).vision
    model, tokenizer = mlxpipe.load(directory)
    assert type(model).__module__.startswith("mlx_lm.")
    assert tokenizer.encode("It is")


# --- the originals' names --------------------------------------------------------------------


def original_names(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Qwen3.5-MoE's tensors as transformers saves them: fused experts, unshifted norms."""
    found = {}
    for name, array in weights.items():
        theirs = (
            name.replace("language_model.model.", "model.language_model.")
            .replace("language_model.lm_head", "lm_head")
            .replace("vision_tower.", "model.visual.")
        )
        shifted = (
            "layernorm.weight",
            "q_norm.weight",
            "k_norm.weight",
            "language_model.norm.weight",
        )
        if name.startswith("language_model.") and theirs.endswith(shifted):
            array = array - 1.0
        if theirs.endswith("conv1d.weight"):
            array = array.moveaxis(2, 1)
        if theirs.endswith("switch_mlp.up_proj.weight"):
            continue
        if theirs.endswith("switch_mlp.gate_proj.weight"):
            up = weights[name.replace("gate_proj", "up_proj")]
            theirs = theirs.replace("switch_mlp.gate_proj.weight", "experts.gate_up_proj")
            array = mx.concatenate([array, up], axis=1)
        found[theirs.replace("switch_mlp.down_proj.weight", "experts.down_proj")] = array
    return found


def test_a_checkpoint_with_the_originals_names_gives_the_same_logits(checkpoint, picture, tmp_path):
    directory = checkpoint("qwen3_5_moe", "dense")
    weights: Any = mx.load(str(directory / "model.safetensors"))
    original = original_names(weights)
    assert any(name.endswith("experts.gate_up_proj") for name in original)
    mx.save_safetensors(str(tmp_path / "model.safetensors"), original)
    for file in directory.glob("*.json"):
        if "index" not in file.name:
            (tmp_path / file.name).symlink_to(file)
    model, processor = mlxpipe.load(tmp_path, vision=True, dtype="checkpoint")
    inputs = inputs_for("qwen3_5_moe", processor, picture)
    ours = logits_of(model, inputs)
    assert mx.array_equal(ours, logits_of(load_model(tmp_path), inputs))


# --- an Ollama store -------------------------------------------------------------------------


def write_as_store(directory: Path, root: Path) -> Path:
    """A checkpoint as Ollama's importer stores it: a blob per module, each stamped nvfp4."""
    tensors, _ = read_safetensors(directory / "model.safetensors")
    blobs = []
    for name, tensor in tensors.items():
        path, _, leaf = name.rpartition(".")
        if leaf in ("scales", "biases"):
            continue
        parts = {
            spelled(path, role, "ollama"): tensors[f"{path}.{role}"]
            for role in ("scales", "biases")
            if leaf == "weight" and f"{path}.{role}" in tensors
        }
        stamp = {"quant_type": "nvfp4", "group_size": "16"} if parts else {}
        blobs.append(Blob(name, {name: tensor, **parts}, stamp))
    documents = {
        file.name: json.loads(file.read_text(encoding="utf-8"))
        for file in directory.glob("*.json")
        if "index" not in file.name
    }
    return write_store(root, blobs, documents.pop("config.json"), documents)


def test_an_ollama_store_whose_stamps_are_wrong_gives_the_same_logits(
    checkpoint, picture, tmp_path
):
    """The origin's case, now with pictures: the gates' stamps say nvfp4, config.json affine."""
    directory = checkpoint("qwen3_5_moe", "nvfp4")
    root = write_as_store(directory, tmp_path / "store")
    source = f"version: 1\nsource: {{ollama: 'tiny:latest', store: {root}}}\n"
    loaded = parse_spec(source, "s.yaml", tmp_path)
    plan = plan_checkpoint(loaded, open_source(loaded), vision=True).require_sound()
    gate = plan.modules["language_model.model.layers.0.mlp.gate"]
    assert (gate.scheme, gate.verdict.source) == (Scheme("affine", 8, 64), "config")
    model, processor = mlxpipe.load(loaded, vision=True, dtype="checkpoint")
    inputs = inputs_for("qwen3_5_moe", processor, picture)
    assert mx.array_equal(logits_of(model, inputs), logits_of(load_model(directory), inputs))


# --- layers past which mlx-vlm multiplies ----------------------------------------------------


def test_a_layer_with_a_multiplier_is_not_multiplied_past_its_call():
    """mlx-vlm takes weight and scales of MLX's quantised layers for short inputs."""
    from mlx_vlm.models.linear import linear

    weight = mx.random.normal((64, 512)).astype(mx.bfloat16)
    arrays = dict(zip(("weight", "scales"), mx.quantize(weight, mode="nvfp4"), strict=True))
    arrays["multiplier"] = mx.array(3.0)
    x = mx.random.normal((1, 4, 512)).astype(mx.bfloat16)
    sealed = SealedLinear(Scheme("nvfp4", 4, 16), dict(arrays)).eval()
    assert mx.allclose(linear(sealed, x), sealed(x), rtol=0.02, atol=0.05)
    packed = PackedLinear(Scheme("nvfp4", 4, 16), dict(arrays)).eval()
    assert not mx.allclose(linear(packed, x), packed(x), rtol=0.02, atol=0.05)
