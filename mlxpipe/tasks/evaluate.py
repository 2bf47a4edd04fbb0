"""Tasks of lm-evaluation-harness: its questions and metrics, our model.

Data sets must be on this machine (a task's `dataset_kwargs: {data_files: ...}`, relative to the
directory of `include`, or the Hugging Face cache) unless the task says `download: true`. A task
file may name Python functions, which the harness then runs: `include` only what you trust.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxpipe.errors import ExecutionError, UsageError, nearest
from mlxpipe.spec import EvaluateTask, GenerateTask
from mlxpipe.tasks.base import Context, Outcome, Reporter
from mlxpipe.tasks.generate import complete

#: What a config.json calls the longest sequence that a model reads.
LENGTHS = ("max_position_embeddings", "max_sequence_length", "seq_length", "n_positions")

#: The longest sequence where no config says.
DEFAULT_CONTEXT = 2048

#: What of the harness's report is kept.
KEPT = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better", "configs")


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Evaluate. Metrics `<task>/<metric>`; output `results`, the harness's report."""
    task = context.loaded.spec.tasks[number]
    assert isinstance(task, EvaluateTask)
    _check_installed(context, number)
    with _network(task.download):
        manager = _tasks(context, task, number)
        model = _harness_model(context, task)
        report = _evaluate(context, task, manager, model)
    if model.shortened:
        message = (
            f"{model.shortened} requests were longer than the context and lost their beginning"
        )
        context.reporter.message(message)
    path = folder / "results.json"
    kept = {key: report[key] for key in KEPT if key in report}
    path.write_text(json.dumps(kept, indent=2, default=str) + "\n", encoding="utf-8")
    metrics = dict(_metrics(report["results"]))
    _show(context, metrics)
    return Outcome(metrics, {"results": path})


def _seed(context: Context, task: EvaluateTask) -> int:
    return context.loaded.spec.run.seed if task.seed is None else task.seed


# --- the harness -----------------------------------------------------------------------------


def _check_installed(context: Context, number: int) -> None:
    if find_spec("lm_eval") is None:
        raise ExecutionError(
            "no-lm-eval",
            "evaluate needs lm-evaluation-harness, which is not installed",
            origin=context.origin(number, "type"),
            help="pip install 'mlxpipe[evaluate]'",
        )


@contextmanager
def _network(download: bool) -> Iterator[None]:
    """Keep the harness off the network inside, unless the spec lets it; keep its bars quiet.

    `datasets` and `huggingface_hub` read the environment when they are imported, which may have
    been long ago; so their own switches are set, and set back.
    """
    with _changed(os.environ, "TQDM_DISABLE", "1"):
        import datasets
        import huggingface_hub

        datasets.disable_progress_bars()
        for name in ("lm_eval", "lm-eval", "datasets"):
            logging.getLogger(name).setLevel(logging.ERROR)
        libraries = (datasets.config, huggingface_hub.constants)
        offline = not download or any(each.HF_HUB_OFFLINE for each in libraries)
        with (
            _changed(vars(libraries[0]), "HF_HUB_OFFLINE", offline),
            _changed(vars(libraries[1]), "HF_HUB_OFFLINE", offline),
        ):
            yield


@contextmanager
def _changed(settings: MutableMapping[str, Any], name: str, value: Any) -> Iterator[None]:
    """A setting that has another value inside."""
    had, before = name in settings, settings.get(name)
    settings[name] = value
    try:
        yield
    finally:
        if had:
            settings[name] = before
        else:
            del settings[name]


def _evaluate(context: Context, task: EvaluateTask, manager: Any, model: Any) -> dict[str, Any]:
    """The harness's report."""
    from lm_eval import evaluator

    # It would ask git about the current directory, and git complains where there is no repository.
    evaluator.get_git_commit_hash = lambda: None
    with _inside(context, task):
        report: dict[str, Any] = evaluator.simple_evaluate(
            model=model,
            tasks=list(task.tasks),
            num_fewshot=task.num_fewshot,
            limit=task.limit,
            task_manager=manager,
            apply_chat_template=task.chat,
            log_samples=False,
            torch_random_seed=None,
            **_seeds(_seed(context, task)),
        )
    return report


