"""The trained weights as the Hugging Face checkpoint they would be published as, in bfloat16."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from corpus import save_tokenizer, write_json
from network import ModelConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

SHIFTED_NORMS = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "model.norm.weight",
    "q_norm.weight",
    "k_norm.weight",
)


def hugging_face_config(config: ModelConfig) -> dict[str, object]:
    """config.json of the dense checkpoint."""
    text = asdict(config) | {
        "model_type": "qwen3_5_moe_text",
        "hidden_act": "silu",
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "eos_token_id": 0,
        "dtype": "bfloat16",
    }
    rope = {name: text.pop(name) for name in ("rope_theta", "partial_rotary_factor")}
    text["rope_parameters"] = rope | {"rope_type": "default"}
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "eos_token_id": 0,
        "tie_word_embeddings": False,
        "text_config": text,
    }


def as_stored(name: str, value: Tensor) -> Tensor:
    """A parameter in bfloat16; norms such that one plus the stored weight is exact too.

    Converters add the one in bfloat16: without this, they would round the sum.
    """
    if name.endswith(SHIFTED_NORMS):
        return (value + 1.0).bfloat16() - 1.0
    return value.bfloat16()


def export(
    weights: dict[str, Tensor], tokenizer: Tokenizer, config: ModelConfig, out: Path
) -> None:
    """Writes bfloat16 weights as a Hugging Face checkpoint."""
    out.mkdir(parents=True, exist_ok=True)
    renamed = {
        name.replace("model.", "model.language_model.", 1): value.contiguous()
        for name, value in sorted(weights.items())
    }
    save_file(renamed, out / "model.safetensors", metadata={"format": "pt"})
    write_json(out / "config.json", hugging_face_config(config))
    write_json(out / "generation_config.json", {"eos_token_id": 0, "do_sample": False})
    save_tokenizer(tokenizer, out, config.max_position_embeddings)
