"""Whom a plan believes, from a checkpoint's files to the verdict on each module."""

from __future__ import annotations

import json
import re

import pytest
from builders import (
    AFFINE_4_64,
    AFFINE_8_32,
    AFFINE_8_64,
    DATA,
    DOWN,
    EMBED,
    GATE,
    GPTOSS,
    HEAD,
    LLAMA,
    MXFP4,
    MXFP8,
    NVFP4,
    QWEN,
    SPELLINGS,
    STORE,
    Blob,
    Q,
    llama,
    llama_config,
    read_safetensors,
    spec,
    write_checkpoint,
    write_store,
    zoo_store_spec,
)

from mlxpipe import make_plan
from mlxpipe.errors import PlanError, SourceError
from mlxpipe.quant.modes import Scheme

GLOBAL_4 = {"bits": 4, "group_size": 64}
ROUTER = "language_model.model.layers.0.mlp.gate"


@pytest.fixture
def plan(tmp_path):
    """Plans a llama of zeros: `plan(tensors, config.json, **spec sections)`."""

    def make(tensors, config, *, architecture=True, **sections):
        write_checkpoint(tmp_path, tensors, config)
        return make_plan(spec(tmp_path, **sections), architecture=architecture)

    return make


def verdicts(plan):
    return {path: module.scheme for path, module in plan.modules.items()}


def sources(plan):
    return {path: module.verdict.source for path, module in plan.modules.items()}


def quiet(plan):
    """A sound plan that has nothing to say."""
    plan.require_sound()
    return not (plan.conflicts or plan.stale or plan.unmatched or plan.notes)


# --- no declaration --------------------------------------------------------------------------


def test_no_config_is_an_error_that_names_it(plan):
    with pytest.raises(SourceError, match=r"config\.json") as caught:
        plan(llama(), None)
    assert caught.value.code == "missing-config"


def test_no_config_needs_no_architecture_where_names_suffice(plan):
    found = plan(llama(NVFP4), None, architecture=False)
    assert verdicts(found) == dict.fromkeys(LLAMA, NVFP4)
    assert set(sources(found).values()) == {"shapes"}


@pytest.mark.parametrize("scheme", [None, AFFINE_4_64, AFFINE_8_32, NVFP4, MXFP8], ids=str)
@pytest.mark.parametrize("block", [{}, {"quantization": {}}, {"quantization": None}], ids=str)
def test_models_without_a_block_are_what_their_tensors_are(plan, scheme, block):
    found = plan(llama(scheme), llama_config(**block))
    assert quiet(found)
    assert verdicts(found) == dict.fromkeys(LLAMA, scheme)
    assert set(sources(found).values()) == {"shapes"}
    assert {module.verdict.dense for module in found.modules.values()} == {scheme is None}


def test_malformed_json_is_reported_at_its_line(plan):
    with pytest.raises(SourceError) as caught:
        plan(llama(), '{"model_type": "llama",\n "quantization": {"bits": 4,}}')
    assert caught.value.code == "malformed-json"
    assert caught.value.diagnostics[0].origin.line == 2


@pytest.mark.parametrize(
    ("block", "code"),
    [
        ("nvfp4", "malformed-quantization"),
        ({Q: 8}, "malformed-quantization"),
        ({Q: {"bits": 7}}, "unknown-scheme"),
    ],
)
def test_a_malformed_block_is_a_problem_of_the_plan(plan, block, code):
    found = plan(llama(), llama_config(quantization=block))
    (problem,) = found.problems
    assert problem.code == code
    assert problem.origin.pointer.startswith("/quantization")
    with pytest.raises(PlanError):
        found.require_sound()


# --- globals and overrides -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "scheme"),
    [
        ({"group_size": 64, "bits": 4}, AFFINE_4_64),
        ({"group_size": 32, "bits": 8}, AFFINE_8_32),
        ({"group_size": 16, "bits": 4, "mode": "nvfp4"}, NVFP4),
        ({"group_size": 32, "bits": 4, "mode": "mxfp4"}, MXFP4),
        ({"group_size": 64, "bits": 4, "mode": "affine"}, AFFINE_4_64),
    ],
    ids=["flat globals", "other sizes", "explicit mode", "mxfp4", "affine said"],
)
@pytest.mark.parametrize("key", ["quantization", "quantization_config"])
@pytest.mark.parametrize("architecture", [True, False], ids=["architecture", "names"])
def test_globals_decide_under_either_key(plan, block, scheme, key, architecture):
    found = plan(llama(scheme), llama_config(**{key: block}), architecture=architecture)
    assert quiet(found)
    assert verdicts(found) == dict.fromkeys(LLAMA, scheme)
    assert set(sources(found).values()) == {"config"}
    assert f"#/{key}" in found.modules[Q].as_json()["origin"]


