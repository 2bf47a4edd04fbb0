"""Speed and memory: loading, the first token, reading the prompt, generating, the peak.

One run is one prompt through mlx-lm's generation loop, the loop that `generate` uses:

    first_token_seconds = from the prompt's tokens to the first generated one
    prefill_tps         = prompt tokens / first_token_seconds
    decode_tps          = generated tokens after the first / the time that they took

Each is the median of `repeats` runs, with least, greatest and interquartile range beside it.
`load_seconds` is the time from the plan to weights in memory; whether the files came from the disk
or from the system's cache stands in `samples.json`, where the system tells. `peak_memory_bytes` is
MLX's peak over loading and the warm-up runs.

Paired with mlx-lm, both models run in turns in this process, whoever went second going first the
next time; `prefill_ratio` and `decode_ratio` are medians of ours / theirs, pair by pair.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import mlx.core as mx

from mlxpipe.architecture.mlxlm import submodule
from mlxpipe.errors import UsageError
from mlxpipe.spec import BenchmarkTask
from mlxpipe.tasks.base import Context, Outcome
from mlxpipe.tasks.logits import vocabulary
from mlxpipe.tasks.texts import read_text
from mlxpipe.tasks.windows import tokenise

OURS, THEIRS = "mlxpipe", "mlx-lm"

#: What is measured in every run, and how it is called for people.
MEASURES = {
    "first_token_seconds": "first token, s",
    "prefill_tps": "prefill, tokens/s",
    "decode_tps": "decode, tokens/s",
}

#: Ratio -> the measure it is of.
RATIOS = {"prefill_ratio": "prefill_tps", "decode_ratio": "decode_tps"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One run.

    Attributes:
        loader: Whose model it was.
        first_token_seconds: See the module.
        prefill_tps: See the module.
        decode_tps: See the module.
    """

    loader: str
    first_token_seconds: float
    prefill_tps: float
    decode_tps: float


@dataclass(frozen=True, slots=True)
class Load:
    """One loading of a model.

    Attributes:
        loader: Who loaded it.
        seconds: From the plan to weights in memory.
        disk_bytes: What this process read from the disk meanwhile: 0 where everything was in the
            system's cache; None where the system does not tell.
    """

    loader: str
    seconds: float
    disk_bytes: int | None


@dataclass(frozen=True, slots=True)
class Partner:
    """mlx-lm's model, or why there is none.

    Attributes:
        model: The model, None where mlx-lm cannot run the checkpoint.
        load: How long it took.
        dtype: What it computes in.
        note: Why there is none.
    """

    model: Any = None
    load: Load | None = None
    dtype: str = ""
    note: str = ""


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Measure. Output `samples`: every run and every loading."""
    task = context.loaded.spec.tasks[number]
    assert isinstance(task, BenchmarkTask)
    context.release()
    mx.clear_cache()
    mx.reset_peak_memory()
    loads = [_timed(OURS, lambda: _reload(context)) for _ in range(task.loads)]
    prompt = _prompt(context, task, number)
    total = task.warmup + task.repeats
    with context.reporter.bar("benchmark", total, "runs") as advance:
        for done in range(1, task.warmup + 1):
            measure(OURS, context.model, prompt, task.generation_tokens)
            advance(done)
        peak = mx.get_peak_memory()
        partner = _partner(context, task, prompt) if task.paired else Partner()
        models = {OURS: context.model, THEIRS: partner.model}
        samples = []
        for done, loaders in enumerate(_turns(task.repeats, partner), task.warmup + 1):
            samples += [
                measure(loader, models[loader], prompt, task.generation_tokens)
                for loader in loaders
            ]
            advance(done)
    metrics = {**_metrics(loads, samples), "peak_memory_bytes": peak}
    _show(context, metrics, partner)
    loads += [partner.load] if partner.load else []
    path = folder / "samples.json"
    path.write_text(
        json.dumps(_record(context, task, partner, loads, samples), indent=2) + "\n",
        encoding="utf-8",
    )
    return Outcome(metrics, {"samples": path})


def measure(loader: str, model: Any, prompt: mx.array, tokens: int) -> Sample:
    """One greedy run.

    Args:
        loader: What to call it.
        model: An mlx-lm model.
        prompt: Token ids [T].
        tokens: How many to generate, at least 2; end-of-sequence tokens end nothing.
    """
    generation = submodule("generate")
    mx.clear_cache()
    with generation.wired_limit(model, [generation.generation_stream]):
        started = time.perf_counter()
        steps = generation.generate_step(prompt, model, max_tokens=tokens)
        times = [time.perf_counter() for _ in steps]
        # The loop is a step ahead: without waiting for it, it would fall into the next run.
        mx.synchronize()
    first = times[0] - started
    return Sample(loader, first, prompt.size / first, (tokens - 1) / (times[-1] - times[0]))


def _turns(repeats: int, partner: Partner) -> Iterator[tuple[str, ...]]:
    """Who runs in each repeat, in order."""
    for repeat in range(repeats):
        if partner.model is None:
            yield (OURS,)
        else:
            yield (OURS, THEIRS) if repeat % 2 == 0 else (THEIRS, OURS)


# --- models and prompts ----------------------------------------------------------------------


def _reload(context: Context) -> None:
    context.release()
    mx.clear_cache()
    assert context.model is not None


def _timed(loader: str, action: Callable[[], object]) -> Load:
    before = _disk_bytes()
    started = time.perf_counter()
    action()
    seconds = time.perf_counter() - started
    after = _disk_bytes()
    return Load(loader, seconds, None if before is None or after is None else after - before)


def _disk_bytes() -> int | None:
    """What this process has had read from disks so far; Linux alone tells (proc(5))."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
    except (OSError, ValueError, StopIteration):
        return None


