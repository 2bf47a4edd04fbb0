"""The spec as frozen values.

The order of the fields is the order in which `mlxpipe show` prints them, and their descriptions
are the documentation that an editor shows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from mlxpipe.errors import did_you_mean
from mlxpipe.spec.expect import Expectation, Expectations, check_against_tasks
from mlxpipe.spec.problems import Problem, either, refusal
from mlxpipe.spec.quantize import Recipe, SchemeRule
from mlxpipe.spec.source import Source
from mlxpipe.spec.tasks import PICTURE_TASKS, Task, Tasks, name_tasks
from mlxpipe.spec.values import (
    Globs,
    Identifier,
    Name,
    OutputPath,
    PathText,
    Regex,
    Section,
    Seed,
    Texts,
    Words,
    check_replacement,
    only,
)

# Claims of these sources need no declaration; the order is the default precedence.
BUILT_IN_SOURCES = ("spec", "config", "metadata", "sidecar", "shapes")

Reaction = Literal["error", "warn", "ignore"]


class RenameRule(Section):
    """A renaming by regular expression, of tensors and override keys alike."""

    match: Regex = Field(description="A regular expression, searched in the name.")
    replace: str = Field(description=r"The replacement; \1 is the first group.")

    @field_validator("replace")
    @classmethod
    def _check_replace(cls, replace: str, info: ValidationInfo) -> str:
        if "match" in info.data:
            check_replacement(info.data["match"], replace)
        return replace


def _auto_or_list(value: object) -> str:
    return "list" if isinstance(value, (list, tuple)) else "auto"


class Naming(Section):
    """How the checkpoint names its tensors."""

    conventions: Annotated[
        Annotated[Literal["auto"], Tag("auto")] | Annotated[Texts, Tag("list")],
        Discriminator(_auto_or_list),
        Words("auto, or a list of conventions"),
    ] = Field("auto", description="Producers' conventions, in order; auto: as the names show.")
    rules: Annotated[tuple[RenameRule, ...], Strict(False), Words("a list of rules")] = Field(
        (), description="Renamings after the conventions, in order."
    )
    drop: Globs = Field((), description="Globs of tensors that no module wants, and that is fine.")


class FileSource(Section):
    """A file of quantisation claims."""

    type: Literal["file"] = Field(description="The kind of source.")
    path: PathText = Field(description="A JSON or YAML file, relative to the spec.")


class Override(SchemeRule):
    """A claim of the source `spec`: a scheme for the matching modules, or that they are dense."""

    exactly_one: ClassVar = (("mode", "bits", "group_size"), ("dense",))

    dense: Annotated[Literal[True], only(bool)] | None = Field(
        None, description="The modules are not quantised."
    )


def _check_source_name(name: str) -> str:
    if name in BUILT_IN_SOURCES:
        message = f"{name!r} is the name of a built-in source"
        advice = "choose another name; the built-in sources need no declaration"
        raise refusal(Problem("reserved-name", message, help=advice))
    return name


SourceName = Annotated[Identifier, AfterValidator(_check_source_name)]


def _split_precedence(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(name.strip() for name in value.split(">"))


def split_offsets(text: str) -> list[tuple[int, int]]:
    """Offset and length of each name in a precedence written as one text."""
    parts, start = [], 0
    for part in text.split(">"):
        name = part.strip()
        indent = len(part) - len(part.lstrip()) if name else 0
        parts.append((start + indent, max(1, len(name))))
        start += len(part) + 1
    return parts


class Quantization(Section):
    """Who says how tensors are quantised, and whom to believe."""

    sources: dict[SourceName, FileSource] = Field(
        default_factory=dict, description="Further sources of claims, by name."
    )
    overrides: Annotated[tuple[Override, ...], Strict(False), Words("a list of overrides")] = Field(
        (), description="The claims of the source `spec`; a later rule wins."
    )
    precedence: Annotated[
        tuple[str, ...],
        Strict(False),
        Field(max_length=256),
        BeforeValidator(_split_precedence),
        Words("names of sources, as 'a > b > c' or as a list"),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
        ),
    ] = Field(
        default_factory=tuple,
        validate_default=True,
        description=(
            "Sources, the most trusted first, as 'a > b > c' or as a list. Those left out keep "
            "their places in the default order: spec, the declared ones, config, metadata, "
            "sidecar, shapes."
        ),
    )
    float8_blocks: Literal["dense", "mxfp8"] = Field(
        "dense",
        description=(
            "Blocks of FP8 whose scales are no powers of two, which no mode of MLX holds: dense "
            "weights, or requantised to mxfp8. Both are graded lossy."
        ),
    )
    on_conflict: Reaction = Field("warn", description="When feasible claims of two sources differ.")
    on_unmatched: Reaction = Field("error", description="When an override matches no module.")
    allow_unmatched: Globs = Field(
        (), description="Globs of override patterns that need not match."
    )

    @field_validator("precedence")
    @classmethod
    def _complete_precedence(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if "sources" not in info.data:
            return names
        default = ("spec", *info.data["sources"], *BUILT_IN_SOURCES[1:])
        if problems := _precedence_problems(names, default):
            raise refusal(*problems)
        return _reorder(default, names)


def _reorder(default: tuple[str, ...], named: tuple[str, ...]) -> tuple[str, ...]:
    """The default order with each named source moved up to just before the next named one.

    So `metadata > config` turns those two round, and `spec` stays before both.
    """
    order = list(default)
    for before, after in reversed(list(pairwise(named))):
        if order.index(before) > order.index(after):
            order.remove(before)
            order.insert(order.index(after), before)
    return tuple(order)


def _precedence_problems(names: tuple[str, ...], known: tuple[str, ...]) -> list[Problem]:
    """Unknown and repeated names, each with its offset in the text ' > '.join(names)."""
    problems = []
    if len(names) == 1 and names[0] in known:
        # The others keep their places, so one name alone would order nothing.
        advice = f"for example '{names[0]} > {next(name for name in known if name != names[0])}'"
        problems.append(Problem("lone-name", "one name orders nothing", (0,), help=advice))
    for index, name in enumerate(names):
        if name not in known:
            label = did_you_mean(name, known)
            message = f"unknown source {name!r}" if name else "a name is missing here"
            expected = either(list(known))
            problems.append(
                Problem("unknown-value", message, (index,), label=label, expected=expected)
            )
        elif names.index(name) < index:
            message = f"the source {name!r} stands here twice"
            problems.append(Problem("duplicate-value", message, (index,)))
    return problems


class Model(Section):
    """How the model computes."""

    dtype: Literal["auto", "checkpoint", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Activations; auto: the checkpoint's on a GPU, float32 on a CPU.",
    )
    device: Literal["auto", "cpu", "gpu"] = Field("auto", description="Where it computes.")
    kernels: Literal["auto", "packed", "dense"] = Field(
        "auto",
        description=(
            "packed: multiply with the packed weights; dense: dequantise them once, in memory; "
            "auto: dense on a CPU with a fast BLAS where float32 weights fit into half of the "
            "memory, else packed."
        ),
    )


class Run(Section):
    """What holds for all tasks of a run."""

    seed: Seed = Field(0, description="Seeds every task that names no seed of its own.")


Report = Literal["json", "junit", "html", "github"]


class Outputs(Section):
    """Where results go."""

    dir: OutputPath = Field("runs", description="A directory, relative to the spec.")
    reports: Annotated[tuple[Report, ...], Strict(False), Words("a list of reports")] = Field(
        (),
        description="Reports in the run's directory: json, junit (XML for CI), html (a page; needs "
        "the extra `report`); github prints annotations, as it does by itself in GitHub Actions.",
    )


class Spec(Section):
    """A model, how it is quantised, whom to believe, and what to do with it."""

    version: Annotated[Literal[1], only(int)] = Field(description="The format's version: 1.")
    name: Name | None = Field(
        None, description="Names the run's directory; default: the file's stem."
    )
    source: Source = Field(description="Where the checkpoint comes from.")
    naming: Naming = Field(default_factory=Naming, description="How tensors are named.")
    quantization: Quantization = Field(
        default_factory=Quantization, description="Who says how tensors are quantised."
    )
    quantize: Recipe = Field(
        (),
        description=(
            "A recipe applied while compiling, on dense or already quantised weights. A later rule "
            "wins; modules that no rule matches stay as the checkpoint has them."
        ),
    )
    model: Model = Field(default_factory=Model, description="How the model computes.")
    run: Run = Field(default_factory=Run, description="What holds for all tasks.")
    tasks: Tasks = Field((), description="What to do with the model, in order.")
    expect: Expectations = Field((), description="What must hold; a miss ends with exit code 1.")
    outputs: Outputs = Field(default_factory=Outputs, description="Where results go.")

    @property
    def vision(self) -> bool:
        """Whether a task has pictures, for which the whole vision-language model is loaded."""
        return any(isinstance(task, PICTURE_TASKS) and task.images for task in self.tasks)

    @field_validator("tasks")
    @classmethod
    def _name_tasks(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        return name_tasks(tasks)

    @field_validator("expect")
    @classmethod
    def _check_expectations(
        cls, expectations: tuple[Expectation, ...], info: ValidationInfo
    ) -> tuple[Expectation, ...]:
        if "tasks" in info.data:
            check_against_tasks(expectations, info.data["tasks"])
        return expectations
