"""Perplexity of the quickstart model with mlx-lm, float32 activations.

    python score.py --text emma.txt MODEL [MODEL …]

Windows of `--context` tokens, no overlap, no start token; a window's first token is not scored.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from corpus import Score, read_prepared, token_bytes
from mlx_lm.utils import load_model
from tokenizers import Tokenizer


def load_in_float32(folder: Path) -> nn.Module:
    """The model with every floating parameter, scales and offsets too, in float32."""
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    return model


def score(folder: Path, text: str, context: int, limit: int | None = None) -> Score:
    """Scores the first `limit` windows (default: all) of a text."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    count = min(len(ids) // context, limit or len(ids))
    windows = mx.array(ids[: count * context]).reshape(count, context)
    sizes = mx.array(token_bytes(tokenizer))
    model = load_in_float32(folder)
    nats = 0.0
    for start in range(0, count, 16):
        rows = windows[start : start + 16]
        nats += nn.losses.cross_entropy(model(rows[:, :-1]), rows[:, 1:], reduction="sum").item()
    return Score(nats, count * (context - 1), sizes[windows[:, 1:]].sum().item())


def main() -> None:
    """Prints one line per model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--text", type=Path, required=True, help="a text file")
    parser.add_argument("--context", type=int, default=256, help="tokens in a window")
    parser.add_argument("--windows", type=int, help="how many windows (default: all)")
    arguments = parser.parse_args()
    text = read_prepared(arguments.text)
    for folder in arguments.models:
        result = score(folder, text, arguments.context, arguments.windows)
        print(f"{folder}: {result}", flush=True)


if __name__ == "__main__":
    main()
