"""Peak memory of loading a foreign checkpoint against the bytes of its weights.

    python tests/benchmarks/memory.py [--megabytes 1000]

Makes a llama in each foreign format from random bytes, loads it packed in a process of its own and
reads that process's peak. What the interpreter, MLX and mlxpipe take without a model is taken off.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, INNER, VOCABULARY = 2048, 8192, 512

LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}

RANDOM = np.random.default_rng(0)


def words(*shape: int) -> np.ndarray:
    """Random 32-bit words."""
    return RANDOM.integers(-(2**31), 2**31 - 1, size=shape, dtype=np.int32)


def halves(*shape: int) -> np.ndarray:
    """Small float16 scales."""
    return np.full(shape, 1e-3, dtype=np.float16)


def gptq(rows: int, columns: int) -> dict[str, np.ndarray]:
    """GPTQ, 4 bits, groups of 128."""
    return {
        "qweight": words(columns // 8, rows),
        "qzeros": words(columns // 128, rows // 8),
        "scales": halves(columns // 128, rows),
    }


def awq(rows: int, columns: int) -> dict[str, np.ndarray]:
    """AWQ GEMM, groups of 128."""
    return {
        "qweight": words(columns, rows // 8),
        "qzeros": words(columns // 128, rows // 8),
        "scales": halves(columns // 128, rows),
    }


def packed(rows: int, columns: int) -> dict[str, np.ndarray]:
    """compressed-tensors pack-quantized, 4 bits, groups of 128."""
    return {
        "weight_packed": words(rows, columns // 8),
        "weight_scale": halves(rows, columns // 128),
    }


FORMATS = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}),
    "awq": (
        awq,
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 128,
            "version": "gemm",
            "zero_point": True,
        },
    ),
    "compressed-tensors": (
        packed,
        {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {
                "group_0": {
                    "targets": ["Linear"],
                    "weights": {
                        "num_bits": 4,
                        "type": "int",
                        "strategy": "group",
                        "group_size": 128,
                        "symmetric": True,
                    },
                }
            },
        },
    ),
}

LOAD = """
import sys, resource
import mlxpipe
from mlxpipe.spec.load import override, spec_for_source
import mlxpipe.graph.build, mlxpipe.architecture.skeleton
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
spec = override(spec_for_source(sys.argv[1]), ("model",), {"kernels": "packed"})
mlxpipe.load(spec, tokenizer=False, dtype="checkpoint")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024)
"""


def make(folder: Path, name: str, megabytes: int) -> int:
    """Write a checkpoint of about that size in shards; returns its tensors' bytes."""
    linear, quantization = FORMATS[name]
    per_layer = sum(rows * columns // 2 for rows, columns in LINEARS.values())
    layers = max(1, megabytes * 10**6 // per_layer)
    total = 0
    index: dict[str, str] = {}
    for layer in range(-1, layers):
        tensors = top(name) if layer < 0 else block(layer, linear)
        file = f"model-{layer + 2:05d}-of-{layers + 1:05d}.safetensors"
        save_file(tensors, folder / file)
        index |= dict.fromkeys(tensors, file)
        total += sum(array.nbytes for array in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "config.json").write_text(json.dumps(config(layers, quantization)))
    return total


def top(name: str) -> dict[str, np.ndarray]:
    """What is not in a layer."""
    table = halves(VOCABULARY, HIDDEN)
    return {
        "model.embed_tokens.weight": table,
        "lm_head.weight": table.copy(),
        "model.norm.weight": halves(HIDDEN),
    }


def block(layer: int, linear: object) -> dict[str, np.ndarray]:
    """One layer's tensors."""
    prefix = f"model.layers.{layer}."
    norms = ("input_layernorm", "post_attention_layernorm")
    tensors = {f"{prefix}{norm}.weight": halves(HIDDEN) for norm in norms}
    for path, (rows, columns) in LINEARS.items():
        for leaf, array in linear(rows, columns).items():  # type: ignore[operator]
            tensors[f"{prefix}{path}.{leaf}"] = array
    return tensors


def config(layers: int, quantization: dict[str, object]) -> dict[str, object]:
    """config.json of a llama."""
    return {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": 16,
        "rms_norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
        "quantization_config": quantization,
    }


def main() -> None:
    """Measure each format."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    options = parser.parse_args()
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            total = make(Path(folder), name, options.megabytes)
            command = [sys.executable, "-c", LOAD, folder]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            peak = int(float(output.split()[-1]))
        print(
            f"{name:20} {total / 1e6:7.0f} MB of weights, peak {peak / 1e6:7.0f} MB "
            f"({peak / total:.2f}x)",
            flush=True,
        )
    print(f"(this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB)")


if __name__ == "__main__":
    main()
