"""What a generate task says of sampling, as mlx-lm's sampler and logits processors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlxpipe.architecture.mlxlm import submodule
from mlxpipe.spec import GenerateTask


def make_sampling(task: GenerateTask) -> tuple[Callable[..., Any], list[Callable[..., Any]]]:
    """The sampler, and what is done to the logits before it."""
    sampling = submodule("sample_utils")
    sampler = sampling.make_sampler(
        temp=task.temperature, top_p=task.top_p, top_k=task.top_k, min_p=task.min_p
    )
    processors = sampling.make_logits_processors(
        repetition_penalty=task.repetition_penalty,
        repetition_context_size=task.repetition_context,
    )
    return sampler, processors
