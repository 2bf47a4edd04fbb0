"""What architectures need beyond the usual values of their fields, and what mlx-lm cannot do.

A new architecture is a new row, and most need none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LINEAR = {"rope_theta": 10000.0, "rope_type": "default"}
LLAMA_4 = {"llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 256}
YARN = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}
BY_KIND = {"sliding_attention": LINEAR, "full_attention": LINEAR}
DELTA = {
    "kda_layers": [1, 2, 3],
    "num_heads": 4,
    "head_dim": 32,
    "short_conv_kernel_size": 4,
}
LFM2 = {
    "layer_types": ["conv", "full_attention"] * 2,
    "block_dim": 128,
    "block_multiple_of": 64,
    "block_auto_adjust_ff_dim": True,
}


def _hadamard(path: str, block: int, *, embedding: bool = False) -> dict[str, Any]:
    return {"path": path, "embedding": embedding, "dtype": "float16", "block": block}


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture's fields.

    Attributes:
        reason: Why the usual values do not do.
        fields: Field -> value, of the args or, where there is one, of their text section.
        text: `module.Class` of the text section, where the args do not tell.
        around: Field -> value of the args around a text section.
        packed: Whether its layers come packed, so that there is nothing to quantise.
    """

    reason: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    around: Mapping[str, Any] = field(default_factory=dict)
    packed: bool = False