def test_omitted_mode_is_affine_even_under_another_global_mode(plan):
    block = {"mode": "nvfp4", "bits": 4, "group_size": 16, Q: {"bits": 8}}
    found = plan(llama(NVFP4, q_proj=AFFINE_8_64), llama_config(quantization=block))
    assert quiet(found)
    assert verdicts(found)[Q] == AFFINE_8_64


def test_several_overrides_beat_the_global(plan):
    block = {
        **GLOBAL_4,
        Q: {"bits": 8, "group_size": 32},
        DOWN: {"mode": "mxfp8"},
        HEAD: False,
        EMBED: {"mode": "nvfp4", "bits": 4, "group_size": 16},
    }
    tensors = llama(
        AFFINE_4_64, q_proj=AFFINE_8_32, down_proj=MXFP8, lm_head=None, embed_tokens=NVFP4
    )
    found = plan(tensors, llama_config(quantization=block))
    assert quiet(found)
    own = {Q: AFFINE_8_32, DOWN: MXFP8, HEAD: None, EMBED: NVFP4}
    assert verdicts(found) == dict.fromkeys(LLAMA, AFFINE_4_64) | own


def test_a_global_affine_4_64_keeps_4_bits_without_an_architecture(plan):
    """The tensors alone could be 2, 4 or 8 bits."""
    blind = plan(llama(AFFINE_4_64), llama_config(), architecture=False)
    assert all(module.verdict.open for module in blind.modules.values())
    told = plan(llama(AFFINE_4_64), llama_config(quantization=GLOBAL_4), architecture=False)
    assert set(verdicts(told).values()) == {AFFINE_4_64}


@pytest.mark.parametrize(
    "key",
    [
        "model.layers.0.self_attn.q_proj",
        "layers.0.self_attn.q_proj",
        "language_model.model.layers.0.self_attn.q_proj",
        "model.language_model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.q_proj.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "layers.0.self_attn.q_proj.scales",
    ],
)
@pytest.mark.parametrize("architecture", [True, False], ids=["architecture", "names"])
def test_override_keys_of_any_namespace_find_their_module(plan, key, architecture):
    config = llama_config(quantization={**GLOBAL_4, key: {"bits": 8}})
    found = plan(llama(AFFINE_4_64, q_proj=AFFINE_8_64), config, architecture=architecture)
    assert quiet(found)
    assert verdicts(found)[Q] == AFFINE_8_64
    assert found.modules[Q].as_json()["origin"].endswith(f"/quantization/{key}")


@pytest.mark.parametrize("key", ["old.layers.0.attn.q_proj", "old.layers.0.attn.q_proj.weight"])
@pytest.mark.parametrize(
    "rules",
    [
        [{"match": r"^old\.(.*)\.attn\.", "replace": r"model.\1.self_attn."}],
        [
            {"match": "^old", "replace": "model"},
            {"match": r"\.attn\.q_proj\.weight$", "replace": ".self_attn.q_proj.weight"},
        ],
    ],
    ids=["one rule", "a rule written for weights"],
)
def test_the_users_rules_rename_tensors_and_override_keys_alike(plan, key, rules):
    tensors = {
        name.replace("model.layers.0.self_attn.q_proj", "old.layers.0.attn.q_proj"): tensor
        for name, tensor in llama(AFFINE_4_64, q_proj=AFFINE_8_64).items()
    }
    config = llama_config(quantization={**GLOBAL_4, key: {"bits": 8}})
    found = plan(tensors, config, naming={"rules": rules})
    assert quiet(found)
    assert verdicts(found)[Q] == AFFINE_8_64
    assert "old.layers.0.attn.q_proj.weight" in found.modules[Q].tensors


def test_a_global_that_does_not_hold_somewhere_is_set_aside_there(plan):
    found = plan(llama(AFFINE_4_64, q_proj=AFFINE_8_64), llama_config(quantization=GLOBAL_4))
    assert sources(found.require_sound())[Q] == "shapes"
    (warning,) = found.notes
    assert (warning.code, warning.module, warning.severity) == ("global-set-aside", Q, "warning")


# --- the spec --------------------------------------------------------------------------------


