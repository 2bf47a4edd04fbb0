"""The functions behind `import mlxpipe`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxpipe.checkpoint.source import open_source
from mlxpipe.errors import Diagnostic, UsageError
from mlxpipe.plan.explain import Explanation
from mlxpipe.plan.explain import explain as explain_path
from mlxpipe.plan.plan import Plan
from mlxpipe.plan.planner import make_plan as plan_spec
from mlxpipe.plan.planner import plan_checkpoint
from mlxpipe.spec import LoadedSpec, Settings, load_specs, require_one, spec_for_source

if TYPE_CHECKING:
    from mlxpipe.execution.matrix import MatrixRecord, RunOne
    from mlxpipe.execution.record import RunRecord
    from mlxpipe.exports.request import Exported
    from mlxpipe.locking import Digests, Lock
    from mlxpipe.locking.digests import Bar
    from mlxpipe.tasks import Reporter

#: A spec's path, a checkpoint directory, or a spec already loaded.
Source = str | Path | LoadedSpec


def open_spec(source: Source, *, set: Settings = None, only: Iterable[str] = ()) -> LoadedSpec:
    """A spec from its file; a bare checkpoint directory gets a minimal spec.

    Args:
        source: A spec's path, a checkpoint directory, or a loaded spec.
        set: Values by dotted path, such as `{"model.dtype": "float32"}`; they win over the file.
        only: What chooses one combination of a matrix: its label, or `axis=value`.

    Raises:
        UsageError: the file is missing, is no valid spec, or is a matrix of several combinations.
    """
    specs = open_specs(source, set=set, only=only)
    if len(specs) > 1:
        raise require_one([each.label for each in specs])
    return specs[0]


def open_specs(
    source: Source, *, set: Settings = None, only: Iterable[str] = ()
) -> tuple[LoadedSpec, ...]:
    """Every combination of a spec with a matrix, else the one spec; the arguments of `open_spec`.

    Raises:
        UsageError: the file is missing or is no valid spec.
    """
    if isinstance(source, LoadedSpec):
        if set or only:
            raise UsageError("already-loaded", "a loaded spec is not composed again")
        return (source,)
    if not Path(source).is_dir():
        return load_specs(source, set=set, only=only)
    loaded = spec_for_source(source, set=set)
    if only:
        raise UsageError("bad-choice", f"{source} is a directory, and has no matrix")
    return (loaded,)


def make_plan(source: Source, *, architecture: bool = True, set: Settings = None) -> Plan:
    """Decide every tensor of a spec or checkpoint directory, from headers alone.

    Args:
        source: A spec's path, a checkpoint directory, or a loaded spec.
        architecture: Ask mlx-lm's model class for the widths that the arithmetic needs. False
            plans from names alone, without importing MLX.
        set: As for `open_spec`.

    Returns:
        The plan; `plan.problems` keep it from running, `plan.require_sound()` raises them.

    Raises:
        UsageError: the spec is wrong.
        SourceError: the checkpoint cannot be read.
        PlanError: tensors that collide, or an architecture that mlx-lm does not have.
    """
    return plan_spec(open_spec(source, set=set), architecture=architecture)


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
    vision: bool = False,
    dtype: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    set: Settings = None,
) -> tuple[Any, Any]:
    """Load a model, ready for `mlx_lm.generate`; a drop-in for `mlx_lm.load`.

    Args:
        source: A spec's path, a checkpoint directory, or a loaded spec.
        tokenizer: False leaves the tokenizer out: the second value is None.
        vision: Load the whole vision-language model, ready for `mlx_vlm.generate`; the second
            value is then mlx-vlm's processor. By default the language model is loaded alone.
        dtype: Overrides the spec's `model.dtype`: auto, checkpoint, float32, bfloat16, float16.
        progress: Called with (bytes loaded, bytes in all).
        set: As for `open_spec`.

    Returns:
        The model, in evaluation mode with its weights in memory, and mlx-lm's tokenizer.

    Raises:
        UsageError, SourceError, PlanError, ExecutionError: see `mlxpipe.errors`.
    """
    loaded = with_dtype(open_spec(source, set=set), dtype)
    checkpoint = open_source(loaded)
    plan = plan_checkpoint(loaded, checkpoint, vision=vision).require_sound()
    from mlxpipe.graph.build import build_model
    from mlxpipe.graph.numerics import choose, use

    numerics = choose(loaded, plan)
    use(numerics)
    model = build_model(plan, checkpoint, numerics, progress)
    if not tokenizer:
        return model, None
    if vision:
        from mlxpipe.architecture.processor import load_processor

        return model, load_processor(checkpoint.files, checkpoint.config.data, checkpoint.label)
    from mlxpipe.architecture.tokenizer import load_tokenizer

    return model, load_tokenizer(checkpoint.files, checkpoint.config.data, checkpoint.label)


def with_dtype(loaded: LoadedSpec, dtype: str | None) -> LoadedSpec:
    """The spec with another `model.dtype`, validated."""
    from mlxpipe.spec.load import override

    return loaded if dtype is None else override(loaded, ("model", "dtype"), dtype)


def export(
    source: Source,
    path: str | Path,
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
    set: Settings = None,
    **options: Any,
) -> Exported:
    """Write a model to disk in another format, whole or not at all, without loading it.

    Args:
        source: A spec's path, a checkpoint directory, or a loaded spec; its tasks are not run.
        path: The directory to write, or the Ollama store to add to; from the current directory.
        progress: Called with (bytes written, bytes in all).
        set: Values of the spec by dotted path; they win over the file.
        options: As an export task has them: format, name, unsupported, dtype, max_shard_bytes,
            overwrite.

    Returns:
        What was written, and what it holds of each module.

    Raises:
        UsageError, SourceError, PlanError, ExecutionError: see `mlxpipe.errors`.
    """
    from mlxpipe.spec.load import override

    task = {"type": "export", "path": str(Path(path).expanduser().absolute()), **options}
    # What the spec expects of its own tasks is none of this one's business.
    loaded = override(override(open_spec(source, set=set), ("expect",), []), ("tasks",), [task])
    checkpoint = open_source(loaded)
    plan = plan_checkpoint(loaded, checkpoint).require_sound()
    from mlxpipe.exports.export import export_model
    from mlxpipe.tasks.export import request_of

    request = replace(request_of(loaded, 0), origin=None)
    return export_model(plan, checkpoint, request, progress)


def run(
    source: Source,
    reporter: Reporter | None = None,
    *,
    locked: bool = False,
    allow_versions: bool = False,
    force: bool = False,
    cache: bool = True,
    set: Settings = None,
) -> RunRecord:
    """Run every task of a spec and leave a run directory.

    Args:
        source: A spec's path, a checkpoint directory, or a loaded spec.
        reporter: Told of progress and of generated text.
        locked: Refuse to run what is not as the spec's lock says.
        allow_versions: With `locked`, accept other versions of the packages.
        force: Do every task again, whatever earlier runs have finished.
        cache: Look digests of large unchanged files up; False reads every byte.

    Raises:
        UsageError, SourceError, LockError, PlanError: nothing was written.
        RunFailedError: a task failed; the record is on disk.
    """
    from mlxpipe.execution.executor import Options, RunFailedError, execute
    from mlxpipe.report.files import check_reports, write_reports

    loaded = open_spec(source, set=set)
    check_reports(loaded)
    try:
        record = execute(loaded, reporter, Options(locked, allow_versions, force, cache))
    except RunFailedError as failure:
        write_reports(loaded, failure.record)
        raise
    write_reports(loaded, record)
    return record


def run_matrix(
    source: Source,
    reporter: Reporter | None = None,
    *,
    set: Settings = None,
    only: Iterable[str] = (),
    keep_going: bool = False,
) -> MatrixRecord:
    """Run the combinations of a spec's matrix, each as a run of its own.

    Args:
        source: A spec's path.
        reporter: Told of progress.
        set: As for `open_spec`.
        only: Globs of labels and `axis=value`; default: all combinations.
        keep_going: Go on after one that failed.

    Raises:
        UsageError, SourceError, PlanError: nothing was run.
    """
    return run_all(open_specs(source, set=set, only=only), reporter, keep_going=keep_going)


def run_all(
    specs: Sequence[LoadedSpec],
    reporter: Reporter | None = None,
    *,
    keep_going: bool = False,
    run_one: RunOne = run,
) -> MatrixRecord:
    """Run the combinations of one matrix and write the reports about all of them.

    Args:
        specs: As `open_specs` gives them.
        reporter: Told of progress.
        keep_going: Go on after one that failed.
        run_one: Runs one of them.

    Raises:
        UsageError, SourceError, PlanError: nothing was run.
    """
    from mlxpipe.execution.matrix import run_combinations
    from mlxpipe.report.files import check_reports, write_matrix_reports

    for each in specs:
        check_reports(each)
    record = run_combinations(specs, reporter, keep_going=keep_going, run_one=run_one)
    for path in write_matrix_reports(record).values():
        if reporter is not None:
            reporter.message(f"report: {path}")
    return record


def lock(
    source: Source, *, path: str | Path | None = None, cache: bool = True, bar: Bar | None = None
) -> Lock:
    """Write the lock of a spec: digests of all that decides what it computes.

    Args:
        source: A spec's path, a checkpoint directory, or a loaded spec.
        path: Where to write it; by default beside the spec.
        cache: Look digests of large unchanged files up; False reads every byte.
        bar: Shows progress.

    Returns:
        The lock; `lock.sha256` is equal for specs that mean the same.

    Raises:
        UsageError, SourceError, PlanError: there is nothing sound to lock.
        LockError: it cannot be written.
    """
    from mlxpipe.locking import lock_path, take, write_lock
    from mlxpipe.tasks.reference import reference_specs

    loaded = open_spec(source)
    made = take(loaded, _digests(cache, bar), reference_specs(loaded)).lock
    write_lock(Path(path) if path else lock_path(loaded), made)
    return made


def check_lock(
    source: Source,
    *,
    path: str | Path | None = None,
    allow_versions: bool = False,
    cache: bool = True,
    bar: Bar | None = None,
) -> tuple[Diagnostic, ...]:
    """What of a spec is not as its lock says; empty where all is.

    Args:
        source: A spec's path, a checkpoint directory, or a loaded spec.
        path: The lock file; by default the one beside the spec.
        allow_versions: Accept other versions of the packages.
        cache: Look digests of large unchanged files up; False reads every byte.
        bar: Shows progress.

    Raises:
        LockError: there is no lock, or it cannot be read.
        UsageError, SourceError, PlanError: as `make_plan`.
    """
    from mlxpipe.locking import compare
    from mlxpipe.tasks.reference import reference_specs

    loaded = open_spec(source)
    _, found = compare(
        loaded,
        _digests(cache, bar),
        Path(path) if path else None,
        versions=not allow_versions,
        others=reference_specs(loaded),
    )
    return found


def _digests(cache: bool, bar: Bar | None) -> Digests:
    from mlxpipe.locking import DigestCache, Digests

    return Digests(DigestCache() if cache else None, bar)
