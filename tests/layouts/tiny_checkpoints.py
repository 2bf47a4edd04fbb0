"""Tiny checkpoints in a producer's format, and the same model dense, for mlx-lm to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import decoders
import mlx.core as mx
import numpy as np
from builders import Raw, write_checkpoint
from decoders import Stored

#: (rng, rows, columns) -> a layer as its producer stores it.
Make = Callable[[np.random.Generator, int, int], Stored]

TOKENS = mx.array([[1, 5, 9, 63, 0, 7, 31]])
VOCABULARY = 64

BLOCK = "model.layers.0"
Q, DOWN, HEAD = f"{BLOCK}.self_attn.q_proj", f"{BLOCK}.mlp.down_proj", "lm_head"
EXPERTS = f"{BLOCK}.mlp.experts"


def raw(tensor: decoders.Tensor) -> Raw:
    return Raw(tensor.dtype, tensor.shape, tensor.data)


def dense(values: np.ndarray) -> Raw:
    return raw(decoders.as_tensor("F32", values))


def llama_config(hidden: int = 128, inner: int = 256, **changes: Any) -> dict[str, Any]:
    """A llama of one layer with 4 heads, 2 of them for keys and values."""
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        **changes,
    }


def attention(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    hidden = config["hidden_size"]
    pairs = (("q", hidden), ("k", hidden // 2), ("v", hidden // 2), ("o", hidden))
    return {f"{BLOCK}.self_attn.{name}_proj": (rows, hidden) for name, rows in pairs}


def llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Linear layers of the block -> [o, i]."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    return {
        **attention(config),
        f"{BLOCK}.mlp.gate_proj": (inner, hidden),
        f"{BLOCK}.mlp.up_proj": (inner, hidden),
        DOWN: (hidden, inner),
    }


def moe_config(**changes: Any) -> dict[str, Any]:
    return llama_config(
        model_type="qwen3_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        head_dim=32,
        norm_topk_prob=True,
        max_position_embeddings=512,
        **changes,
    )


def moe_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    experts = {
        f"{EXPERTS}.{number}.{name}_proj": shape
        for number in range(config["num_experts"])
        for name, shape in (
            ("gate", (inner, hidden)),
            ("up", (inner, hidden)),
            ("down", (hidden, inner)),
        )
    }
    return {**attention(config), **experts}


def rest(config: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Raw]:
    """What stays dense: embedding, head, norms, and a router where there are experts."""
    hidden, moe = config["hidden_size"], "num_experts" in config
    norms = ("model.norm", f"{BLOCK}.input_layernorm", f"{BLOCK}.post_attention_layernorm")
    tensors = {f"{path}.weight": dense(np.ones(hidden)) for path in norms}
    if moe:
        for name in "qk":
            path = f"{BLOCK}.self_attn.{name}_norm.weight"
            tensors[path] = dense(np.ones(config["head_dim"]))
        router = rng.normal(size=(config["num_experts"], hidden))
        tensors[f"{BLOCK}.mlp.gate.weight"] = dense(router)
    for path in ("model.embed_tokens", HEAD):
        tensors[f"{path}.weight"] = dense(rng.normal(scale=0.5, size=(VOCABULARY, hidden)))
    return tensors


def write_pair(
    folder: Path, config: dict[str, Any], make: Make, seed: int = 0
) -> tuple[Path, Path]:
    """(the checkpoint in the format that `make` draws, the same with dense float32 weights)."""
    rng = np.random.default_rng(seed)
    shapes = moe_shapes(config) if "num_experts" in config else llama_shapes(config)
    packed = rest(config, rng)
    plain = dict(packed)
    declared: dict[str, Any] = {}
    for path, (rows, columns) in shapes.items():
        stored = make(rng, rows, columns)
        packed |= {f"{path}.{leaf}": raw(tensor) for leaf, tensor in stored.leaves.items()}
        plain[f"{path}.weight"] = dense(stored.weight)
        declared = stored.config
    said = {**config, "quantization_config": declared} if declared else config
    return (
        write_checkpoint(folder / "packed", dict(sorted(packed.items())), said),
        write_checkpoint(folder / "dense", dict(sorted(plain.items())), config),
    )
