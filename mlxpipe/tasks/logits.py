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
    predict = _with_pictures if task.images else _with_text
    tokens, logits = predict(context, task, number)
    arrays = {"tokens": tokens.astype(mx.int32), "logits": logits.astype(mx.float32)}
    mx.eval(arrays)
    path = folder / "logits.safetensors"
    mx.save_safetensors(str(path), arrays)
    return Outcome({"tokens": tokens.size, "vocabulary": logits.shape[-1]}, {"logits": path})


def _with_text(context: Context, task: LogitsTask, number: int) -> tuple[mx.array, mx.array]:
    ids = list(task.tokens) if task.tokens is not None else context.tokenizer.encode(task.prompt)
    check_ids(context, ids, number)
    tokens = mx.array([ids], dtype=mx.int32)
    return tokens, context.model(tokens)


def _with_pictures(context: Context, task: LogitsTask, number: int) -> tuple[mx.array, mx.array]:
    from mlxpipe.tasks.pictures import logits_of, prepare

    assert task.prompt is not None
    prepared = prepare(context, task.prompt, number)
    return prepared.tokens, logits_of(context, prepared)


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
