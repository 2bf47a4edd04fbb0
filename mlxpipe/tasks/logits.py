"""The logits of one sequence, as a safetensors file."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx

from mlxpipe.errors import ExecutionError
from mlxpipe.spec import LogitsTask
from mlxpipe.tasks.base import Context, Outcome


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Write `tokens` int32 [1, T] and `logits` float32 [1, T, V]."""
    task = context.loaded.spec.tasks[number]
    assert isinstance(task, LogitsTask)
    ids = list(task.tokens) if task.tokens is not None else context.tokenizer.encode(task.prompt)
    check_ids(context, ids, number)
    tokens = mx.array([ids], dtype=mx.int32)
    logits = context.model(tokens).astype(mx.float32)
    mx.eval(logits)
    path = folder / "logits.safetensors"
    mx.save_safetensors(str(path), {"tokens": tokens, "logits": logits})
    return Outcome({"tokens": len(ids), "vocabulary": logits.shape[-1]}, {"logits": path})


def check_ids(context: Context, ids: list[int], number: int) -> None:
    """Refuse token ids beyond the embedding: MLX would read past its end.

    Raises:
        ExecutionError: `token-out-of-range`.
    """
    size = vocabulary(context.model)
    beyond = next((each for each in ids if size is not None and each >= size), None)
    if beyond is not None:
        raise ExecutionError(
            "token-out-of-range",
            f"token {beyond} is not in the model's vocabulary",
            origin=context.origin(number, "tokens"),
            expected=f"ids from 0 to {(size or 0) - 1}",
        )


def vocabulary(model: object) -> int | None:
    """How many rows the model's token embedding has, None where it cannot be told."""
    for path, module in model.named_modules():  # type: ignore[attr-defined]
        if path.endswith(("embed_tokens", "wte", "tok_embeddings", "word_embeddings")):
            return int(module["weight"].shape[0])
    return None
