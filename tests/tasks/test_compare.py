"""A model against itself, against one that differs in one place, and against what it cannot be."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import mlxpipe
from mlxpipe.errors import MlxpipeError, PlanError, SourceError, UsageError
from mlxpipe.execution.executor import RunFailedError
from mlxpipe.spec import CompareTask, parse_spec
from mlxpipe.tasks.windows import tokenise
from tests.builders import (
    Raw,
    llama_config,
    quantised_llama,
    read_safetensors,
    write_checkpoint,
    write_safetensors,
)

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "model"
ZOO = Path(__file__).parents[1] / "data"
CHANGED = "language_model.model.layers.1.mlp.shared_expert.up_proj"
TEXT = "Emma could not forgive her; but as neither provocation nor resentment were discerned, "


def compare(directory: Path, reference: str, more: str = "", source: Path = QUICKSTART):
    if not (directory / "text.txt").exists():
        (directory / "text.txt").write_text(TEXT * 8, encoding="utf-8")
    task = f"{{type: compare, reference: {reference}, data: text.txt, context: 64{more}}}"
    spec = f"version: 1\nsource: {{path: {source}}}\ntasks: [{task}]\n"
    return mlxpipe.run(parse_spec(spec, "s.yaml", directory)).tasks[0]


def rows(task, name: str):
    return json.loads(Path(task.outputs[name]).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> Path:
    """The quickstart model with one module's weights negated."""
    folder = tmp_path_factory.mktemp("changed") / "model"
    shutil.copytree(QUICKSTART, folder)
    path = folder / "model.safetensors"
    tensors, metadata = read_safetensors(path)
    weight = tensors[f"{CHANGED}.weight"]
    # Each code is four bits, sign first: this negates every weight of the module.
    negated = (np.frombuffer(weight.data, np.uint8) ^ 0x88).tobytes()
    tensors[f"{CHANGED}.weight"] = Raw(weight.dtype, weight.shape, negated)
    path.unlink()
    write_safetensors(path, tensors, metadata)
    return folder


def test_a_model_does_not_differ_from_itself(tmp_path):
    task = compare(tmp_path, f"{{path: {QUICKSTART}}}", ", windows: 3")
    metrics = task.metrics
    assert metrics["kl_divergence"] == metrics["kl_divergence_p99"] == 0
    assert metrics["kl_divergence_max"] == metrics["worst_module_error"] == 0
    assert metrics["top1_agreement"] == metrics["perplexity_ratio"] == 1
    assert metrics["perplexity"] == metrics["reference_perplexity"]
    assert metrics["tokens"] == 3 * 63
    assert metrics.keys() == set(CompareTask.metrics)
    assert {row["accumulated_error"] for row in rows(task, "layers")} == {0.0}


def test_divergences_are_those_of_numpy_over_the_same_windows(tmp_path, changed):
    metrics = compare(tmp_path, f"{{path: {changed}}}", ", windows: 2, layer_tokens: 0").metrics
    candidate, tokenizer = mlxpipe.load(QUICKSTART)
    reference, _ = mlxpipe.load(changed)
    ids, _ = tokenise(tokenizer, TEXT * 8)
    divergences, agreements, ratio = [], [], 0.0
    for window in (ids[:64], ids[64:128]):
        p, q = (log_softmax(model(mx.array([window]))[0, :-1]) for model in (reference, candidate))
        divergences += list(np.sum(np.exp(p) * (p - q), axis=-1))
        agreements += list(p.argmax(-1) == q.argmax(-1))
        ratio += sum(p[at, token] - q[at, token] for at, token in enumerate(window[1:]))
    assert metrics["kl_divergence"] == pytest.approx(np.mean(divergences), rel=1e-3)
    assert metrics["kl_divergence_p99"] == pytest.approx(np.percentile(divergences, 99), rel=1e-3)
    assert metrics["kl_divergence_max"] == pytest.approx(max(divergences), rel=1e-3)
    assert metrics["top1_agreement"] == np.mean(agreements)
    assert metrics["perplexity_ratio"] == pytest.approx(math.exp(ratio / 126), rel=1e-4)
    assert metrics["kl_divergence"] > 0


def log_softmax(logits: mx.array) -> np.ndarray:
    wide = np.array(logits).astype(np.float64)
    return wide - np.log(np.sum(np.exp(wide), axis=-1, keepdims=True))


