"""Overrides without a module, tensors without a place, modules without a tensor."""

from __future__ import annotations

import pytest
from builders import (
    AFFINE_4_64,
    AFFINE_8_64,
    HEAD,
    Raw,
    llama,
    llama_config,
    quantised_llama,
    spec,
    write_checkpoint,
    zeros,
)

from mlxpipe import explain, load, make_plan
from mlxpipe.errors import MlxpipeError, PlanError

GLOBAL = {"bits": 4, "group_size": 64}
NORM = "model.norm"


@pytest.fixture
def plan(tmp_path):
    def make(tensors, config, **sections):
        write_checkpoint(tmp_path, tensors, config)
        return make_plan(spec(tmp_path, **sections))

    return make


def quantized(**block):
    return llama_config(quantization={**GLOBAL, **block})


def codes(findings):
    return [finding.code for finding in findings]


# --- overrides -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on_unmatched", "problems", "listed"),
    [("error", 1, 1), ("warn", 0, 1), ("ignore", 0, 0)],
)
def test_an_override_that_matches_nothing_is_named_with_near_names(
    plan, on_unmatched, problems, listed
):
    block = {"model.layers.0.mlp.gate_prj": {"bits": 8}}
    found = plan(
        llama(AFFINE_4_64), quantized(**block), quantization={"on_unmatched": on_unmatched}
    )
    assert codes(found.problems) == ["unmatched-override"] * problems
    assert len(found.unmatched) == listed
    for one in found.unmatched:
        assert "model.layers.0.mlp.gate_proj" in one.help
        assert one.origin.pointer == "/quantization/model.layers.0.mlp.gate_prj"


@pytest.mark.parametrize(
    "sections",
    [
        {"quantization": {"allow_unmatched": ["mtp.*"]}},
        {"quantization": {"allow_unmatched": ["*.fc"]}},
        {"naming": {"drop": ["mtp.*"]}},
    ],
    ids=["allow_unmatched", "by its end", "drop"],
)
def test_an_unmatched_override_may_be_allowed(plan, sections):
    config = quantized(**{"mtp.layers.0.fc": {"bits": 8}})
    assert codes(plan(llama(AFFINE_4_64), config).problems) == ["unmatched-override"]
    found = plan(llama(AFFINE_4_64), config, **sections)
    assert (found.problems, found.unmatched) == ((), ())


def test_a_pattern_of_the_spec_that_matches_nothing_is_told_at_its_line(plan):
    rules = [{"match": "*.mlp.router", "bits": 8}]
    found = plan(llama(AFFINE_4_64), quantized(), quantization={"overrides": rules})
    (problem,) = found.problems
    assert problem.code == "unmatched-override"
    assert (problem.origin.file, problem.origin.context) == ("spec.yaml", "quantization.overrides")
    assert problem.origin.line


@pytest.mark.parametrize("key", [NORM, "language_model.model.norm", "norm", "model.norm.weight"])
def test_an_override_on_a_norm_is_not_quantisable(plan, key):
    found = plan(llama(AFFINE_4_64), quantized(**{key: {"bits": 8}}))
    (problem,) = found.problems
    assert problem.code == "not-quantisable"
    assert "RMSNorm" in problem.message
    assert problem.origin.pointer == f"/quantization/{key}"


@pytest.mark.parametrize("key", [NORM, "language_model.model.norm"])
def test_that_a_norm_is_dense_may_be_said(plan, key):
    found = plan(llama(AFFINE_4_64), quantized(**{key: False})).require_sound()
    assert found.unmatched == ()


def test_a_glob_may_pass_over_norms(plan):
    rules = [{"match": "*", "bits": 4}]
    found = plan(llama(AFFINE_4_64), quantized(), quantization={"overrides": rules})
    assert found.require_sound().modules[HEAD].verdict.source == "spec"


# --- tied embeddings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "left_over",
    [(), ("scales", "biases"), ("weight", "scales", "biases"), ("weight",)],
    ids=lambda leaves: "+".join(leaves) or "none",
)
@pytest.mark.parametrize("key", ["lm_head", "language_model.lm_head"])
def test_a_tied_heads_override_is_dead_and_its_left_overs_go(tmp_path, left_over, key):
    tensors = quantised_llama(lambda path: AFFINE_8_64)
    kept = {f"lm_head.{leaf}" for leaf in left_over}
    tensors = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith("lm_head") or name in kept
    }
    block = {"bits": 8, "group_size": 64, key: {"bits": 4}}
    config = llama_config(quantization=block, tie_word_embeddings=True)
    folder = write_checkpoint(tmp_path, tensors, config)
    found = make_plan(folder).require_sound()
    assert HEAD not in found.modules
    assert codes(found.notes) == [*(["left-out"] if kept else []), "dead-override"]
    assert set(found.unloaded) == kept
    assert found.notes[-1].origin.pointer == f"/quantization/{key}"
    model, _ = load(folder, tokenizer=False)
    assert "lm_head" not in model