def test_the_specs_later_rule_wins_and_overrides_the_checkpoint(plan):
    rules = [
        {"match": "*_proj", "bits": 4},
        {"match": "re:q_proj$", "bits": 8},
        {"match": "lm_head", "dense": True},
    ]
    config = llama_config(quantization={**GLOBAL_4, Q: {"mode": "nvfp4"}, HEAD: {"bits": 4}})
    found = plan(
        llama(AFFINE_4_64, q_proj=AFFINE_8_64, lm_head=None),
        config,
        quantization={"overrides": rules},
    ).require_sound()
    assert verdicts(found)[Q] == AFFINE_8_64
    assert found.modules[HEAD].verdict.dense
    assert {sources(found)[path] for path in (Q, GATE, HEAD)} == {"spec"}
    assert [stale.module for stale in found.stale] == [HEAD, Q]
    assert found.modules[Q].verdict.origin.file == "spec.yaml"


def blobs(scheme, stamp):
    tensors = llama(scheme, "ollama")
    return [Blob("all", tensors, stamp)]


@pytest.mark.parametrize(
    ("stamp", "scheme"),
    [
        ({"quant_type": "int8", "group_size": "32"}, AFFINE_8_32),
        ({"quant_type": "int4", "bits": "8", "group_size": "32"}, AFFINE_8_32),
        (
            {"quant_type": "int4", "mode": "affine", "bits": "2", "group_size": "128"},
            Scheme("affine", 2, 128),
        ),
        ({"quant_type": "int4"}, AFFINE_4_64),
    ],
    ids=["type and size", "explicit bits", "explicit mode", "the type's defaults"],
)
def test_a_stores_stamp_decides_where_the_tensors_leave_several(tmp_path, stamp, scheme):
    """Explicit bits and mode beat the type's defaults; inference overrides none of them."""
    write_store(tmp_path, blobs(scheme, stamp), llama_config())
    for architecture in (True, False):
        found = make_plan(
            spec(tmp_path, source={"ollama": "tiny", "store": "."}), architecture=architecture
        )
        assert quiet(found)
        assert verdicts(found) == dict.fromkeys(LLAMA, scheme)
        assert set(sources(found).values()) == {"metadata"}


def test_an_unknown_quant_type_is_refused_and_names_the_blob(tmp_path):
    write_store(tmp_path, blobs(AFFINE_4_64, {"quant_type": "int5"}), llama_config())
    found = make_plan(spec(tmp_path, source={"ollama": "tiny", "store": "."}))
    with pytest.raises(PlanError, match="unknown quant_type 'int5'") as caught:
        found.require_sound()
    assert caught.value.code == "unknown-quant-type"
    assert "(all)" in str(found.problems[0].origin)


@pytest.mark.parametrize("on_conflict", ["error", "warn", "ignore"])
def test_two_feasible_claims_conflict_and_on_conflict_decides(tmp_path, on_conflict):
    """Without in_features both fit; config.json wins by precedence."""
    config = llama_config(quantization={Q: {"bits": 8, "group_size": 32}})
    stamp = {"quant_type": "int4"}
    only_q = {name: raw for name, raw in llama(AFFINE_4_64, "ollama").items() if Q in name}
    write_store(tmp_path, [Blob("q", only_q, stamp)], config)
    source = {"ollama": "tiny", "store": "."}
    found = make_plan(
        spec(tmp_path, source=source, quantization={"on_conflict": on_conflict}),
        architecture=False,
    )
    assert (verdicts(found)[Q], sources(found)[Q]) == (AFFINE_8_32, "config")
    assert [one.code for one in found.conflicts] == ["conflict"] * (on_conflict != "ignore")
    assert [one.code for one in found.problems] == ["conflict"] * (on_conflict == "error")
    if on_conflict == "error":
        with pytest.raises(PlanError, match="metadata says") as caught:
            found.require_sound()
        assert caught.value.code == "conflict"


def test_two_blocks_that_disagree_are_a_conflict_and_may_be_an_error(plan):
    config = llama_config(
        quantization={**GLOBAL_4, Q: {"bits": 4}},
        quantization_config={**GLOBAL_4, Q: {"bits": 8}},
    )
    found = plan(llama(AFFINE_4_64), config).require_sound()
    (conflict,) = found.conflicts
    assert (conflict.code, conflict.module) == ("disagreeing-blocks", Q)
    strict = plan(llama(AFFINE_4_64), config, quantization={"on_conflict": "error"})
    with pytest.raises(PlanError) as caught:
        strict.require_sound()
    text = str(caught.value)
    assert caught.value.code == "disagreeing-blocks"
    assert f"/quantization/{Q}" in text
    assert f"/quantization_config/{Q}" in text


