"""Prompts with pictures: mlx-vlm's processor makes arrays of them, its generation answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxpipe.architecture import mlxvlm
from mlxpipe.errors import ExecutionError, UsageError
from mlxpipe.spec import GenerateTask
from mlxpipe.tasks.base import Context
from mlxpipe.tasks.completion import Piece
from mlxpipe.tasks.picture_files import picture_paths
from mlxpipe.tasks.sampling import make_sampling

#: Formats of mlx-vlm's table whose prompts hold nothing that stands for a picture.
WITHOUT_PLACEHOLDER = frozenset({"PROMPT_ONLY"})


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt and its pictures as arrays.

    Attributes:
        tokens: Ids, [1, T]; the pictures' placeholders are among them.
        arrays: Everything else that the model is given: pixel values, masks, grids.
    """

    tokens: mx.array
    arrays: dict[str, Any]


def prepare(context: Context, text: str, number: int) -> Prompt:
    """The arrays of a text, its placeholders included, and the pictures of task `number`.

    Raises:
        UsageError: `no-placeholder`, where nothing in the text stands for a picture.
        ExecutionError: `unusable-pictures`, with the processor's words.
    """
    utilities = mlxvlm.submodule("utils")
    # The processor first: what is wrong with it should be known before the weights are read.
    processor = context.processor
    settings = context.whole_model.config
    special = utilities.should_add_special_tokens(settings.model_type, processor)
    try:
        inputs = utilities.prepare_inputs(
            processor,
            images=[str(path) for path in picture_paths(context.loaded, number)],
            prompts=text,
            image_token_index=_placeholder(settings),
            add_special_tokens=special,
        )
    except Exception as error:  # each architecture has a processor of its own
        raise ExecutionError(
            "unusable-pictures",
            "the checkpoint's processor cannot take this prompt with its pictures",
            origin=context.origin(number, "images"),
            found=str(error),
            help="it may take fewer pictures, or want its own placeholders in the prompt",
        ) from error
    tokens = inputs.pop("input_ids")
    _require_placeholder(context, tokens, number)
    return Prompt(tokens, {"mask": inputs.pop("attention_mask", None), **inputs})


def chat_text(context: Context, task: GenerateTask, prompt: str, number: int) -> str:
    """A prompt in the chat template, with the pictures' placeholders; as it is with `chat: false`.

    Raises:
        UsageError: `no-chat-template`.
    """
    if task.chat is False:
        return prompt
    needing = "chat" if task.chat is True else "system" if task.system is not None else ""
    if needing and not _has_template(context.processor):
        raise UsageError(
            "no-chat-template",
            "neither the processor nor its tokenizer has a chat template",
            origin=context.origin(number, needing),
            help=f"leave `{needing}` out",
        )
    messages = [{"role": "user", "content": prompt}]
    if task.system is not None:
        messages.insert(0, {"role": "system", "content": task.system})
    text: str = mlxvlm.submodule("prompt_utils").apply_chat_template(
        context.processor,
        context.checkpoint.config.data,
        messages,
        num_images=len(task.images or ()),
    )
    return text


def _has_template(processor: Any) -> bool:
    holders = (processor, getattr(processor, "tokenizer", None))
    return any(getattr(holder, "chat_template", None) for holder in holders)


def _placeholder(settings: Any) -> int | None:
    """The token that stands for (a part of) a picture, None where the architecture has none."""
    names = ("image_token_index", "image_token_id")
    return next((found for name in names if (found := getattr(settings, name, None))), None)


def _require_placeholder(context: Context, tokens: mx.array, number: int) -> None:
    """Refuse a prompt that would be answered without the pictures' being looked at."""
    settings = context.whole_model.config
    token = _placeholder(settings)
    format_of = mlxvlm.submodule("prompt_utils").MODEL_CONFIG.get(settings.model_type)
    if token is None or (format_of is not None and format_of.name in WITHOUT_PLACEHOLDER):
        return
    if not mx.any(tokens == token).item():
        raise UsageError(
            "no-placeholder",
            "nothing in the prompt stands for the pictures",
            origin=context.origin(number, "images"),
            expected=f"token {token}, which the chat template or the prompt itself puts there",
            help="write the checkpoint's placeholder into the prompt, or let the chat template",
        )


def logits_of(context: Context, prompt: Prompt) -> mx.array:
    """What the whole model predicts after each token of a prompt, [1, T, V]."""
    logits: mx.array = context.whole_model(prompt.tokens, **prompt.arrays).logits
    return logits


def stream(context: Context, task: GenerateTask, prompt: Prompt) -> Iterator[Piece]:
    """What mlx-vlm generates after a prompt; sampling is mlx-lm's, as without pictures."""
    sampler, processors = make_sampling(task)
    responses = mlxvlm.submodule("generate").stream_generate(
        context.whole_model,
        context.processor,
        "",
        input_ids=prompt.tokens,
        **prompt.arrays,
        max_tokens=task.max_tokens,
        sampler=sampler,
        logits_processors=processors,
    )
    for response in responses:
        # The last one repeats the token before it, or brings the end token.
        last = response.finish_reason is not None
        token = None if last else int(response.token)
        yield Piece(response.text, token, response.finish_reason == "stop")
