"""Tasks that measure a model."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Strict

from mlxpipe.spec.quantize import MATCH, Bits, GroupSize, Mode
from mlxpipe.spec.source import Reference
from mlxpipe.spec.task_base import TaskBase, TextTask
from mlxpipe.spec.values import (
    Count,
    CountOrZero,
    ModulePattern,
    PathText,
    Section,
    Seed,
    Text,
    Words,
)


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


class BenchmarkTask(TaskBase):
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


class EvaluateTask(TaskBase):
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