def test_two_blocks_of_another_producer_that_disagree_are_a_conflict(tmp_path):
    """The one at the top is read, as transformers does; the other one is not passed over."""
    folder = DATA / "ct-mixed-llama"
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    block = config["quantization_config"]
    for other, count in ((block, 0), (block | {"ignore": []}, 1)):
        text = json.dumps(config | {"text_config": {"quantization_config": other}})
        (tmp_path / "config.json").write_text(text)
        found = make_plan(tmp_path).require_sound()
        assert [one.code for one in found.conflicts] == ["disagreeing-blocks"] * count
    assert found.conflicts[0].origin.pointer == "/text_config/quantization_config/ignore"
    assert "'ignore'" in found.conflicts[0].message
    strict = make_plan(spec(tmp_path, quantization={"on_conflict": "error"}))
    assert [one.code for one in strict.problems] == ["disagreeing-blocks"]


# --- the zoo ---------------------------------------------------------------------------------


def declared(folder):
    """Every override of a zoo directory's config.json as a whole scheme."""
    block = json.loads((folder / "config.json").read_text())["quantization"]
    return {
        path: (said.get("mode", "affine"), said["bits"], said["group_size"])
        for path, said in block.items()
        if isinstance(said, dict)
    }


@pytest.mark.parametrize("folder", [QWEN, GPTOSS], ids=lambda folder: folder.name)
def test_a_mixed_checkpoint_is_what_its_config_declares(folder):
    found = make_plan(folder)
    assert quiet(found)
    rows = {path: module.as_json() for path, module in found.modules.items()}
    for path, scheme in declared(folder).items():
        row = rows[path]
        assert (row["mode"], row["bits"], row["group_size"]) == scheme
        assert row["source"] == "config"
        assert row["origin"].endswith(f"#/quantization/{path}")


def test_the_store_with_a_stale_gate_entry_resolves_to_the_override():
    found = make_plan(zoo_store_spec()).require_sound()
    assert verdicts(found) == verdicts(make_plan(QWEN))
    row = found.modules[ROUTER].as_json()
    assert (row["mode"], row["bits"], row["group_size"]) == ("affine", 8, 64)
    assert row["source"] == "config"
    stale = {one.module: one for one in found.stale}
    assert set(stale) == set(declared(QWEN))
    assert stale[ROUTER].message == (
        f"metadata says '{ROUTER}' is nvfp4 4-bit g16, config says affine 8-bit g64"
    )
    assert stale[ROUTER].origin.pointer == "/__metadata__/quant_type"
    assert found.conflicts == ()


def test_metadata_over_config_is_the_contradiction_with_its_arithmetic():
    """The origin's failure: trusting the stale stamp must not load anything."""
    found = make_plan(zoo_store_spec(quantization={"precedence": "metadata > config"}))
    with pytest.raises(PlanError) as caught:
        found.require_sound()
    assert caught.value.code == "contradiction"
    problem = next(each for each in found.problems if each.module == ROUTER)
    text = problem.render()
    assert "bits = 32·32/128 = 8" in text
    assert "group_size = 128/2 = 64" in text
    assert "#/__metadata__/quant_type" in text
    assert re.search(rf"config\.json:\d+:\d+#/quantization/{re.escape(ROUTER)}", text)
    assert "= help: trust config over metadata: quantization.precedence: config > metadata" in text
    assert ROUTER in str(caught.value)
    assert {each.module for each in found.problems} == set(declared(QWEN))


def test_every_blob_of_the_zoos_store_is_stamped_with_the_global():
    """What makes the stale entries above: the router's own blob says nvfp4."""
    stamps = [
        read_safetensors(blob)[1]
        for blob in (STORE / "blobs").iterdir()
        if blob.read_bytes()[8:9] == b"{"
    ]
    assert {stamp["quant_type"] for stamp in stamps if stamp} == {"nvfp4"}


@pytest.mark.parametrize("convention", SPELLINGS)
def test_a_plan_is_the_same_under_every_naming_of_companions(plan, convention):
    tensors = llama(AFFINE_4_64, convention, embed_tokens=AFFINE_8_32, lm_head=NVFP4)
    block = {**GLOBAL_4, EMBED: {"bits": 8, "group_size": 32}, HEAD: {"mode": "nvfp4"}}
    found = plan(tensors, llama_config(quantization=block))
    assert quiet(found)
    own = {EMBED: AFFINE_8_32, HEAD: NVFP4}
    assert verdicts(found) == dict.fromkeys(LLAMA, AFFINE_4_64) | own
    assert found.totals.loaded == len(tensors)