ROWS: Mapping[str, Row] = {
    "afm7": Row(
        "the width of its MLP is a multiple of the model's",
        {"num_kv_reuse_layers": 2, "hidden_dim_scale_factor": 2.0},
    ),
    "baichuan_m1": Row("layers by number", {"sliding_window_layers": [0, 2]}),
    "dbrx": Row(
        "settings nested without a class of their own",
        {
            "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        },
    ),
    "deepseek_v2": Row("it reads rope_scaling unasked", {"rope_scaling": YARN}),
    "deepseek_v41": Row(
        "compressed attention by layer; a head holds its rotary part; experts that score by a root",
        {
            "head_dim": 128,
            "qk_rope_head_dim": 32,
            "o_groups": 2,
            "scoring_func": "sqrtsoftplus",
            "compress_ratios": [0, 2, 2, 0],
            "kv_source_layer_ids": [1],
            "index_source_layer_ids": [1],
        },
    ),
    "exaone4": Row("its pattern is text", {"sliding_window_pattern": "LG"}),
    "exaone_moe": Row("layers by kind", {"is_moe_layer": [False, True, True, True]}),
    "gear": Row("layers by kind", {"layer_types": ["conv", "full_attention"] * 2}),
    "gemma3n": Row(
        "per-layer inputs, shared caches and parallel streams",
        {
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 256,
            "hidden_size_per_layer_input": 64,
            "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
            "intermediate_size": [256] * 4,
            "altup_num_inputs": 2,
            "altup_active_idx": 0,
            "altup_coef_clip": 120.0,
            "laurel_rank": 64,
            "final_logit_softcapping": 30.0,
            "rope_local_base_freq": 10000.0,
        },
    ),
    "gemma4": Row(
        "per-layer inputs and shared caches",
        {
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 256,
            "hidden_size_per_layer_input": 64,
            "global_head_dim": 64,
        },
    ),
    "gemma4_text": Row(
        "experts beside the MLP, and no shared caches",
        {
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "global_head_dim": 64,
            "enable_moe_block": True,
        },
    ),
    "glm_moe_dsa": Row("rope_parameters are required", {"rope_parameters": LINEAR}),
    "granitemoehybrid": Row(
        "layers by kind", {"layer_types": ["mamba", "attention", "mamba", "attention"]}
    ),
    "hunyuan": Row(
        "it reads rope_scaling unasked; its layers share keys in pairs",
        {
            "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
            "use_mixed_mlp_moe": True,
        },
    ),
    "jamba": Row(
        "attention and experts in every other layer",
        {"attn_layer_offset": 1, "expert_layer_offset": 1},
    ),
    "kimi_k3": Row("delta attention by layer, counted from 1", {"linear_attn_config": DELTA}),
    "kimi_linear": Row("delta attention by layer, counted from 1", {"linear_attn_config": DELTA}),
    "lfm2": Row("layers by kind; widths are rounded", LFM2),
    "lfm2-vl": Row("layers by kind; widths are rounded", LFM2),
    "lfm2_moe": Row("layers by kind", {"layer_types": ["conv", "full_attention"] * 2}),
    "llama4": Row(
        "one expert per token; attention in chunks",
        {
            "num_experts_per_tok": 1,
            "attention_chunk_size": 4,
            "interleave_moe_layer_step": 2,
            "intermediate_size_mlp": 256,
        },
    ),
    "llama4_text": Row(
        "layers by kind", {"no_rope_layers": [1, 1, 1, 0], "intermediate_size_mlp": 256}
    ),
    "longcat_flash": Row(
        "mlx-lm reads the scales of its projections whether they are on or not",
        {"mla_scale_q_lora": True, "mla_scale_kv_lora": True, "zero_expert_type": "identity"},
    ),
    "longcat_flash_ngram": Row(
        "mlx-lm reads the scales of its projections whether they are on or not",
        {"mla_scale_q_lora": True, "mla_scale_kv_lora": True, "ngram_vocab_size_ratio": 2},
    ),
    "mamba2": Row("its limits are a pair", {"time_step_limit": [0.0, 100.0], "head_dim": 64}),
    "mellum": Row("rotary settings by kind of layer", {"rope_parameters": BY_KIND}),
    "mimo_v2_flash": Row(
        "layers by kind, with heads of their own",
        {
            "hybrid_layer_pattern": [0, 1, 0, 1],
            "moe_layer_freq": [0, 1, 1, 1],
            "add_swa_attention_sink_bias": True,
            "swa_num_attention_heads": 4,
            "swa_head_dim": 32,
            "swa_v_head_dim": 64,
            "swa_rope_theta": 10000.0,
        },
    ),
    "minicpm3": Row(
        "it reads rope_scaling unasked",
        {"rope_scaling": {"short_factor": 1.0, "long_factor": 1.0}, "dim_model_base": 64},
    ),
    "minicpm": Row("logits are divided by a ratio of widths", {"dim_model_base": 64}),
    "minimax_m3_vl": Row(
        "layers by kind, and an index over blocks",
        {
            "moe_layer_freq": [0, 1, 1, 1],
            "dense_intermediate_size": 256,
            "index_block_size": 2,
            "index_topk_blocks": 2,
            "layer_types": ["full_attention", "sparse_attention"] * 2,
        },
    ),
    "ministral3": Row("rope_parameters are required", {"rope_parameters": LINEAR | LLAMA_4}),
    "mistral4": Row("rope_parameters are required", {"rope_parameters": LINEAR | LLAMA_4}),
    "muse_spark": Row(
        "no dense layers; rotary settings by layer",
        {
            "num_shared_experts": 0,
            "rope_parameters": LINEAR,
            "layer_rope_theta": [10000.0, 10000.0, 10000.0, 0.0],
            "moe_hidden_size": 128,
            "final_logit_softcapping": 30.0,
        },
    ),
    "nemotron-nas": Row(
        "a block's parts may be missing or replaced by one linear",
        {
            "block_configs": [
                {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 3.0}},
                {"attention": {"no_op": True}, "ffn": {"ffn_mult": 3.0}},
                {"attention": {"n_heads_in_group": 4}, "ffn": {"no_op": True}},
                {"attention": {"replace_with_linear": True}, "ffn": {"replace_with_linear": True}},
            ]
        },
    ),
    "nemotron": Row("its activation is named", {"hidden_act": "relu2"}),
    "nemotron_h": Row(
        "one letter per layer; experts in a narrower space",
        {"hybrid_override_pattern": ["M", "*", "-", "E"], "moe_latent_size": 64},
    ),
    "openelm": Row(
        "heads and widths by layer",
        {
            "num_transformer_layers": 4,
            "num_query_heads": [4, 4, 8, 8],
            "num_kv_heads": [2, 2, 4, 4],
            "ffn_multipliers": [1.0, 2.0, 2.0, 4.0],
            "ffn_dim_divisor": 64,
        },
    ),
    "phi3small": Row(
        "it masks token ids by number, and writes past the logits of a smaller vocabulary",
        {"ff_intermediate_size": 256, "vocab_size": 100352, "hidden_size": 64},
    ),
    "phixtral": Row("a vocabulary under a name of its own", {"num_vocab": 256}),
    "plamo": Row("heads share by number", {"n_shared_head": 2}),
    "prism_hadamard_qwen35": Row(
        "its own 2-bit layers, listed in the config; rotations are of 512 columns or more",
        {"num_experts": 0, "intermediate_size": 512},
        text="qwen3_5.TextModelArgs",
        around={
            "schema_version": 1,
            "tensor_namespace": "mlx-lm-text",
            "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
            "modules": [
                _hadamard("model.embed_tokens", 0, embedding=True),
                _hadamard("model.layers.0.mlp.gate_proj", 0),
                _hadamard("model.layers.0.mlp.down_proj", 512),
            ],
        },
        packed=True,
    ),
    "qwen": Row("the width of its heads has a name of its own", {"kv_channels": 32}),
    "qwen3_5": Row("dense, unlike qwen3_5_moe", {"num_experts": 0}),
    "qwen3_5_moe": Row("its text section belongs to another module", text="qwen3_5.TextModelArgs"),
    "recurrent_gemma": Row(
        "layers by kind",
        {
            "block_types": ["recurrent", "attention"],
            "conv1d_width": 4,
            "logits_soft_cap": 30.0,
        },
    ),
    "spark2_5": Row("rotary settings by kind of layer", {"rope_parameters": BY_KIND}),
}

#: What mlx-lm itself cannot do -> why. Whatever else fails is a finding.
LIMITS: Mapping[str, str] = {
    "bitnet": "its layers are a Metal kernel, without a form for a CPU",
    "muse_spark": "its attention is a Metal kernel, without a form for a CPU",
    "olmo": "its module exits unless the package ai2-olmo is installed",
}

#: Where mlx-lm cannot load what it saved with tied embeddings -> why. They are tested untied.
TIED_LIMITS: Mapping[str, str] = {
    "baichuan_m1": "its forward pass takes lm_head, which a tied model does not have",
    "llama4_text": "it multiplies by the embedding's weight as if that were never packed",
    "minicpm": "its sanitize makes an lm_head that a tied model does not have",
    "qwen3_vl_moe": "its sanitize asks for an lm_head that a tied model does not have",
    "seed_oss": "it multiplies by the embedding's weight as if that were never packed",
}