def _seeds(seed: int) -> dict[str, int]:
    """The harness's seeds; NumPy takes no more than 32 bits."""
    return {
        "random_seed": seed,
        "numpy_random_seed": seed % 2**32,
        "fewshot_random_seed": seed,
    }


def _inside(context: Context, task: EvaluateTask) -> AbstractContextManager[None]:
    """The directory of `include`, for what its task files name by relative paths."""
    return nullcontext() if task.include is None else chdir(context.loaded.resolve(task.include))


def _tasks(context: Context, task: EvaluateTask, number: int) -> Any:
    """The harness's tasks and those of `include`, all of them known and their data at hand.

    Raises:
        UsageError: `unknown-evaluation`.
        ExecutionError: `no-data-set`.
    """
    manager = _manager(context, task)
    for name in task.tasks:
        if name not in manager.task_index:
            near = nearest(name, manager.all_tasks, 3)
            raise UsageError(
                "unknown-evaluation",
                f"the harness has no task '{name}'",
                origin=context.origin(number, "tasks"),
                help=("near names: " + ", ".join(near))
                if near
                else "name a directory with the task's YAML file under `include`",
            )
    try:
        with _inside(context, task):
            manager.load(list(task.tasks))
    except Exception as error:  # the harness and `datasets` raise whatever a task meets
        said = next(iter(str(error).splitlines()), "")
        raise ExecutionError(
            "no-data-set",
            f"the harness cannot load what task '{task.id}' asks for",
            origin=context.origin(number, "tasks"),
            found=f"{type(error).__name__}: {said}",
            help=""
            if task.download
            else "where a data set is not on this machine, name its "
            "files under dataset_kwargs, or let it be fetched with `download: true`",
        ) from error
    return manager


def _manager(context: Context, task: EvaluateTask) -> Any:
    """An index of tasks: those of `include` alone where that is enough.

    The harness's own are thousands of files, which take it half a minute to look through.
    """
    from lm_eval.tasks import TaskManager

    if task.include is None:
        return TaskManager()
    include = str(context.loaded.resolve(task.include).resolve())
    own = TaskManager(include_path=include, include_defaults=False)
    if set(task.tasks) <= set(own.all_subtasks):
        return own
    return TaskManager(include_path=include)


def _harness_model(context: Context, task: EvaluateTask) -> Any:
    from mlxpipe.tasks.harness import HarnessModel, Limits

    model, tokenizer = context.model, context.tokenizer
    quiet = replace(context, reporter=Reporter(), make_tokenizer=lambda: tokenizer)
    seed = _seed(context, task)

    def answer(wanted: GenerateTask, prompt: str, ids: list[int]) -> str:
        mx.random.seed(seed)
        return complete(quiet, model, wanted, prompt, ids).text

    limits = Limits(task.context or _longest(context.checkpoint.config.data), task.max_tokens)
    return HarnessModel(model, tokenizer, answer, limits, task.chat, context.reporter.bar)


def _longest(config: Mapping[str, Any]) -> int:
    """The longest sequence that a model was made for."""
    inner = config.get("text_config")
    for each in (config, inner if isinstance(inner, dict) else {}):
        for key in LENGTHS:
            value = each.get(key)
            if type(value) is int and value > 1:
                return value
    return DEFAULT_CONTEXT


# --- what comes out --------------------------------------------------------------------------


def _metrics(results: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """`<task>/<metric>`, with the filter where it is not the plain one."""
    for name, found in results.items():
        for key, value in found.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, int | float) and filtered:
                yield f"{name}/{metric}" + ("" if filtered == "none" else f",{filtered}"), value


def _show(context: Context, metrics: Mapping[str, float]) -> None:
    rows = [
        (*name.rsplit("/", 1), value, _error(metrics, name))
        for name, value in metrics.items()
        if not _is_error(name)
    ]
    context.reporter.table("evaluation", ("task", "metric", "value", "±"), rows)


def _is_error(name: str) -> bool:
    return name.partition(",")[0].endswith("_stderr")


def _error(metrics: Mapping[str, float], name: str) -> float | None:
    """The standard error that the harness gives for a metric."""
    metric, comma, filtered = name.partition(",")
    return metrics.get(f"{metric}_stderr{comma}{filtered}")
