"""The functions behind `import mlxpipe`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxpipe.checkpoint.source import open_source
from mlxpipe.plan.explain import Explanation
from mlxpipe.plan.explain import explain as explain_path
from mlxpipe.plan.plan import Plan
from mlxpipe.plan.planner import make_plan as plan_spec
from mlxpipe.plan.planner import plan_checkpoint
from mlxpipe.spec import LoadedSpec, load_spec, spec_for_source

if TYPE_CHECKING:
    from mlxpipe.execution.record import RunRecord
    from mlxpipe.tasks import Reporter

#: A spec's path, a checkpoint directory, or a spec already loaded.
Source = str | Path | LoadedSpec


def open_spec(source: Source) -> LoadedSpec:
    """A spec from its file; a bare checkpoint directory gets a minimal spec.

    Raises:
        UsageError: the file is missing or is no valid spec.
    """
    if isinstance(source, LoadedSpec):
        return source
    return spec_for_source(source) if Path(source).is_dir() else load_spec(source)


def make_plan(source: Source, *, architecture: bool = True) -> Plan:
    """Decide every tensor of a spec or checkpoint directory, from headers alone.

    Args:
        source: A spec's path, a checkpoint directory, or a loaded spec.
        architecture: Ask mlx-lm's model class for the widths that the arithmetic needs. False
            plans from names alone, without importing MLX.

    Returns:
        The plan; `plan.problems` keep it from running, `plan.require_sound()` raises them.

    Raises:
        UsageError: the spec is wrong.
        SourceError: the checkpoint cannot be read.
        PlanError: tensors that collide, or an architecture that mlx-lm does not have.
    """
    return plan_spec(open_spec(source), architecture=architecture)


def explain(source: Source | Plan, name: str) -> Explanation:
    """Why a module or tensor is what it is.

    Raises:
        PlanError: `unknown-name`, with the nearest names.
    """
    plan = source if isinstance(source, Plan) else make_plan(source)
    return explain_path(plan, name)


def load(
    source: Source,
    *,
    tokenizer: bool = True,
    dtype: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Any, Any]:
    """Load a model, ready for `mlx_lm.generate`; a drop-in for `mlx_lm.load`.

    Args:
        source: A spec's path, a checkpoint directory, or a loaded spec.
        tokenizer: False leaves the tokenizer out: the second value is None.
        dtype: Overrides the spec's `model.dtype`: auto, checkpoint, float32, bfloat16, float16.
        progress: Called with (bytes loaded, bytes in all).

    Returns:
        The model, in evaluation mode with its weights in memory, and mlx-lm's tokenizer.

    Raises:
        UsageError, SourceError, PlanError, ExecutionError: see `mlxpipe.errors`.
    """
    loaded = with_dtype(open_spec(source), dtype)
    checkpoint = open_source(loaded)
    plan = plan_checkpoint(loaded, checkpoint).require_sound()
    from mlxpipe.graph.build import build_model
    from mlxpipe.graph.numerics import choose, use

    numerics = choose(loaded, plan)
    use(numerics)
    model = build_model(plan, checkpoint, numerics, progress)
    if not tokenizer:
        return model, None
    from mlxpipe.architecture.tokenizer import load_tokenizer

    return model, load_tokenizer(checkpoint.files, checkpoint.config.data, checkpoint.label)


def with_dtype(loaded: LoadedSpec, dtype: str | None) -> LoadedSpec:
    """The spec with another `model.dtype`, validated."""
    from mlxpipe.spec.load import override

    return loaded if dtype is None else override(loaded, ("model", "dtype"), dtype)


def run(source: Source, reporter: Reporter | None = None) -> RunRecord:
    """Run every task of a spec and leave a run directory.

    Raises:
        UsageError, SourceError, PlanError: nothing was written.
        RunFailedError: a task failed; the record is on disk.
    """
    from mlxpipe.execution.executor import RunFailedError, execute
    from mlxpipe.report.files import check_reports, write_reports

    loaded = open_spec(source)
    check_reports(loaded)
    try:
        record = execute(loaded, reporter)
    except RunFailedError as failure:
        write_reports(loaded, failure.record)
        raise
    write_reports(loaded, record)
    return record