def test_left_over_companions_of_a_head_that_is_not_tied_are_no_left_overs(plan):
    tensors = llama(AFFINE_4_64)
    del tensors["lm_head.weight"]
    assert "missing-tensor" in codes(plan(tensors, quantized()).problems)


# --- tensors ---------------------------------------------------------------------------------


def test_a_missing_tensor_is_named_with_what_is_near(plan):
    tensors = llama(AFFINE_4_64)
    tensors["model.norms.weight"] = tensors.pop("model.norm.weight")
    problems = {problem.code: problem for problem in plan(tensors, quantized()).problems}
    assert set(problems) == {"missing-tensor", "unexpected-tensor"}
    assert problems["missing-tensor"].module == NORM
    assert "model.norms.weight" in problems["missing-tensor"].found
    assert "model.norm.weight" in problems["unexpected-tensor"].expected


def test_an_unexpected_tensor_may_be_dropped(plan):
    tensors = llama(AFFINE_4_64) | {"stray.fc.weight": zeros("F16", 4, 4)}
    (problem,) = plan(tensors, quantized()).problems
    assert problem.code == "unexpected-tensor"
    assert "naming.drop" in problem.help
    found = plan(tensors, quantized(), naming={"drop": ["stray.*"]}).require_sound()
    assert found.unloaded == ("stray.fc.weight",)
    assert found.totals.loaded == len(tensors) - 1


@pytest.mark.parametrize(
    ("companion", "code"),
    [("g_idx", "unexpected-tensor"), ("pre_quant_scale", "unsupported-companion")],
)
def test_a_companion_that_nobody_consumes_is_fatal(plan, companion, code):
    name = f"model.layers.0.self_attn.q_proj.{companion}"
    (problem,) = plan(llama(AFFINE_4_64) | {name: zeros("F16", 128)}, quantized()).problems
    assert (problem.code, str(problem.origin)) == (code, f"model.safetensors#/{name}")


@pytest.mark.parametrize(
    ("name", "tensor", "code"),
    [
        ("model.norm.weight", zeros("F32", 64), "shape-mismatch"),
        ("lm_head.weight", zeros("F16", 64, 64), "shape-mismatch"),
        ("lm_head.weight", zeros("F16", 32, 128), "shape-mismatch"),
        ("lm_head.weight", zeros("F16", 64, 128, 1), "shape-mismatch"),
    ],
    ids=["norm", "columns", "rows", "rank"],
)
def test_a_dense_tensor_of_another_shape(plan, name, tensor, code):
    (problem,) = plan(llama() | {name: tensor}, llama_config()).problems
    assert (problem.code, problem.module) == (code, name.removesuffix(".weight"))
    assert str(problem.origin) == f"model.safetensors#/{name}"


def test_a_packed_tensor_of_another_width_fits_no_scheme(plan):
    """The columns of packed codes are the judge's: here they are of a narrower model."""
    narrow = {
        f"lm_head.{leaf}": zeros(dtype, 64, columns)
        for leaf, dtype, columns in (
            ("weight", "U32", 12),
            ("scales", "F16", 3),
            ("biases", "F16", 3),
        )
    }
    found = plan(llama(AFFINE_4_64) | narrow, llama_config())
    assert codes(found.problems) == ["no-scheme"]
    assert "32·12/128 = 3" in found.problems[0].found
    assert str(found.problems[0].origin) == "model.safetensors#/lm_head.weight"


def test_an_error_about_names_says_which_file_holds_the_tensor(plan):
    tensors = llama(AFFINE_4_64) | {"x.weight_scale": zeros("F16", 1)}
    tensors |= {"x.weight": zeros("U32", 1, 8), "x.scales": zeros("F16", 1, 1)}
    with pytest.raises(PlanError) as caught:
        plan(tensors, quantized())
    (finding,) = caught.value.diagnostics
    assert finding.code == "name-collision"
    assert str(finding.origin) in (
        "model.safetensors#/x.scales",
        "model.safetensors#/x.weight_scale",
    )


def test_a_missing_tensor_is_missing_in_the_checkpoint(plan):
    tensors = {name: raw for name, raw in llama().items() if name != "model.norm.weight"}
    (problem,) = plan(tensors, llama_config()).problems
    assert (problem.code, str(problem.origin)) == ("missing-tensor", ".")


def test_what_is_wrong_with_a_whole_side_file_is_at_its_first_line(plan, tmp_path):
    (tmp_path / "hf_quant_config.json").write_text("{}")
    (problem,) = plan(llama(), llama_config()).problems
    assert problem.code == "malformed-quantization"
    assert str(problem.origin) == "./hf_quant_config.json:1:1"