def test_the_one_module_that_differs_is_found(tmp_path, changed):
    task = compare(tmp_path, f"{{path: {changed}}}", ", windows: 1")
    modules = rows(task, "modules")
    assert modules[0]["path"] == CHANGED
    assert modules[0]["scheme"] == modules[0]["reference_scheme"] == "nvfp4 4-bit g16"
    assert task.metrics["worst_module_error"] == modules[0]["own_error"] == pytest.approx(2)
    # Given the reference's inputs, every other module gives what the reference gives.
    assert {row["own_error"] for row in modules[1:]} == {0.0}


def test_errors_accumulate_from_the_layer_on_that_differs(tmp_path, changed):
    layers = rows(compare(tmp_path, f"{{path: {changed}}}", ", windows: 1"), "layers")
    own = [row["own_error"] for row in layers]
    accumulated = [row["accumulated_error"] for row in layers]
    assert [row["path"] for row in layers] == [
        f"language_model.model.layers.{number}" for number in range(len(layers))
    ]
    assert [error > 0 for error in own] == [number == 1 for number in range(len(layers))]
    assert accumulated[0] == 0
    assert all(error > 0 for error in accumulated[1:])
    assert accumulated[1] == own[1]


def test_a_modules_own_error_is_that_of_its_output(tmp_path, changed):
    (row,) = (
        row
        for row in rows(compare(tmp_path, f"{{path: {changed}}}", ", windows: 1"), "modules")
        if row["path"] == CHANGED
    )
    candidate, tokenizer = mlxpipe.load(QUICKSTART)
    reference, _ = mlxpipe.load(changed)
    ids, _ = tokenise(tokenizer, TEXT * 8)
    heard = []
    module = reference.language_model.model.layers[1].mlp.shared_expert
    up_proj, module.up_proj = module.up_proj, lambda x: heard.append(x) or up_proj(x)
    reference(mx.array([ids[:64]]))
    y = up_proj(heard[0])
    other = candidate.language_model.model.layers[1].mlp.shared_expert.up_proj(heard[0])
    expected = mx.linalg.norm((other - y).flatten()) / mx.linalg.norm(y.flatten())
    assert row["own_error"] == pytest.approx(expected.item(), rel=1e-3)


def test_no_layers_are_measured_where_none_are_wanted(tmp_path):
    task = compare(tmp_path, f"{{path: {QUICKSTART}}}", ", windows: 1, layer_tokens: 0")
    assert task.outputs == {}
    assert "worst_module_error" not in task.metrics


def test_producers_are_compared_across_their_layouts(tmp_path):
    source, reference = ZOO / "ct-w4a16-llama", ZOO / "ct-nvfp4a16-llama"
    task = compare(tmp_path, f"{{path: {reference}}}", ", windows: 1", source)
    schemes = {(row["scheme"], row["reference_scheme"]) for row in rows(task, "modules")}
    assert len({scheme for scheme, _ in schemes}) > 1
    assert any("nvfp4" in theirs and "affine" in ours for ours, theirs in schemes)
    assert task.metrics["kl_divergence"] > 0


# --- other kinds of reference ----------------------------------------------------------------


def test_a_reference_may_be_a_spec_with_paths_of_its_own(tmp_path, changed):
    other = tmp_path / "other"
    other.mkdir()
    shutil.copytree(changed, other / "model")
    (other / "o.yaml").write_text("version: 1\nsource: {path: model}\n", encoding="utf-8")
    by_spec = compare(tmp_path, "{spec: other/o.yaml}", ", windows: 1").metrics
    assert by_spec == compare(tmp_path, f"{{path: {changed}}}", ", windows: 1").metrics


