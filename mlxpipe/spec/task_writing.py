"""Tasks that write what a model gives, or the model itself."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict, model_validator

from mlxpipe.spec.problems import Problem, refusal
from mlxpipe.spec.task_base import TaskBase
from mlxpipe.spec.values import (
    Count,
    CountOrZero,
    OneOrMorePaths,
    OneOrMoreTexts,
    OutputPath,
    PathText,
    Seed,
    Text,
    Texts,
    Words,
    only,
)


class GenerateTask(TaskBase):
    """Completes prompts."""

    exactly_one: ClassVar = (("prompt",), ("prompt_file",))
    metrics: ClassVar = ("prompt_tokens", "generated_tokens")

    type: Literal["generate"]
    prompt: OneOrMoreTexts | None = Field(None, description="A prompt, or a list of prompts.")
    prompt_file: PathText | None = Field(
        None,
        description="A text file with one prompt per line, or .jsonl objects with `prompt`.",
    )
    images: OneOrMorePaths | None = Field(
        None,
        description="A picture file, or a list of them, that goes with each prompt; needs mlx-vlm.",
    )
    chat: Annotated[Literal["auto", True, False], only(str, bool)] = Field(
        "auto",
        description="Apply the tokenizer's chat template; auto: if it has one.",
    )
    system: Text | None = Field(None, description="A system message, for the chat template.")
    max_tokens: Count = Field(128, description="Tokens to generate per prompt, at most.")
    temperature: float = Field(0.0, ge=0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus sampling; 1 is off.")
    top_k: CountOrZero = Field(0, description="Sample from the k likeliest tokens; 0 is off.")
    min_p: float = Field(
        0.0, ge=0, le=1, description="Least probability, relative to the likeliest token's."
    )
    repetition_penalty: float | None = Field(None, gt=0, description="1 is off.")
    repetition_context: CountOrZero = Field(
        20, description="How many recent tokens the repetition penalty looks at."
    )
    seed: Seed | None = Field(None, description="Default: run.seed.")
    stop: Texts = Field((), description="Texts that end a completion.")

    @model_validator(mode="after")
    def _check_system(self) -> GenerateTask:
        if self.system is not None and self.chat is False:
            message = "'system' needs the chat template, and 'chat' is false"
            raise refusal(Problem("exclusive-keys", message, ("system",), key=True))
        return self


class LogitsTask(TaskBase):
    """Writes the logits of one sequence of tokens."""

    exactly_one: ClassVar = (("tokens",), ("prompt",))
    belongs_to: ClassVar = {"images": "prompt"}

    type: Literal["logits"]
    tokens: (
        Annotated[
            tuple[CountOrZero, ...],
            Strict(False),
            Field(min_length=1),
            Words("a list of token ids"),
        ]
        | None
    ) = Field(None, description="Token ids, used as they are.")
    prompt: Text | None = Field(None, description="A text to tokenise.")
    images: OneOrMorePaths | None = Field(
        None,
        description=(
            "A picture file, or a list of them, for which placeholders stand in the prompt; needs "
            "mlx-vlm."
        ),
    )


class ExportTask(TaskBase):
    """Writes the model to disk in another format, whole or not at all."""

    metrics: ClassVar = (
        "bytes",
        "tensors",
        "shards",
        "modules_identical",
        "modules_dequantised",
        "modules_rounded",
    )

    type: Literal["export"]
    path: OutputPath = Field(
        description="The directory to write, or the Ollama store to add to; relative to the spec."
    )
    format: Literal["mlx", "ollama"] = Field(
        "mlx", description="mlx: a directory that mlx-lm loads; ollama: an entry of a store."
    )
    name: (
        Annotated[
            str,
            Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$"),
            Words("an Ollama model as name or name:tag"),
        ]
        | None
    ) = Field(None, description="The entry's name, for ollama.")
    unsupported: Literal["dense", "keep", "error"] = Field(
        "dense",
        description=(
            "Modules that the format cannot hold packed (a factor on the output, permuted inputs): "
            "dense: float32 weights, each rounded once; keep (mlx): packed, and mlx-lm refuses "
            "them; error."
        ),
    )
    dtype: Literal["exact", "checkpoint"] = Field(
        "exact",
        description=(
            "What conversions compute: exact: float32 where 16 bits would round it; checkpoint: "
            "the checkpoint's own 16 bits."
        ),
    )
    max_shard_bytes: Annotated[int, Field(ge=1)] = Field(
        5 << 30, description="Bytes of tensors in a file of a directory, at most."
    )
    overwrite: bool = Field(False, description="Replace an earlier export; nothing else ever is.")

    @model_validator(mode="after")
    def _check_format(self) -> ExportTask:
        if self.format == "ollama" and self.name is None:
            message = "'name' is needed here: what to call the model in the store"
            raise refusal(Problem("missing-key", message, key=True))
        if self.format == "mlx" and self.name is not None:
            message = "'name' belongs to the format ollama; a directory is named by its path"
            raise refusal(Problem("exclusive-keys", message, ("name",), key=True))
        if self.format == "ollama" and self.unsupported == "keep":
            message = "a store cannot keep what its format has no place for"
            expected = "dense or error"
            raise refusal(Problem("exclusive-keys", message, ("unsupported",), expected=expected))
        return self