def test_a_packed_tensor_with_too_few_rows(plan):
    short = {
        f"lm_head.{leaf}": zeros(dtype, 32, columns)
        for leaf, dtype, columns in (
            ("weight", "U32", 16),
            ("scales", "F16", 2),
            ("biases", "F16", 2),
        )
    }
    (problem,) = plan(llama(AFFINE_4_64) | short, quantized()).problems
    assert (problem.code, problem.expected) == ("shape-mismatch", "[64, 128] before packing")


@pytest.mark.parametrize("shape", [(), (2,), (1, 64, 2)], ids=str)
def test_scales_of_any_rank_are_judged_and_never_crash(plan, shape):
    tensors = llama(AFFINE_4_64) | {"lm_head.scales": zeros("F16", *shape)}
    assert codes(plan(tensors, llama_config()).problems) == ["no-scheme"]


@pytest.mark.parametrize("dtype", ["F8_E4M3FNUZ", "F8_E5M2FNUZ"])
def test_a_type_that_mlx_does_not_have_is_an_error_unless_dropped(plan, dtype):
    tensors = llama(AFFINE_4_64) | {"x.weight": Raw(dtype, (2,), b"\0\0")}
    with pytest.raises(PlanError, match=dtype) as caught:
        plan(tensors, quantized())
    assert caught.value.code == "unsupported-dtype"
    plan(tensors, quantized(), naming={"drop": ["x.*"]}).require_sound()


def test_two_tensors_for_one_parameter_are_reported(plan):
    tensors = llama(AFFINE_4_64) | {"norm.weight": zeros("F32", 128)}
    (problem,) = plan(tensors, quantized()).problems
    assert problem.found == "norm.weight"


# --- the architecture ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "code", "word"),
    [
        ("../llama", "no-model-type", "'../llama'"),
        ("os.path", "no-model-type", "'os.path'"),
        ("llama\n", "no-model-type", "llama"),
        ("a" * 65, "no-model-type", "aaa"),
        ("", "no-model-type", "''"),
        (None, "no-model-type", "None"),
        (3, "no-model-type", "3"),
        ([], "no-model-type", "[]"),
    ],
)
def test_a_model_type_is_a_known_name_and_never_a_path(plan, model_type, code, word):
    with pytest.raises(MlxpipeError) as caught:
        plan(llama(), llama_config(model_type=model_type))
    assert caught.value.code == code
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "code", "word"),
    [
        ("lama", "unknown-architecture", "near names: llama"),
        ("qwen3_5_moee", "unknown-architecture", "qwen3_5_moe"),
        ("zzzzzz", "unknown-architecture", "newer mlx-lm"),
        ("base", "broken-architecture", "base"),
        ("__init__", "broken-architecture", "__init__"),
    ],
)
def test_without_an_architecture_the_headers_are_planned_and_nothing_runs(
    plan, model_type, code, word
):
    declared = {**quantized(), "model_type": model_type}
    known = plan(llama(AFFINE_4_64), {**declared, "model_type": "llama"})
    found = plan(llama(AFFINE_4_64), declared)
    assert {path: module.scheme for path, module in found.modules.items()} == {
        path: module.scheme for path, module in known.modules.items()
    }
    assert found.totals.weights == known.totals.weights
    told = [note for note in found.notes if note.severity == "warning"]
    assert [note.code for note in told] == [code, "unverified"]
    assert found.as_json()["unverified"][0]["code"] == code
    with pytest.raises(MlxpipeError) as caught:
        found.require_sound()
    assert caught.value.code == code
    assert word in str(caught.value)


def test_a_config_that_the_architecture_refuses(plan):
    config = llama_config()
    del config["hidden_size"]
    with pytest.raises(PlanError, match="hidden_size") as caught:
        plan(llama(), config)
    assert caught.value.code == "bad-config"


# --- explain ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["lm_head", "language_model.lm_head", "lm_head.weight", "lm_head.scales", "model.lm_head"],
)
def test_explain_finds_a_module_by_any_of_its_names(plan, name):
    found = plan(llama(AFFINE_4_64), quantized(lm_head={"bits": 4}))
    told = explain(found, name)
    assert told.path == HEAD
    (claim, general) = told.as_json()["claims"]
    assert (claim["fate"], claim["source"]) == ("won", "config")
    assert general["fate"] == "agrees"
    assert "bits = 32·16/128 = 4" in told.as_json()["arithmetic"]


def test_explain_offers_near_names(plan):
    with pytest.raises(PlanError, match="near names: lm_head"):
        explain(plan(llama(AFFINE_4_64), quantized()), "lm_heed")
