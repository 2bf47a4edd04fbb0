"""The tasks a spec can ask for: one model each, told apart by `type`."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from itertools import count
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, Strict, model_validator

from mlxpipe.spec.problems import Problem, refusal
from mlxpipe.spec.quantize import MATCH, Bits, GroupSize, Mode
from mlxpipe.spec.source import Reference
from mlxpipe.spec.values import (
    Count,
    CountOrZero,
    ModulePattern,
    Name,
    OneOrMorePaths,
    OneOrMoreTexts,
    OutputPath,
    PathText,
    Section,
    Seed,
    Text,
    Texts,
    Words,
    only,
)


class _Task(Section):
    """What every task has.

    Attributes:
        metrics: The names of its metrics, None where only the run will tell.
    """

    metrics: ClassVar[tuple[str, ...] | None] = ()

    # "" only until the spec that holds the task has named it.
    id: Name = Field(
        default_factory=str,
        description="What to call the task; default: its type, with -2, -3, ... for repeats.",
    )


class GenerateTask(_Task):
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


class LogitsTask(_Task):
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


class TextTask(_Task):
    """What every task has that reads a text in windows."""

    type: str  # each task narrows it; here it only keeps its place before the others
    data: PathText = Field(description="A text file, or .jsonl objects with `text`.")
    context: Annotated[int, Field(ge=2, le=2**31 - 1)] = Field(
        2048, description="Length of a window, in tokens."
    )
    stride: Count | None = Field(
        None, description="Tokens from one window to the next; default: context."
    )
    windows: Count | None = Field(None, description="Windows to read, at most; default: all.")
    bos: bool | None = Field(
        None, description="Begin each window with the BOS token; default: as the tokenizer does."
    )

    @model_validator(mode="after")
    def _check_stride(self) -> Self:
        if self.stride is not None and self.stride > self.context:
            expected = f"at most {self.context}, the context"
            message = "a stride beyond the context would skip tokens"
            found = str(self.stride)
            raise refusal(
                Problem("out-of-range", message, ("stride",), found=found, expected=expected)
            )
        return self


class PerplexityTask(TextTask):
    """Measures the perplexity of a text."""

    metrics: ClassVar = ("perplexity", "tokens", "bits_per_byte", "windows")

    type: Literal["perplexity"]


class CompareTask(TextTask):
    """Measures how far the model's predictions are from another's, and which modules are worst."""

    metrics: ClassVar = (
        "kl_divergence",
        "kl_divergence_p99",
        "kl_divergence_max",
        "top1_agreement",
        "perplexity",
        "reference_perplexity",
        "perplexity_ratio",
        "tokens",
        "worst_module_error",
        "last_layer_error",
    )

    type: Literal["compare"]
    reference: Reference = Field(description="The model to compare with.")
    layer_tokens: CountOrZero = Field(
        128,
        description=(
            "On how many tokens of the first window the error of each layer and module is "
            "measured; 0: on none."
        ),
    )


class Candidate(Section):
    """A scheme to try."""

    mode: Mode = Field("affine", description="The quantisation mode.")
    bits: Bits | None = Field(None, description="Bits per weight; default: the mode's.")
    group_size: GroupSize | None = Field(
        None, description="Weights per scale; default: the mode's."
    )


class SensitivityTask(TextTask):
    """Measures what quantising each module costs, and can write a recipe for a target."""

    metrics: ClassVar = (
        "measured",
        "worst_kl",
        "worst_output_error",
        "tokens",
        "recipe_bits_per_weight",
        "recipe_kl_sum",
    )

    type: Literal["sensitivity"]
    context: Annotated[int, Field(ge=2, le=2**31 - 1)] = Field(
        256, description="Length of a window, in tokens."
    )
    windows: Count | None = Field(1, description="Windows to read, at most; null: all.")
    candidates: Annotated[
        tuple[Candidate, ...], Strict(False), Field(min_length=1), Words("a list of schemes")
    ] = Field((Candidate(),), description="Schemes to try, one after the other.")
    match: ModulePattern = Field("*", description=MATCH)
    group: Literal["module", "layer", "kind"] = Field(
        "module",
        description=(
            "What is quantised together: one module, all modules of a layer, or those that have "
            "the same place in every layer."
        ),
    )
    target_bits_per_weight: float | None = Field(
        None, gt=0, description="Write a recipe that reaches this, for the least divergence."
    )


#: What a benchmark measures more than once.
REPEATED = (
    "load_seconds",
    "first_token_seconds",
    "prefill_tps",
    "decode_tps",
    "prefill_ratio",
    "decode_ratio",
)


class BenchmarkTask(_Task):
    """Measures speed and memory."""

    belongs_to: ClassVar = {"paired_dtype": "paired"}
    metrics: ClassVar = (
        "peak_memory_bytes",
        *(name + end for name in REPEATED for end in ("", "_min", "_max", "_iqr")),
    )

    type: Literal["benchmark"]
    prompt_tokens: Count = Field(512, description="Length of the prompt, in tokens.")
    generation_tokens: Annotated[int, Field(ge=2, le=2**31 - 1)] = Field(
        128, description="How many tokens are generated after it."
    )
    prompt_file: PathText | None = Field(
        None, description="A text whose first tokens are the prompt; default: random tokens."
    )
    warmup: Count = Field(1, description="Runs before those that are measured.")
    repeats: Count = Field(5, description="Runs that are measured.")
    loads: Count = Field(1, description="How often the model is loaded and the time taken.")
    paired: Literal["mlx-lm"] | None = Field(
        None, description="Measure mlx-lm's own model in turns with ours."
    )
    paired_dtype: Literal["checkpoint", "float32", "bfloat16", "float16"] | None = Field(
        None, description="mlx-lm's activations; default: checkpoint, as mlx-lm loads it."
    )
    seed: Seed | None = Field(None, description="Of the random prompt; default: run.seed.")


class EvaluateTask(_Task):
    """Runs tasks of lm-evaluation-harness; needs `pip install 'mlxpipe[evaluate]'`."""

    metrics: ClassVar = None  # the harness's tasks bring their own

    type: Literal["evaluate"]
    tasks: Annotated[
        tuple[Text, ...], Strict(False), Field(min_length=1), Words("a list of task names")
    ] = Field(description="Names of the harness's tasks, groups or tags.")
    include: PathText | None = Field(
        None, description="A directory with YAML files of further tasks, relative to the spec."
    )
    num_fewshot: CountOrZero | None = Field(
        None, description="Examples before each question; default: the task's own number."
    )
    limit: Count | None = Field(None, description="Questions of each task, at most; default: all.")
    chat: bool = Field(False, description="Apply the tokenizer's chat template.")
    max_tokens: Count = Field(
        256, description="Tokens to generate per question, where the task says nothing."
    )
    context: Annotated[int, Field(ge=2, le=2**31 - 1)] | None = Field(
        None, description="Longest sequence, in tokens; default: the model's own limit."
    )
    download: bool = Field(
        False, description="Let the harness fetch data sets that are not on this machine."
    )
    seed: Seed | None = Field(None, description="Default: run.seed.")


class ExportTask(_Task):
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


Task = (
    GenerateTask
    | LogitsTask
    | PerplexityTask
    | CompareTask
    | SensitivityTask
    | BenchmarkTask
    | EvaluateTask
    | ExportTask
)
PICTURE_TASKS = (GenerateTask, LogitsTask)
Tasks = Annotated[
    tuple[Annotated[Task, Field(discriminator="type")], ...],
    Strict(False),
    Words("a list of tasks"),
]
TASK_TYPES = (
    "generate",
    "logits",
    "perplexity",
    "compare",
    "sensitivity",
    "benchmark",
    "evaluate",
    "export",
)


def name_tasks(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
    """Gives every task an id of its own.

    Ids name files, and some file systems ignore case: so does the comparison.
    """
    taken: dict[str, int] = {}
    for index, task in enumerate(tasks):
        if task.id and taken.setdefault(task.id.casefold(), index) != index:
            message = f"two tasks have the id {task.id!r}"
            raise refusal(Problem("duplicate-id", message, (index, "id")))
    free = {kind: _default_ids(kind, taken) for kind in TASK_TYPES}
    return tuple(
        task if task.id else task.model_copy(update={"id": next(free[task.type])}) for task in tasks
    )


def _default_ids(kind: str, taken: Container[str]) -> Iterator[str]:
    names = (kind if number == 1 else f"{kind}-{number}" for number in count(1))
    return (name for name in names if name not in taken)


def default_ids(tasks: Sequence[tuple[object, object]]) -> list[str]:
    """The ids that tasks will have, from the (id, type) that each one says, valid or not."""
    taken = {given.casefold(): 0 for given, _ in tasks if isinstance(given, str)}
    free = {kind: _default_ids(kind, taken) for kind in TASK_TYPES}
    return [
        given
        if isinstance(given, str)
        else next(free[kind])
        if isinstance(kind, str) and kind in free
        else ""
        for given, kind in tasks
    ]
