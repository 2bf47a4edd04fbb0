"""What tasks have in common."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from mlxpipe.spec.problems import Problem, refusal
from mlxpipe.spec.values import (
    Count,
    Name,
    PathText,
    Section,
)


class TaskBase(Section):
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


class TextTask(TaskBase):
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