def _prompt(context: Context, task: BenchmarkTask, number: int) -> mx.array:
    """Token ids [prompt_tokens]: a text's first ones, or random ones."""
    if task.prompt_file is None:
        size = vocabulary(context.model) or context.model(mx.array([[0]])).shape[-1]
        seed = context.loaded.spec.run.seed if task.seed is None else task.seed
        numbers = random.Random(seed)
        return mx.array([numbers.randrange(size) for _ in range(task.prompt_tokens)])
    origin = context.origin(number, "prompt_file")
    text = read_text(context.loaded.resolve(task.prompt_file), origin)
    ids, _ = tokenise(context.tokenizer, text)
    if len(ids) < task.prompt_tokens:
        raise UsageError(
            "too-short",
            f"{task.prompt_file} is shorter than the prompt should be",
            origin=origin,
            found=f"{len(ids)} tokens",
            expected=f"{task.prompt_tokens}, as prompt_tokens says",
        )
    return mx.array(ids[: task.prompt_tokens])


def _partner(context: Context, task: BenchmarkTask, prompt: mx.array) -> Partner:
    """mlx-lm's own model of the checkpoint, warmed up."""
    refusal = _refusal(context)
    if refusal:
        return _without(context, refusal)
    found: list[Any] = []
    try:
        load = _timed(THEIRS, lambda: found.append(_their_model(context, task)))
        for _ in range(task.warmup):
            measure(THEIRS, found[0], prompt, task.generation_tokens)
        dtype = found[0](prompt[None, :1]).dtype
    except Exception as error:  # whatever mlx-lm makes of a checkpoint that it does not know
        said = next(iter(str(error).splitlines()), "")
        return _without(context, f"{type(error).__name__}: {said}"[:400])
    return Partner(found[0], load, str(dtype).rpartition(".")[2])


def _refusal(context: Context) -> str:
    """Why mlx-lm is not even asked, "" if it is."""
    if context.checkpoint.kind == "ollama":
        return "it does not read Ollama's stores"
    if "model_file" in context.checkpoint.config.data:
        return "the checkpoint brings code of its own, which is never run"
    return ""


def _without(context: Context, reason: str) -> Partner:
    note = f"not paired: mlx-lm cannot run this checkpoint ({reason})"
    context.reporter.message(note)
    return Partner(note=note)


def _their_model(context: Context, task: BenchmarkTask) -> Any:
    model, _ = submodule("utils").load_model(context.checkpoint.root)
    if task.paired_dtype not in (None, "checkpoint"):
        model.set_dtype(getattr(mx, str(task.paired_dtype)))
        mx.eval(model.parameters())
    return model


# --- what comes out --------------------------------------------------------------------------


def _metrics(loads: list[Load], samples: list[Sample]) -> dict[str, float | int]:
    ours = [each for each in samples if each.loader == OURS]
    theirs = [each for each in samples if each.loader == THEIRS]
    found = _spread("load_seconds", (load.seconds for load in loads))
    for name in MEASURES:
        found |= _spread(name, (getattr(each, name) for each in ours))
    if theirs:
        for name, of in RATIOS.items():
            pairs = zip(ours, theirs, strict=True)
            found |= _spread(name, (getattr(a, of) / getattr(b, of) for a, b in pairs))
    return found


def _spread(name: str, values: Iterable[float]) -> dict[str, float | int]:
    """Median, least, greatest and interquartile range; one value has no spread."""
    found = sorted(values)
    if len(found) == 1:
        return {name: found[0]}
    low, _, high = quantiles(found, n=4, method="inclusive")
    spread = {"min": found[0], "max": found[-1], "iqr": high - low}
    return {name: median(found), **{f"{name}_{key}": value for key, value in spread.items()}}


def _record(
    context: Context,
    task: BenchmarkTask,
    partner: Partner,
    loads: list[Load],
    samples: list[Sample],
) -> dict[str, Any]:
    paired = {"dtype": partner.dtype} if partner.model is not None else {"note": partner.note}
    return {
        "prompt_tokens": task.prompt_tokens,
        "generation_tokens": task.generation_tokens,
        "warmup": task.warmup,
        "numerics": context.numerics.as_json(),
        # In one process: the same MLX, the same BLAS, the same generation loop.
        **({THEIRS: paired} if task.paired else {}),
        "loads": [asdict(load) for load in loads],
        "runs": [asdict(sample) for sample in samples],
    }


def _show(context: Context, metrics: dict[str, float | int], partner: Partner) -> None:
    names = {"load_seconds": "load, s", **MEASURES}
    if partner.model is not None:
        against = f"mlx-lm ({partner.dtype})"
        names |= {ratio: f"{ratio.partition('_')[0]}, times {against}" for ratio in RATIOS}
    rows = [
        (title, *(metrics.get(name + end) for end in ("", "_min", "_max", "_iqr")))
        for name, title in names.items()
    ]
    context.reporter.table("speed", ("", "median", "min", "max", "iqr"), rows)
