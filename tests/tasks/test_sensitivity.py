"""What quantising a module costs is what a rule of `quantize` costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
import yaml

import mlxpipe
from mlxpipe import make_plan, run
from mlxpipe.errors import UsageError
from mlxpipe.execution.executor import RunFailedError
from mlxpipe.spec import parse_spec
from mlxpipe.tasks.divergence import kl_divergence
from mlxpipe.tasks.windows import tokenise

MODEL = Path(__file__).parents[2] / "examples/quickstart/model"
TEXT = MODEL.parent / "emma-excerpt.txt"
LAYER = "language_model.model.layers.1"
CONTEXT = 24


def spec_of(folder: Path, task: dict[str, Any], **sections: Any) -> Any:
    whole = {"type": "sensitivity", "data": str(TEXT), "context": CONTEXT, **task}
    data = {"version": 1, "source": {"path": str(MODEL)}, "tasks": [whole], **sections}
    return parse_spec(json.dumps(data), "spec.yaml", folder)


def measured(folder: Path, **task: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
    sections = task.pop("sections", {})
    (record,) = run(spec_of(folder, task, **sections)).tasks
    table = json.loads(Path(record.outputs["sensitivity"]).read_text())
    return table, record.metrics, record.outputs


def logits(recipe: list[Any], kernels: str) -> mx.array:
    data = {
        "version": 1,
        "source": {"path": str(MODEL)},
        "quantize": recipe,
        "model": {"kernels": kernels},
    }
    model, tokenizer = mlxpipe.load(parse_spec(json.dumps(data)))
    ids, _ = tokenise(tokenizer, TEXT.read_text())
    return model(mx.array([ids[: CONTEXT - 1]]))[0]


@pytest.mark.parametrize("kernels", ["dense", "packed"])
@pytest.mark.parametrize(
    "candidate",
    [{"mode": "affine", "bits": 2, "group_size": 32}, {"mode": "mxfp8"}],
    ids=lambda each: each["mode"],
)
def test_it_is_what_a_rule_for_that_module_costs(tmp_path, kernels, candidate):
    chosen = ("mlp.switch_mlp.down_proj", "mlp.gate", "linear_attn.in_proj_a")
    pattern = "re:layers\\.1\\.(" + "|".join(each.replace(".", "\\.") for each in chosen) + ")$"
    table, _, _ = measured(
        tmp_path,
        candidates=[candidate],
        match=pattern,
        sections={"model": {"kernels": kernels}},
    )
    assert len(table["rows"]) == len(chosen)
    before = logits([], kernels)
    for row in table["rows"]:
        after = logits([{"match": row["unit"], **candidate}], kernels)
        kl = kl_divergence(before, after).mean().item()
        assert row["kl"] == pytest.approx(kl, rel=1e-4)
        assert row["kl"] > 0
        assert 0 < row["output_error"] < 1


@pytest.mark.parametrize("module", ["language_model.model.embed_tokens", "language_model.lm_head"])
def test_the_ends_of_a_model_are_modules_too(tmp_path, module):
    candidate = {"mode": "affine", "bits": 3}
    table, _, _ = measured(tmp_path, candidates=[candidate], match=module)
    (row,) = table["rows"]
    after = logits([{"match": module, **candidate}], "auto")
    assert row["kl"] == pytest.approx(
        kl_divergence(logits([], "auto"), after).mean().item(), rel=1e-3
    )


@pytest.mark.parametrize("group", ["module", "layer", "kind"])
def test_the_recipe_reaches_the_target_as_a_plan_counts_it(tmp_path, group):
    target = 4.2
    _, metrics, outputs = measured(
        tmp_path,
        candidates=[{"bits": 3}, {"bits": 2}],
        match="*.mlp.*" if group == "module" else "*",
        group=group,
        target_bits_per_weight=target,
    )
    rules = yaml.safe_load(Path(outputs["recipe"]).read_text())["quantize"]
    data = {"version": 1, "source": {"path": str(MODEL)}, "quantize": rules}
    plan = make_plan(parse_spec(json.dumps(data)))
    assert not plan.problems
    assert plan.totals.bits_per_weight <= target
    assert plan.totals.bits_per_weight == pytest.approx(metrics["recipe_bits_per_weight"])
    assert metrics["recipe_kl_sum"] > 0


def test_the_model_is_afterwards_what_it_was(tmp_path):
    tokens = list(range(8))
    sensitivity = {
        "type": "sensitivity", "data": str(TEXT), "context": CONTEXT, "match": "*.layers.2.*"
    }  # fmt: skip
    task = {"type": "logits", "tokens": tokens}
    data = {"version": 1, "source": {"path": str(MODEL)}, "tasks": [sensitivity, task]}
    record = run(parse_spec(json.dumps(data), "spec.yaml", tmp_path))
    after = mx.load(record.tasks[1].outputs["logits"])["logits"]
    model, _ = mlxpipe.load(MODEL, tokenizer=False)
    assert mx.array_equal(after, model(mx.array([tokens])).astype(mx.float32)).item()


def test_what_a_rule_of_the_spec_decides_is_left_alone_and_its_rule_kept(tmp_path):
    rule = {"match": f"{LAYER}.mlp.gate", "keep": True}
    table, _, outputs = measured(
        tmp_path,
        match=f"{LAYER}.mlp.*",
        candidates=[{"bits": 3}],
        target_bits_per_weight=4.8,
        sections={"quantize": [rule]},
    )
    assert f"{LAYER}.mlp.gate" in table["not_measured"]
    assert yaml.safe_load(Path(outputs["recipe"]).read_text())["quantize"][0] == rule


def test_a_candidate_that_a_module_has_already_is_not_tried(tmp_path):
    table, metrics, _ = measured(
        tmp_path, match=f"{LAYER}.mlp.*", candidates=[{"mode": "nvfp4"}, {"bits": 8}]
    )
    tried = {(row["unit"], row["scheme"]["mode"]) for row in table["rows"]}
    assert (f"{LAYER}.mlp.switch_mlp.up_proj", "nvfp4") not in tried
    assert (f"{LAYER}.mlp.switch_mlp.up_proj", "affine") in tried
    assert metrics["worst_kl"] == table["rows"][0]["kl"]
    assert metrics["tokens"] == CONTEXT - 1


WRONG = [
    ({"candidates": [{"bits": 7}]}, "unknown-scheme"),
    ({"target_bits_per_weight": 0.5}, "unreachable-target"),
    ({"match": "nothing"}, "nothing-to-try"),
    ({"match": "*.input_layernorm"}, "nothing-to-try"),
]


@pytest.mark.parametrize(("task", "code"), WRONG)
def test_what_cannot_be_measured_is_said_at_its_line_before_anything_is_loaded(
    tmp_path, task, code, monkeypatch
):
    monkeypatch.setattr("mlxpipe.graph.build.build_model", lambda *_: pytest.fail("loaded"))
    with pytest.raises(RunFailedError) as caught:
        run(spec_of(tmp_path, task))
    assert isinstance(caught.value.cause, UsageError)
    assert caught.value.cause.code == code
    assert caught.value.cause.diagnostics[0].origin.line is not None


BAD_SPECS = [{"candidates": []}, {"group": "model"}, {"target_bits_per_weight": 0}, {"data": None}]


@pytest.mark.parametrize("task", BAD_SPECS)
def test_a_wrong_task_is_an_error_of_the_spec(tmp_path, task):
    with pytest.raises(UsageError):
        spec_of(tmp_path, task)


def test_an_interrupted_measurement_leaves_the_model_whole(tmp_path):
    from mlxpipe.graph.swap import swapped

    model, _ = mlxpipe.load(MODEL, tokenizer=False)
    path = f"{LAYER}.mlp.gate"
    before = dict(model.named_modules())[path]
    other = dict(model.named_modules())["language_model.model.layers.2.mlp.gate"]
    with pytest.raises(KeyboardInterrupt), swapped(model, {path: other}):
        assert dict(model.named_modules())[path] is other
        raise KeyboardInterrupt
    assert dict(model.named_modules())[path] is before
