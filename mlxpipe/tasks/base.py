"""What a task is given and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.errors import Origin
from mlxpipe.plan.plan import Plan
from mlxpipe.spec import LoadedSpec

if TYPE_CHECKING:
    from mlxpipe.graph.numerics import Numerics
    from mlxpipe.tasks.reference import PlannedReference


class Reporter:
    """Told what happens while it happens; this one keeps silent."""

    def prompt(self, text: str) -> None:
        """The prompt whose completion comes next."""

    def text(self, piece: str) -> None:
        """A piece of generated text."""

    @contextmanager
    def bar(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """A progress bar; call what it yields with the amount done so far."""
        yield lambda done: None

    def message(self, text: str) -> None:
        """A line for people."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A small table for people: floats are rounded, None is a dash."""


@dataclass(frozen=True)
class Context:
    """What every task of a run shares.

    Attributes:
        loaded: The spec.
        checkpoint: Its checkpoint, open.
        plan: A sound plan of it.
        numerics: Device, dtype and kernels.
        make_model: Loads the model when a task first asks for it; not every task does.
        make_tokenizer: Loads the tokenizer when first asked for.
        reporter: Told of progress.
        references: Number of a task -> the model it compares with, planned.
    """

    loaded: LoadedSpec
    checkpoint: Checkpoint
    plan: Plan
    numerics: Numerics
    make_model: Callable[[], Any]
    make_tokenizer: Callable[[], Any]
    reporter: Reporter = field(default_factory=Reporter)
    references: Mapping[int, PlannedReference] = field(default_factory=dict)

    @cached_property
    def model(self) -> Any:
        """The model in evaluation mode, its weights in memory: token ids in, logits out."""
        if not self.plan.vision:
            return self.whole_model
        from mlxpipe.architecture.language import LanguageModel

        return LanguageModel(self.whole_model).eval()

    @cached_property
    def whole_model(self) -> Any:
        """The model as it was loaded, once: mlx-vlm's, pictures and all, where the plan says so."""
        return self.make_model()

    def release(self) -> None:
        """Let the model go; whoever asks for it next loads it again."""
        self.__dict__.pop("model", None)

    @cached_property
    def processor(self) -> Any:
        """mlx-vlm's processor of prompts and pictures, loaded once."""
        from mlxpipe.architecture.processor import load_processor

        checkpoint = self.checkpoint
        return load_processor(checkpoint.files, checkpoint.config.data, checkpoint.label)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded once."""
        return self.make_tokenizer()

    def origin(self, number: int, key: str) -> Origin:
        """Where the spec says `key` of task `number`."""
        return self.loaded.origin("tasks", number, key)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task found.

    Attributes:
        metrics: Name -> number, as contracted for the task's type.
        outputs: Name -> file in the task's directory.
    """

    metrics: Mapping[str, float | int] = field(default_factory=dict)
    outputs: Mapping[str, Path] = field(default_factory=dict)


class Runner(Protocol):
    """A task's one function."""

    def __call__(self, context: Context, number: int, folder: Path) -> Outcome:
        """Do task `number` of the spec.

        Args:
            context: The model and all that is shared.
            number: Index into the spec's tasks.
            folder: A directory for the task's outputs. It is empty, but for the steps that an
                interrupted run of the same task has done (`tasks.progress`).
        """


class Replay(Protocol):
    """Shows the outputs of a task as its runner would have."""

    def __call__(self, reporter: Reporter, outputs: Mapping[str, Path]) -> None:
        """Tell the reporter what is in the outputs."""