@pytest.fixture
def moved_run(tmp_path, changed) -> Path:
    """A run's directory, after the spec, the model and the runs were moved together."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()
    shutil.copytree(changed, before / "model")
    task = "{type: logits, tokens: [1, 2]}"
    spec = f"version: 1\nsource: {{path: model}}\noutputs: {{dir: out/r}}\ntasks: [{task}]\n"
    record = mlxpipe.run(parse_spec(spec, "s.yaml", before))
    before.rename(after)
    return after / record.folder.relative_to(before)


def test_a_reference_may_be_an_earlier_run_though_it_was_moved(tmp_path, changed, moved_run):
    by_run = compare(tmp_path, f"{{run: {moved_run}}}", ", windows: 1").metrics
    assert by_run == compare(tmp_path, f"{{path: {changed}}}", ", windows: 1").metrics


def test_a_run_whose_plan_is_another_today_is_refused(tmp_path, moved_run):
    path = moved_run / "plan.json"
    plan = json.loads(path.read_text(encoding="utf-8"))
    plan["modules"][CHANGED]["bits"] = 8
    path.write_text(json.dumps(plan), encoding="utf-8")
    error = refused(tmp_path, f"{{run: {moved_run}}}", UsageError, "run-changed")
    assert CHANGED in str(error)


# --- what is refused -------------------------------------------------------------------------


def refused(directory: Path, reference: str, kind: type[MlxpipeError], code: str) -> MlxpipeError:
    """The error before anything is written."""
    with pytest.raises(kind) as caught:
        compare(directory, reference)
    assert caught.value.code == code
    assert not (directory / "runs").exists()
    return caught.value


def test_a_run_that_is_none_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "{run: nowhere}", UsageError, "no-such-run")
    error = refused(tmp_path, "{run: empty}", UsageError, "no-such-run")
    assert "no run.json" in str(error)


def test_a_run_that_does_not_say_where_it_was_is_refused(tmp_path, moved_run):
    (moved_run / "run.json").write_text("{}", encoding="utf-8")
    refused(tmp_path, f"{{run: {moved_run}}}", UsageError, "bad-run")
    (moved_run / "run.json").write_text("{", encoding="utf-8")
    refused(tmp_path, f"{{run: {moved_run}}}", UsageError, "bad-run")


def test_a_reference_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path, "{spec: nowhere.yaml}", UsageError, "file-not-found")
    with pytest.raises(SourceError, match=r"the reference of task 'compare', s\.yaml:3"):
        compare(tmp_path, "{path: nowhere}")


def test_a_reference_that_does_not_plan_is_refused_in_its_own_words(tmp_path, changed):
    other = tmp_path / "other"
    shutil.copytree(changed, other)
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    config["quantization"][CHANGED] = {"bits": 8, "group_size": 64}
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        compare(tmp_path, f"{{path: {other}}}")
    assert CHANGED in str(caught.value)
    assert "the reference of task 'compare'" in str(caught.value)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "reference", ["{}", "{path: a, run: b}", "{revision: x, path: a}", "{pth: a}", "model"]
)
def test_a_reference_is_exactly_one_thing(tmp_path, reference):
    with pytest.raises(UsageError) as caught:
        compare(tmp_path, reference)
    assert caught.value.diagnostics[0].origin.line == 3


def failed(directory: Path, reference: str, more: str = "", source: Path = QUICKSTART):
    with pytest.raises(RunFailedError) as caught:
        compare(directory, reference, more, source)
    return caught.value.cause


def test_another_tokenizer_is_refused_with_the_place(tmp_path):
    error = failed(tmp_path, f"{{path: {ZOO / 'ct-w4a16-llama'}}}")
    assert error.code == "other-tokenizer"
    assert "at token" in str(error)


def test_another_vocabulary_is_refused(tmp_path):
    both = {}
    for size in (256, 320):
        tensors = quantised_llama(lambda path: None)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            width = tensors[name].shape[1]
            tensors[name] = Raw("F32", (size, width), b"\x00\x00\x80\x3c" * (size * width))
        both[size] = write_checkpoint(
            tmp_path / str(size), tensors, llama_config(vocab_size=size, quantization=None)
        )
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(ZOO / "ct-w4a16-llama" / name, both[size])
    error = failed(tmp_path, f"{{path: {both[320]}}}", source=both[256])
    assert error.code == "other-vocabulary"
    assert "320 tokens in the reference, 256 here" in str(error)


def test_a_text_of_one_token_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text("a", encoding="utf-8")
    assert failed(tmp_path, f"{{path: {QUICKSTART}}}").code == "too-short"


def test_two_models_that_do_not_fit_are_refused_before_they_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("mlxpipe.tasks.compare.memory_bytes", lambda: 1_000_000)
    error = failed(tmp_path, f"{{path: {QUICKSTART}}}")
    assert error.code == "not-enough-memory"
    assert "GB of memory" in str(error)
