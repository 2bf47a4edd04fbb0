"""What `quantize:` makes of a plan."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest
from builders import (
    DATA,
    LLAMA,
    QWEN,
    Scheme,
    llama,
    llama_config,
    spec,
    write_checkpoint,
)
from mlx.utils import tree_flatten

import mlxpipe
from mlxpipe import make_plan
from mlxpipe.errors import PlanError, UsageError
from mlxpipe.plan.plan import Plan
from mlxpipe.quant.presets import PRESETS
from mlxpipe.spec import parse_spec
from mlxpipe.spec.quantize import PresetRule

NVFP4 = Scheme("nvfp4", 4, 16)
HEAD, Q, DOWN = "lm_head", "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
EMBED = "model.embed_tokens"


def plan_of(folder: Path, *rules: object, **sections: object) -> Plan:
    return make_plan(spec(folder, quantize=list(rules), **sections))


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "dense", llama(), llama_config())


def with_config(scheme: Scheme) -> dict[str, object]:
    fields = {"mode": scheme.mode, "bits": scheme.bits, "group_size": scheme.group_size}
    return llama_config(quantization=fields)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "packed", llama(NVFP4), with_config(NVFP4))


def codes(found) -> list[str]:
    return [item.code for item in found]


# --- rules -----------------------------------------------------------------------------------


def test_a_later_rule_wins(dense):
    plan = plan_of(dense, {"match": "*", "bits": 4}, {"match": "*.down_proj", "mode": "mxfp8"})
    assert str(plan.modules[DOWN].landing) == "mxfp8 8-bit g32"
    assert str(plan.modules[Q].landing) == "affine 4-bit g64"
    assert plan.modules[DOWN].recipe.origin.line > plan.modules[Q].recipe.origin.line


def test_the_last_rule_wins_even_if_it_keeps(dense):
    plan = plan_of(dense, {"match": "*", "bits": 4}, {"match": HEAD, "keep": True})
    assert plan.modules[HEAD].landing is None
    assert not plan.modules[HEAD].changed
    assert plan.modules[HEAD].recipe.label == "keep"


def test_plain_rules_override_a_preset(dense):
    plan = plan_of(dense, {"preset": "mixed_2_6", "group_size": 32}, {"match": HEAD, "dense": True})
    assert str(plan.modules[Q].landing) == "affine 2-bit g32"
    assert str(plan.modules[DOWN].landing) == "affine 6-bit g32"
    assert plan.modules[HEAD].landing is None


def test_a_preset_may_speak_of_some_modules_only(dense):
    plan = plan_of(dense, {"preset": "mixed_4_6", "match": "*.mlp.*"})
    changed = {path for path, module in plan.modules.items() if module.changed}
    assert changed == {path for path in LLAMA if ".mlp." in path}


def test_a_module_that_no_rule_matches_stays(packed):
    plan = plan_of(packed, {"match": HEAD, "bits": 8})
    assert plan.modules[Q].landing == NVFP4
    assert plan.modules[Q].recipe is None
    assert plan.modules[Q].as_json().keys().isdisjoint({"recipe", "stored"})


def test_the_json_has_what_is_computed_what_is_stored_and_the_rule(packed):
    module = plan_of(packed, {"match": HEAD, "bits": 8}).modules[HEAD].as_json()
    assert (module["mode"], module["bits"], module["group_size"]) == ("affine", 8, 64)
    assert module["stored"] == "nvfp4 4-bit g16"
    assert module["recipe"].startswith("spec.yaml:")
    assert module["grade"] == "lossy"


# --- grades and sizes ------------------------------------------------------------------------

GRADES = [
    ({"mode": "nvfp4"}, "exact"),
    ({"keep": True}, "exact"),
    ({"dense": True}, "exact"),
    ({"mode": "mxfp4"}, "lossy"),
    ({"bits": 8}, "lossy"),
]


@pytest.mark.parametrize(("rule", "grade"), GRADES)
def test_a_grade_is_lossy_where_a_value_changes(packed, rule, grade):
    plan = plan_of(packed, {"match": "*", **rule})
    assert {module.grade for module in plan.modules.values()} == {grade}


def test_affine_codes_round_when_they_become_dense(tmp_path):
    scheme = Scheme("affine", 4, 64)
    folder = write_checkpoint(tmp_path, llama(scheme), with_config(scheme))
    plan = plan_of(folder, {"match": "*", "dense": True})
    assert {module.grade for module in plan.modules.values()} == {"lossy"}


def test_dense_weights_that_stay_dense_are_exact(dense):
    plan = plan_of(dense, {"match": "*", "dense": True})
    assert plan.totals.grades == {"exact": len(LLAMA)}
    assert plan.totals.nbytes == plan.totals.stored_bytes


def test_bits_per_weight_before_and_after(dense):
    totals = plan_of(dense, {"match": "*", "mode": "nvfp4"}).totals
    assert totals.stored_bits_per_weight == 16
    assert totals.bits_per_weight == 4.5
    assert totals.weights == sum(map(prod, LLAMA.values()))
    saved = totals.weights * (16 - 4.5) / 8
    assert totals.stored_bytes - totals.nbytes == saved
    assert totals.as_json()["bits_per_weight"] == 4.5
    assert totals.as_json()["stored_bits_per_weight"] == 16
    assert totals.schemes == {"nvfp4 4-bit g16": len(LLAMA)}


RECIPES = [
    "[{preset: mixed_3_4}]",
    "[{preset: nvfp4_router8}]",
    "[{match: '*', mode: mxfp8}, {match: '*.o_proj', dense: true}]",
    "[{match: '*', dense: true}]",
    "[]",
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["mlx-nvfp4-mixed-qwen35moe", "mlx-mxfp4-q8-gptoss"])
def test_a_loaded_model_has_the_size_that_the_plan_says(name, recipe):
    text = f"version: 1\nsource: {{path: {DATA / name}}}\nquantize: {recipe}\n"
    loaded = parse_spec(text + "model: {kernels: packed}\n")
    plan = make_plan(loaded)
    model, _ = mlxpipe.load(loaded, dtype="checkpoint", tokenizer=False)
    arrays = dict(tree_flatten(model.parameters()))
    for path, module in plan.modules.items():
        leaves = [f"{path}.{leaf}" for leaf in ("weight", "scales", "biases")]
        found = sum(arrays[leaf].nbytes for leaf in leaves if leaf in arrays)
        assert found == module.final_bytes, path
    assert sum(array.nbytes for array in arrays.values()) == plan.totals.nbytes


# --- what cannot be --------------------------------------------------------------------------


def test_a_rule_that_matches_nothing_is_an_error(dense):
    plan = plan_of(dense, {"match": "*.dwon_proj", "bits": 4})
    (problem,) = plan.problems
    assert problem.code == "unmatched-override"
    assert "'*.dwon_proj'" in problem.message
    assert problem.origin.line is not None


@pytest.mark.parametrize(("reaction", "count"), [("warn", 1), ("ignore", 0)])
def test_unmatched_rules_are_treated_like_overrides(dense, reaction, count):
    plan = plan_of(dense, {"match": "a.b", "bits": 4}, quantization={"on_unmatched": reaction})
    assert not plan.problems
    assert len(plan.unmatched) == count


def test_a_rule_may_be_allowed_to_match_nothing(dense):
    plan = plan_of(dense, {"match": "mtp.x", "bits": 4}, quantization={"allow_unmatched": ["mtp*"]})
    assert not plan.unmatched
    assert not plan.problems


def test_a_norm_cannot_be_quantised(dense):
    plan = plan_of(dense, {"match": "model.norm", "bits": 4})
    assert codes(plan.problems) == ["not-quantisable"]
    assert "RMSNorm" in plan.problems[0].message


def test_a_glob_over_norms_alone_is_noted(dense):
    plan = plan_of(dense, {"match": "*layernorm", "bits": 4})
    assert not plan.problems
    assert "dead-rule" in codes(plan.notes)


def narrow(folder: Path) -> Path:
    config = llama_config(intermediate_size=96)
    tensors = llama()
    for leaf, shape in (("gate_proj", (96, 128)), ("up_proj", (96, 128)), ("down_proj", (128, 96))):
        name = f"model.layers.0.mlp.{leaf}.weight"
        tensors[name] = tensors[name]._replace(shape=shape, data=bytes(2 * prod(shape)))
    return write_checkpoint(folder, tensors, config)


def test_a_glob_leaves_what_its_group_size_does_not_divide(tmp_path):
    plan = plan_of(narrow(tmp_path), {"match": "*", "bits": 4})
    assert plan.modules[DOWN].landing is None
    assert str(plan.modules[Q].landing) == "affine 4-bit g64"
    (note,) = plan.notes
    assert note.code == "left-as-stored"
    assert "96 = 1·64 + 32" in note.found
    assert not plan.problems


def test_a_rule_that_names_it_shows_the_arithmetic(tmp_path):
    plan = plan_of(narrow(tmp_path), {"match": DOWN, "bits": 4})
    (problem,) = plan.problems
    assert problem.code == "cannot-quantise"
    assert problem.module == DOWN
    assert "96 = 1·64 + 32" in problem.found
    with pytest.raises(PlanError):
        plan.require_sound()


@pytest.mark.parametrize(
    "rule",
    [
        {"match": "*", "mode": "nvfp4", "bits": 8},
        {"match": "*", "bits": 7},
        {"match": "*", "mode": "affine", "group_size": 16},
        {"preset": "mixed_4_6", "group_size": 48},
        {"preset": "nvfp4_router8", "group_size": 32},
    ],
)
def test_schemes_that_mlx_does_not_have_are_errors_of_the_spec(dense, rule):
    with pytest.raises(UsageError) as caught:
        plan_of(dense, rule)
    assert caught.value.code == "unknown-scheme"
    assert caught.value.diagnostics[0].origin.line is not None


# --- without an architecture -----------------------------------------------------------------


def test_a_check_matches_rules_and_leaves_presets(dense):
    rules = [{"preset": "mixed_4_6"}, {"match": HEAD, "bits": 4}, {"match": "nothing", "bits": 4}]
    plan = make_plan(spec(dense, quantize=rules), architecture=False)
    assert str(plan.modules[HEAD].landing) == "affine 4-bit g64"
    assert plan.modules[Q].recipe is None
    assert codes(plan.problems) == ["unmatched-override"]
    assert "preset-unresolved" in codes(plan.notes)


def test_presets_of_the_spec_are_those_of_the_table():
    (names,) = (PresetRule.model_fields["preset"].annotation.__args__,)
    assert names == tuple(PRESETS)


def test_a_recipe_reaches_every_kind_of_module():
    plan = make_plan(spec(QWEN, quantize=[{"match": "*", "mode": "mxfp8"}]))
    assert {module.kind for module in plan.modules.values() if module.changed} >= {
        "linear",
        "embedding",
        "experts",
    }
    assert json.dumps(plan.as_json())
