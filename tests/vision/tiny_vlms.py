"""Tiny random vision-language checkpoints, made and saved by mlx-vlm itself.

With a processor each: the quickstart's tokenizer, to which tokens for pictures are added.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_vlm.quant_utils import quantize_model
from mlx_vlm.utils import (
    save_config,
    save_weights,
    skip_multimodal_module,
    update_module_configs,
)

TOKENIZER = Path(__file__).parents[2] / "examples" / "quickstart" / "model"

#: The quickstart tokenizer has 3072 tokens; these come after them.
IMAGE, VIDEO, START, END = range(3072, 3076)
VOCABULARY = 3076

PATCH = 14

SIGLIP = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 2,
    "patch_size": PATCH,
    "image_size": 4 * PATCH,
}
"""A vision tower of 4 × 4 patches."""

TEXT = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
}

QWEN_VISION = {
    "depth": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "patch_size": PATCH,
    "spatial_patch_size": PATCH,
    "out_hidden_size": 128,
    "num_position_embeddings": 16,
}

QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "vocab_size": VOCABULARY,
}

QWEN35_MOE = {
    "model_type": "qwen3_5_moe",
    **QWEN_TOKENS,
    "text_config": {
        **TEXT,
        "model_type": "qwen3_5_moe_text",
        "num_hidden_layers": 4,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "shared_expert_intermediate_size": 64,
        "moe_intermediate_size": 64,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "type": "default",
            "mrope_section": [2, 1, 1],
            "rope_theta": 100000,
            "partial_rotary_factor": 0.25,
        },
    },
    "vision_config": {
        **QWEN_VISION,
        "model_type": "qwen3_5_moe",
        "deepstack_visual_indexes": [],
    },
}

QWEN2_VL = {
    "model_type": "qwen2_vl",
    **TEXT,
    **QWEN_TOKENS,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "vision_config": {
        "model_type": "qwen2_vl",
        "depth": 2,
        "embed_dim": 64,
        "hidden_size": 128,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_patch_size": PATCH,
    },
}

LLAVA = {
    "model_type": "llava",
    "image_token_index": IMAGE,
    "vocab_size": VOCABULARY,
    "text_config": {**TEXT, "model_type": "llama"},
    "vision_config": {**SIGLIP, "model_type": "clip_vision_model", "projection_dim": 64},
}

GEMMA3 = {
    "model_type": "gemma3",
    "image_token_index": IMAGE,
    "hidden_size": 128,
    "vocab_size": VOCABULARY,
    "mm_tokens_per_image": 4,
    "text_config": {
        **TEXT,
        "model_type": "gemma3_text",
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "mm_tokens_per_image": 4,
        "sliding_window_pattern": 2,
    },
    "vision_config": {**SIGLIP, "model_type": "siglip_vision_model"},
}

#: Without `audio_config`, for which mlx-vlm builds an audio part that the checkpoint has not.
GEMMA4 = {
    "model_type": "gemma4",
    "image_token_id": IMAGE,
    "audio_token_id": VIDEO,
    "hidden_size": 128,
    "vocab_size": VOCABULARY,
    "text_config": {
        **TEXT,
        "model_type": "gemma4_text",
        "num_hidden_layers": 5,
        "head_dim": 32,
        "global_head_dim": 32,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 64,
        "sliding_window": 64,
    },
    "vision_config": {
        "model_type": "gemma4_vision",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "global_head_dim": 32,
        "default_output_length": 4,
        "patch_size": PATCH,
        "position_embedding_size": 64,
        "pooling_kernel_size": 2,
    },
}

CONFIGS: Mapping[str, dict[str, Any]] = {
    config["model_type"]: config for config in (QWEN35_MOE, QWEN2_VL, LLAVA, GEMMA3, GEMMA4)
}


@dataclass(frozen=True)
class Family:
    """What a checkpoint has beside its weights.

    Attributes:
        tokens: What is written for IMAGE, VIDEO, START and END.
        attributes: Names by which the processor asks its tokenizer for them.
        picture: What the chat template writes for a picture.
        processor: preprocessor_config.json.
    """

    tokens: tuple[str, str, str, str]
    attributes: Mapping[str, str]
    picture: str
    processor: Mapping[str, Any]


SCALED = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
SQUARE = {"height": 4 * PATCH, "width": 4 * PATCH}

QWEN = Family(
    ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
    {},
    "<|vision_start|><|image_pad|><|vision_end|>",
    {
        **SCALED,
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 4 * PATCH * PATCH,
        "max_pixels": 64 * PATCH * PATCH,
    },
)

FAMILIES: Mapping[str, Family] = {
    "qwen3_5_moe": QWEN,
    "qwen2_vl": QWEN,
    "llava": Family(
        ("<image>", "<video>", "<start>", "<end>"),
        {"image_token": "<image>"},
        "<image>\n",
        {
            **SCALED,
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 4 * PATCH},
            "do_center_crop": True,
            "crop_size": SQUARE,
        },
    ),
    "gemma3": Family(
        ("<image_soft_token>", "<video>", "<start_of_image>", "<end_of_image>"),
        {
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
        "<start_of_image>",
        {**SCALED, "image_processor_type": "Gemma3ImageProcessor", "size": SQUARE},
    ),
}

#: processor_config.json, where the processor itself has settings.
PROCESSORS: Mapping[str, dict[str, Any]] = {
    "llava": {
        "patch_size": PATCH,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
    },
    "gemma3": {"image_seq_length": 4},
}

TEMPLATE = """
{%- for message in messages -%}
<{{ message.role }}>
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for item in message.content -%}
{%- if item.type == 'image' -%}PICTURE
{%- else -%}{{ item.text }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}<assistant>{%- endif -%}
"""


def write_processor(directory: Path, name: str) -> None:
    """The quickstart's tokenizer with tokens for pictures, a chat template, and the settings."""
    family = FAMILIES[name]
    tokenizer = json.loads((TOKENIZER / "tokenizer.json").read_text(encoding="utf-8"))
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer["added_tokens"] += [
        {"id": IMAGE + index, "content": token, **plain, "special": True}
        for index, token in enumerate(family.tokens)
    ]
    settings = json.loads((TOKENIZER / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings |= {
        "extra_special_tokens": dict(family.attributes),
        "chat_template": TEMPLATE.replace("PICTURE", family.picture),
    }
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings,
        "preprocessor_config.json": dict(family.processor),
    }
    if name in PROCESSORS:
        files["processor_config.json"] = PROCESSORS[name]
    for file, content in files.items():
        (directory / file).write_text(json.dumps(content), encoding="utf-8")


def write_picture(path: Path, size: tuple[int, int] = (60, 44), seed: int = 0) -> Path:
    """A small PNG: a slope of two colours with a square in it."""
    from PIL import Image, ImageDraw

    picture = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(picture)
    draw.rectangle([8 + seed, 8, 24 + seed, 24], fill=(220, 40 * (seed % 6), 30))
    picture.save(path)
    return path


@dataclass(frozen=True)
class Recipe:
    """How mlx-vlm is asked to quantise.

    Attributes:
        mode, bits, group_size: The global scheme; bits 0 for none, with float32 weights, because
            on a CPU MLX multiplies by dense experts in float32 only.
        vision: Whether the vision tower is quantised too, which mlx-vlm's own rules leave out.
    """

    mode: str = "affine"
    bits: int = 4
    group_size: int = 64
    vision: bool = False


RECIPES = {
    "dense": Recipe(bits=0),
    "affine": Recipe(),
    "nvfp4": Recipe("nvfp4", 4, 16),
    "whole": Recipe("affine", 8, 32, vision=True),
}


def write(directory: Path, name: str, recipe: Recipe = RECIPES["dense"], seed: int = 0) -> Path:
    """A checkpoint of an architecture, quantised by mlx-vlm's rules and saved by its functions."""
    config = json.loads(json.dumps(CONFIGS[name]))
    model = fresh(name, config, seed, mx.bfloat16 if recipe.bits else mx.float32)
    if recipe.bits:
        model, config = quantize_model(
            model,
            config,
            recipe.group_size,
            recipe.bits,
            mode=recipe.mode,
            quant_predicate=predicate(model, vision=recipe.vision),
        )
    save_weights(directory, model)
    save_config(config, directory / "config.json")
    if name in FAMILIES:
        write_processor(directory, name)
    return directory


def fresh(name: str, config: Mapping[str, Any], seed: int, dtype: mx.Dtype) -> Any:
    """mlx-vlm's model with weights that differ from layer to layer, its norms' and biases' too."""
    module = importlib.import_module(f"mlx_vlm.models.{name}")
    config = json.loads(json.dumps(config))
    config.setdefault("text_config", {})
    settings = module.ModelConfig.from_dict(config)
    settings = update_module_configs(settings, module, config, ["text", "vision"])
    mx.random.seed(seed)
    model = module.Model(settings)
    model.update(tree_map(lambda array: _shaken(array).astype(dtype), model.parameters()))
    mx.eval(model.parameters())
    return model


def _shaken(array: mx.array) -> mx.array:
    return array + 0.05 * mx.random.normal(array.shape)


def predicate(model: Any, *, vision: bool) -> Any:
    """As `mlx_vlm.convert` has it: nothing of the vision tower, and what the model itself says."""
    own = getattr(model, "quant_predicate", None)

    def decide(path: str, module: Any) -> Any:
        if skip_multimodal_module(path) and not vision:
            return False
        return own(path, module) if own is not None else True

    return decide
