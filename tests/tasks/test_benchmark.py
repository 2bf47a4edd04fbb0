"""What a benchmark measures and records; never how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

import mlxpipe
from mlxpipe.errors import UsageError
from mlxpipe.execution.executor import RunFailedError
from mlxpipe.spec import BenchmarkTask, parse_spec
from mlxpipe.tasks.benchmark import measure
from tests.builders import STORE_MODEL

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "model"
DATA = Path(__file__).parents[1] / "data"
SHORT = "prompt_tokens: 6, generation_tokens: 3, repeats: 3"
CONTRACTED = {
    "load_seconds",
    "first_token_seconds",
    "prefill_tps",
    "decode_tps",
    "peak_memory_bytes",
}


def run(directory: Path, task: str, source: str = f"path: {QUICKSTART}", after: str = ""):
    tasks = f"[{{type: benchmark, {task}}}{after}]"
    spec = f"version: 1\nsource: {{{source}}}\ntasks: {tasks}\n"
    return mlxpipe.run(parse_spec(spec, "s.yaml", directory))


def samples(record):
    return json.loads(Path(record.tasks[0].outputs["samples"]).read_text(encoding="utf-8"))


def test_medians_are_those_of_the_samples_that_are_kept(tmp_path):
    record = run(tmp_path, f"{SHORT}, loads: 2")
    metrics, kept = record.tasks[0].metrics, samples(record)
    assert metrics.keys() >= CONTRACTED
    assert all(value >= 0 for value in metrics.values())
    assert len(kept["runs"]) == 3
    for name in ("first_token_seconds", "prefill_tps", "decode_tps"):
        found = sorted(each[name] for each in kept["runs"])
        assert [metrics[f"{name}_min"], metrics[name], metrics[f"{name}_max"]] == found
        assert metrics[f"{name}_iqr"] == pytest.approx((found[2] - found[0]) / 2)
    first, second = (each["seconds"] for each in kept["loads"])
    assert metrics["load_seconds"] == pytest.approx((first + second) / 2)
    assert "prefill_ratio" not in metrics


def test_one_repeat_has_no_spread(tmp_path):
    metrics = run(tmp_path, "prompt_tokens: 4, generation_tokens: 2, repeats: 1").tasks[0].metrics
    assert metrics.keys() == CONTRACTED


def test_speeds_follow_from_the_times():
    class Clock:
        times = iter([10.0, 12.0, 12.5, 13.0])

        def perf_counter(self) -> float:
            return next(self.times)

    model, _ = mlxpipe.load(QUICKSTART, tokenizer=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxpipe.tasks.benchmark.time", Clock())
        sample = measure("ours", model, mx.array([1, 2, 3, 4]), 3)
    assert sample.first_token_seconds == 2.0
    assert sample.prefill_tps == 2.0
    assert sample.decode_tps == 2.0


def test_mlx_lm_runs_in_turns_with_us(tmp_path):
    record = run(tmp_path, f"{SHORT}, paired: mlx-lm, paired_dtype: float32")
    kept = samples(record)
    assert [each["loader"] for each in kept["runs"]] == [
        *("mlxpipe", "mlx-lm"),
        *("mlx-lm", "mlxpipe"),
        *("mlxpipe", "mlx-lm"),
    ]
    assert [each["loader"] for each in kept["loads"]] == ["mlxpipe", "mlx-lm"]
    assert kept["mlx-lm"] == {"dtype": "float32"}
    ours, theirs = (
        [each["decode_tps"] for each in kept["runs"] if each["loader"] == loader]
        for loader in ("mlxpipe", "mlx-lm")
    )
    ratios = sorted(one / other for one, other in zip(ours, theirs, strict=True))
    assert record.tasks[0].metrics["decode_ratio"] == pytest.approx(ratios[1])


def test_expectations_know_every_metric_that_there_can_be(tmp_path):
    metrics = run(tmp_path, f"{SHORT}, loads: 2, paired: mlx-lm").tasks[0].metrics
    assert metrics.keys() == set(BenchmarkTask.metrics)


def test_without_a_word_on_it_mlx_lm_computes_as_it_loads(tmp_path):
    kept = samples(run(tmp_path, "prompt_tokens: 2, generation_tokens: 2, paired: mlx-lm"))
    assert kept["mlx-lm"] == {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    "source",
    [
        f"ollama: '{STORE_MODEL}', store: {DATA / 'ollama-store'}",
        f"path: {DATA / 'ct-mixed-llama'}",
    ],
)
def test_what_mlx_lm_cannot_load_is_measured_alone_and_says_so(tmp_path, source):
    record = run(tmp_path, f"{SHORT}, paired: mlx-lm", source)
    metrics, kept = record.tasks[0].metrics, samples(record)
    assert metrics.keys() >= CONTRACTED
    assert "prefill_ratio" not in metrics
    assert "mlx-lm cannot run this checkpoint" in kept["mlx-lm"]["note"]
    assert {each["loader"] for each in kept["runs"]} == {"mlxpipe"}


def test_the_next_task_finds_the_model_and_the_run_its_own_peak(tmp_path):
    record = run(tmp_path, SHORT, after=", {type: logits, tokens: [1, 2, 3]}")
    assert [task.status for task in record.tasks] == ["done", "done"]
    assert record.peak_memory_bytes >= record.tasks[0].metrics["peak_memory_bytes"] > 0


def test_a_prompt_may_be_a_text(tmp_path):
    (tmp_path / "p.txt").write_text("Emma Woodhouse, handsome, clever, and rich", encoding="utf-8")
    task = "prompt_file: p.txt, generation_tokens: 2, repeats: 1, prompt_tokens: "
    assert run(tmp_path, task + "5").tasks[0].status == "done"
    with pytest.raises(RunFailedError) as caught:
        run(tmp_path, task + "500")
    assert caught.value.cause.code == "too-short"


@pytest.mark.parametrize(
    ("task", "code"),
    [
        ("prompt_file: nowhere.txt", "missing-file"),
        ("generation_tokens: 1", "out-of-range"),
        ("warmup: 0", "out-of-range"),
        ("repeats: 0", "out-of-range"),
        ("paired: llama.cpp", "unknown-value"),
        ("paired_dtype: float32", "exclusive-keys"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(tmp_path, task, code):
    with pytest.raises(UsageError) as caught:
        run(tmp_path, task)
    assert caught.value.code == code
    assert not (tmp_path / "runs").exists()
