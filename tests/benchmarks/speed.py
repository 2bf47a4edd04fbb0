"""Prefill and decode of a checkpoint with mlxpipe and with mlx-lm, in one run.

    python tests/benchmarks/speed.py CHECKPOINT [--prompt-tokens 163] [--decode 24]

Each variant runs in a process of its own, because a BLAS is chosen before MLX is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

VARIANTS = {
    "mlx-lm as loaded": ({"MLXPIPE_BLAS": "bundled"}, "mlx-lm", None),
    "mlx-lm, float32": ({"MLXPIPE_BLAS": "bundled"}, "mlx-lm", "float32"),
    "mlxpipe, bundled BLAS": ({"MLXPIPE_BLAS": "bundled"}, "mlxpipe", "auto"),
    "mlxpipe, packed, fast BLAS": ({}, "mlxpipe-packed", "auto"),
    "mlxpipe, fast BLAS": ({}, "mlxpipe", "auto"),
}


def load_model(loader: str, path: str, dtype: str | None) -> Any:
    """The model by one of the loaders."""
    if loader == "mlx-lm":
        import mlx.core as mx
        from mlx_lm.utils import load_model

        model, _ = load_model(Path(path))
        if dtype:
            model.set_dtype(getattr(mx, dtype))
        return model
    import mlxpipe
    from mlxpipe.spec.load import override, spec_for_source

    spec = spec_for_source(path)
    if loader == "mlxpipe-packed":
        spec = override(spec, ("model",), {"kernels": "packed"})
    return mlxpipe.load(spec, tokenizer=False, dtype=dtype)[0]


def measure(
    loader: str, path: str, dtype: str | None, prompt: int, decode: int
) -> dict[str, float]:
    """Tokens per second of one prefill and of greedy decoding after it; best of two prefills."""
    model = load_model(loader, path, dtype)
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    tokens = mx.array([[(7 * each) % 1000 + 5 for each in range(prompt)]])
    best = float("inf")
    for _ in range(1 if loader == "mlx-lm" and dtype is None else 2):
        cache = make_prompt_cache(model)
        started = time.perf_counter()
        logits = model(tokens, cache=cache)
        mx.eval(logits)
        best = min(best, time.perf_counter() - started)
    token = mx.argmax(logits[:, -1], axis=-1)
    started = time.perf_counter()
    for _ in range(decode):
        token = mx.argmax(model(token[None], cache=cache)[:, -1], axis=-1)
        mx.eval(token)
    return {"prefill": prompt / best, "decode": decode / (time.perf_counter() - started)}


def main() -> None:
    """Measure every variant and print ratios to the first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--prompt-tokens", type=int, default=163)
    parser.add_argument("--decode", type=int, default=24)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = (options.prompt_tokens, options.decode)
    if options.one:
        _, loader, dtype = VARIANTS[options.one]
        print(json.dumps(measure(loader, options.checkpoint, dtype, *sizes)))
        return
    base: dict[str, float] = {}
    print(f"{'':28}{'prefill tok/s':>16}{'decode tok/s':>16}")
    for name, (environment, *_) in VARIANTS.items():
        command = [sys.executable, *sys.argv, "--one", name]
        output = subprocess.run(
            command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
        ).stdout
        found = json.loads(output.splitlines()[-1])
        base = base or found
        cells = (f"{found[key]:.1f} ({found[key] / base[key]:.1f}x)" for key in found)
        print(f"{name:28}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
