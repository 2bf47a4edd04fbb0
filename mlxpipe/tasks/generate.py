"""Completions of prompts, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxpipe.architecture.mlxlm import submodule
from mlxpipe.errors import UsageError
from mlxpipe.files import write_text
from mlxpipe.spec import GenerateTask
from mlxpipe.tasks.base import Context, Outcome, Reporter
from mlxpipe.tasks.completion import Completion, Piece, collect
from mlxpipe.tasks.progress import progress
from mlxpipe.tasks.sampling import make_sampling
from mlxpipe.tasks.texts import read_prompts

#: How many tokens of the prompt decide how the first one after it is spelled.
CONTEXT_TOKENS = 4


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Write one JSON line per prompt: prompt, text, tokens, finish_reason."""
    task = context.loaded.spec.tasks[number]
    assert isinstance(task, GenerateTask)
    with progress(folder) as steps:
        for done in steps.rows:
            _show(context.reporter, done["completion"])
        for prompt in _prompts(context, task, number)[len(steps.rows) :]:
            # The model is loaded before anything is seeded: building one draws random numbers.
            size, pieces = _begin(context, task, prompt, number)
            # Each prompt starts from the seed, so its completion does not hang on the others.
            mx.random.seed(_seed(context, task))
            context.reporter.prompt(prompt)
            completion = collect(prompt, pieces, task.stop, context.reporter)
            steps.add({"read": size, "completion": asdict(completion)})
    path = folder / "completions.jsonl"
    completions = [step["completion"] for step in steps.rows]
    lines = (json.dumps(each, ensure_ascii=False) + "\n" for each in completions)
    write_text(path, "".join(lines))
    metrics = {
        "prompt_tokens": sum(step["read"] for step in steps.rows),
        "generated_tokens": sum(len(each["tokens"]) for each in completions),
    }
    return Outcome(metrics, {"completions": path})


def replay(reporter: Reporter, outputs: Mapping[str, Path]) -> None:
    """Show completions that an earlier run wrote."""
    for line in outputs["completions"].read_text(encoding="utf-8").split("\n"):
        if line:
            _show(reporter, json.loads(line))


def _show(reporter: Reporter, completion: Mapping[str, Any]) -> None:
    reporter.prompt(completion["prompt"])
    reporter.text(completion["text"] + "\n")


def _begin(
    context: Context, task: GenerateTask, prompt: str, number: int
) -> tuple[int, Iterator[Piece]]:
    """How many tokens a prompt has, and what comes after it, generated as it is asked for."""
    if task.images:
        from mlxpipe.tasks import pictures

        text = pictures.chat_text(context, task, prompt, number)
        prepared = pictures.prepare(context, text, number)
        return prepared.tokens.size, pictures.stream(context, task, prepared)
    model = context.model
    ids = _encode(context, task, prompt, number)
    return len(ids), _stream(context, model, task, ids)


def _seed(context: Context, task: GenerateTask) -> int:
    return context.loaded.spec.run.seed if task.seed is None else task.seed


def _prompts(context: Context, task: GenerateTask, number: int) -> Sequence[str]:
    if task.prompt_file is not None:
        path = context.loaded.resolve(task.prompt_file)
        return read_prompts(path, context.origin(number, "prompt_file"))
    assert task.prompt is not None
    return (task.prompt,) if isinstance(task.prompt, str) else task.prompt


def _encode(context: Context, task: GenerateTask, prompt: str, number: int) -> list[int]:
    tokenizer = context.tokenizer
    has_template = bool(tokenizer.has_chat_template)
    if task.chat is True and not has_template:
        raise UsageError(
            "no-chat-template",
            "the tokenizer has no chat template",
            origin=context.origin(number, "chat"),
            help="leave `chat` out, or set it to false",
        )
    if task.chat is False or not has_template:
        if task.system is not None:
            raise UsageError(
                "no-chat-template",
                "a system message needs a chat template, and the tokenizer has none",
                origin=context.origin(number, "system"),
            )
        return _raw(tokenizer, prompt)
    messages = [{"role": "user", "content": prompt}]
    if task.system is not None:
        messages.insert(0, {"role": "system", "content": task.system})
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True))


def _raw(tokenizer: Any, prompt: str) -> list[int]:
    # As mlx-lm does: a prompt that brings the BOS token gets no second one.
    special = tokenizer.bos_token is None or not prompt.startswith(tokenizer.bos_token)
    return list(tokenizer.encode(prompt, add_special_tokens=special))


def complete(
    context: Context, model: Any, task: GenerateTask, prompt: str, ids: list[int]
) -> Completion:
    """Generate after `ids` until an end token, a stop text or `max_tokens`."""
    return collect(prompt, _stream(context, model, task, ids), task.stop, context.reporter)


def _stream(context: Context, model: Any, task: GenerateTask, ids: list[int]) -> Iterator[Piece]:
    sampler, processors = make_sampling(task)
    responses = submodule("generate").stream_generate(
        model,
        context.tokenizer,
        ids,
        max_tokens=task.max_tokens,
        sampler=sampler,
        logits_processors=processors,
    )
    for number, response in enumerate(responses):
        if response.finish_reason == "stop":
            yield Piece(response.text, None, ended=True)
            continue
        first = _leading_space(context.tokenizer, ids, response) if number == 0 else ""
        yield Piece(first + response.text, response.token, ended=False)


def _leading_space(tokenizer: Any, ids: list[int], response: Any) -> str:
    """The space that begins a completion of a raw prompt; mlx-lm's streaming drops it."""
    tail = ids[-CONTEXT_TOKENS:]
    follows = tokenizer.decode([*tail, response.token])[len(tokenizer.decode(tail)) :]
    return " " if follows.startswith(" ") and not response.text.startswith(" ") else ""
