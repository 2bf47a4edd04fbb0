"""Completions of prompts, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxpipe.architecture.mlxlm import submodule
from mlxpipe.errors import UsageError
from mlxpipe.files import write_text
from mlxpipe.spec import GenerateTask
from mlxpipe.tasks.base import Context, Outcome, Reporter
from mlxpipe.tasks.progress import progress
from mlxpipe.tasks.texts import read_prompts

#: How many tokens of the prompt decide how the first one after it is spelled.
CONTEXT_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Completion:
    """One line of the output.

    Attributes:
        prompt: The prompt as the spec has it, before any chat template.
        text: What was generated.
        tokens: Its ids, the end-of-sequence token excluded.
        finish_reason: `stop` or `length`.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...]
    finish_reason: str


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Write one JSON line per prompt: prompt, text, tokens, finish_reason."""
    task = context.loaded.spec.tasks[number]
    assert isinstance(task, GenerateTask)
    # Loaded before anything is seeded: building a model draws random numbers.
    model = context.model
    with progress(folder) as steps:
        for done in steps.rows:
            _show(context.reporter, done["completion"])
        for prompt in _prompts(context, task, number)[len(steps.rows) :]:
            ids = _encode(context, task, prompt, number)
            # Each prompt starts from the seed, so its completion does not hang on the others.
            mx.random.seed(_seed(context, task))
            context.reporter.prompt(prompt)
            completion = complete(context, model, task, prompt, ids)
            steps.add({"read": len(ids), "completion": asdict(completion)})
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
    text = ""
    tokens: list[int] = []
    reason = "length"
    for response in _stream(context, model, task, ids):
        ended = response.finish_reason == "stop"
        if not ended:
            tokens.append(response.token)
        piece = response.text
        if len(tokens) == 1 and not ended:
            piece = _leading_space(context.tokenizer, ids, tokens[0], piece) + piece
        before, (text, stopped) = text, _until_stop(text, piece, task.stop)
        context.reporter.text(text[len(before) :])
        if ended or stopped:
            reason = "stop"
            break
    context.reporter.text("\n")
    return Completion(prompt, text, tuple(tokens), reason)


def _leading_space(tokenizer: Any, ids: list[int], first: int, piece: str) -> str:
    """The space that begins a completion of a raw prompt; mlx-lm's streaming drops it."""
    tail = ids[-CONTEXT_TOKENS:]
    follows = tokenizer.decode([*tail, first])[len(tokenizer.decode(tail)) :]
    return " " if follows.startswith(" ") and not piece.startswith(" ") else ""


def _until_stop(before: str, piece: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text so far, cut before the earliest stop text, and whether there is one."""
    whole = before + piece
    # A stop text may have begun before this piece, but not ended there.
    found = [at for stop in stops if (at := whole.find(stop, max(0, len(before) - len(stop)))) >= 0]
    return (whole[: min(found)], True) if found else (whole, False)


def _stream(context: Context, model: Any, task: GenerateTask, ids: list[int]) -> Iterator[Any]:
    sampling = submodule("sample_utils")
    generation = submodule("generate")
    sampler: Callable[..., Any] = sampling.make_sampler(
        temp=task.temperature, top_p=task.top_p, top_k=task.top_k, min_p=task.min_p
    )
    processors = sampling.make_logits_processors(
        repetition_penalty=task.repetition_penalty,
        repetition_context_size=task.repetition_context,
    )
    stream: Iterator[Any] = generation.stream_generate(
        model,
        context.tokenizer,
        ids,
        max_tokens=task.max_tokens,
        sampler=sampler,
        logits_processors=processors,
    )
    return stream
