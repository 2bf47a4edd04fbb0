"""Claims of config.json and of override files in mlx-lm's form."""

from __future__ import annotations

import json

import pytest
from builders import (
    AFFINE_4_64,
    AFFINE_8_32,
    AFFINE_8_64,
    MXFP4,
    NVFP4,
    Q,
    llama,
    llama_config,
    spec,
    write_checkpoint,
)
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe import make_plan
from mlxpipe.checkpoint import json_pointer
from mlxpipe.errors import MlxpipeError, Origin, UsageError
from mlxpipe.quant.claims import Block, Reach
from mlxpipe.quant.mlx_dialect import read_config

GLOBAL = {"group_size": 16, "bits": 4, "mode": "nvfp4"}


def read(config):
    return read_config(
        Block(config, lambda below: Origin("config.json", pointer=json_pointer(*below)))
    )


def schemes(config):
    """Pattern ("" for the global) -> scheme, of a config that has no faults."""
    reading = read(config)
    assert reading.findings == ()
    return {claim.pattern: claim.scheme for claim in reading.claims}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, {}),
        ({"bits": 4, "group_size": 64}, {"": AFFINE_4_64}),
        ({"bits": 8}, {"": AFFINE_8_64}),
        (GLOBAL, {"": NVFP4}),
        ({"mode": "mxfp4"}, {"": MXFP4}),
        ({**GLOBAL, "x": {"bits": 8}}, {"": NVFP4, "x": AFFINE_8_64}),
        ({**GLOBAL, "x": {"bits": 8, "group_size": 32}}, {"": NVFP4, "x": AFFINE_8_32}),
        (
            {**GLOBAL, "x": {"mode": "mxfp4"}, "y": {"bits": 8, "mode": "affine"}},
            {"": NVFP4, "x": MXFP4, "y": AFFINE_8_64},
        ),
        ({**GLOBAL, "x": False}, {"": NVFP4, "x": None}),
        ({**GLOBAL, "x": {}}, {"": NVFP4, "x": None}),
        ({**GLOBAL, "x": True}, {"": NVFP4, "x": NVFP4}),
        ({**GLOBAL, "x": {"bits": 8, "mode": None}}, {"": NVFP4, "x": AFFINE_8_64}),
        ({"x": {"bits": 8, "linear_class": "L"}}, {"x": AFFINE_8_64}),
        ({"a": {"0": {"x": {"bits": 8}, "y": False}}}, {"a.0.x": AFFINE_8_64, "a.0.y": None}),
    ],
    ids=[
        "empty",
        "flat globals",
        "omitted mode is affine",
        "explicit mode",
        "the mode's defaults",
        "an override inherits nothing",
        "an override with its own sizes",
        "several overrides",
        "false is dense",
        "an empty override is dense",
        "true is the global",
        "a null mode is omitted",
        "keys that say nothing",
        "nested",
    ],
)
def test_a_block_as_mlx_reads_it(block, expected):
    assert schemes({"quantization": block}) == expected


@pytest.mark.parametrize(
    "path",
    [
        ("quantization",),
        ("quantization_config",),
        ("text_config", "quantization"),
        ("text_config", "quantization_config"),
    ],
)
def test_a_block_is_found_under_either_key_and_in_text_config(path):
    config = block = {}
    for segment in path:
        block[segment] = {}
        block = block[segment]
    block |= {**GLOBAL, "a/b": {"x": {"bits": 8}}}
    general, own = read(config).claims
    assert (general.reach, own.reach) == (Reach.GLOBAL, Reach.PATH)
    assert general.origin.pointer == json_pointer(*path)
    assert own.origin.pointer == json_pointer(*path, "a/b", "x")


def test_two_keys_that_agree_are_one():
    block = {**GLOBAL, "x": {"bits": 8}}
    reading = read({"quantization": block, "quantization_config": block})
    assert len(reading.claims) == 2
    assert reading.conflicts == ()
    assert {claim.origin.pointer for claim in reading.claims} == {
        "/quantization",
        "/quantization/x",
    }


@pytest.mark.parametrize(
    ("one", "other", "subject", "winner"),
    [
        (GLOBAL, {"bits": 4, "group_size": 64}, "", NVFP4),
        ({"x": {"bits": 8}}, {"x": {"bits": 4}}, "x", AFFINE_8_64),
        ({"x": {"bits": 8}}, {"x": False}, "x", AFFINE_8_64),
    ],
)
def test_two_keys_that_disagree_are_a_conflict_with_both_origins(one, other, subject, winner):
    reading = read({"quantization": one, "quantization_config": other})
    (conflict,) = reading.conflicts
    tail = f"/{subject}" if subject else ""
    assert conflict.code == "disagreeing-blocks"
    assert conflict.module == subject
    assert f"/quantization{tail}," in conflict.found
    assert f"/quantization_config{tail}" in conflict.found
    assert schemes({"quantization": one, "quantization_config": other}) == {subject: winner}


def test_a_block_of_another_producer_is_not_read_as_mlxs():
    foreign = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    assert read({"quantization_config": foreign}).claims == ()
    assert schemes({"quantization_config": foreign, "quantization": GLOBAL}) == {"": NVFP4}


MALFORMED = [
    ("nvfp4", "malformed-quantization", ""),
    (4, "malformed-quantization", ""),
    ([GLOBAL], "malformed-quantization", ""),
    (True, "malformed-quantization", ""),
    (False, "malformed-quantization", ""),
    ({"bits": "4"}, "malformed-quantization", ""),
    ({"bits": 4.0}, "malformed-quantization", ""),
    ({"bits": True}, "malformed-quantization", ""),
    ({"group_size": [64]}, "malformed-quantization", ""),
    ({"mode": 4}, "malformed-quantization", ""),
    ({"mode": "int4"}, "unknown-scheme", ""),
    ({"mode": ""}, "unknown-scheme", ""),
    ({"bits": 7}, "unknown-scheme", ""),
    ({"bits": -4}, "unknown-scheme", ""),
    ({"bits": 10**40}, "unknown-scheme", ""),
    ({"group_size": 16}, "unknown-scheme", ""),
    ({"x": 8}, "malformed-quantization", "/x"),
    ({"x": 0}, "malformed-quantization", "/x"),
    ({"x": 1}, "malformed-quantization", "/x"),
    ({"x": "q8"}, "malformed-quantization", "/x"),
    ({"x": None}, "malformed-quantization", "/x"),
    ({"x": []}, "malformed-quantization", "/x"),
    ({"x": {"bits": "8"}}, "malformed-quantization", "/x"),
    ({"x": {"bits": 8, "mode": {}}}, "malformed-quantization", "/x"),
    ({"x": {"bits": 9}}, "unknown-scheme", "/x"),
    ({"x": {"bits": 8, "mode": "nvfp4"}}, "unknown-scheme", "/x"),
    ({"x": {"bits": 8, "zero": 1}}, "unknown-key", "/x"),
    ({"x": {"y": 3}}, "unknown-key", "/x"),
    ({"x": True}, "no-global-scheme", "/x"),
    ({"a": {"x": True}}, "no-global-scheme", "/a/x"),
]


@pytest.mark.parametrize(("block", "code", "place"), MALFORMED)
def test_a_malformed_entry_is_one_named_error_at_its_place(block, code, place):
    reading = read({"quantization": block})
    (finding,) = reading.findings
    assert (finding.code, finding.severity) == (code, "error")
    assert finding.origin.pointer == f"/quantization{place}"
    assert reading.claims == ()


def test_one_malformed_entry_does_not_hide_the_others():
    block = {**GLOBAL, "x": 8, "y": {"bits": 8}, "z": {"bits": 9}}
    reading = read({"quantization": block})
    assert [finding.origin.pointer[-2:] for finding in reading.findings] == ["/x", "/z"]
    assert [claim.pattern for claim in reading.claims] == ["", "y"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["mode", "bits", "group_size", "x", "quant_method"])
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.sampled_from(["quantization", "quantization_config", "text_config"]), JSON, max_size=3
    )
)
def test_any_json_gives_claims_or_findings_and_never_a_traceback(config):
    reading = read(config)
    assert all(finding.origin and finding.code for finding in reading.findings)
    assert all(claim.scheme is None or not claim.scheme.problem() for claim in reading.claims)


# --- override files --------------------------------------------------------------------------

YAML = """\
# by hand
mode: affine
bits: 4
"*.q_proj":
  bits: 8
"re:lm_head$": false
"""


def plan_with(tmp_path, name, text, tensors):
    write_checkpoint(tmp_path, tensors, llama_config())
    (tmp_path / name).write_text(text, encoding="utf-8")
    sources = {"tuned": {"type": "file", "path": name}}
    return make_plan(spec(tmp_path, quantization={"sources": sources}))


@pytest.mark.parametrize("name", ["overrides.yaml", "overrides.yml"])
def test_an_override_file_in_yaml_has_line_origins(tmp_path, name):
    tensors = llama(AFFINE_4_64, q_proj=AFFINE_8_64, lm_head=None)
    plan = plan_with(tmp_path, name, YAML, tensors).require_sound()
    table = {path: plan.modules[path].as_json() for path in (Q, "lm_head", "model.embed_tokens")}
    assert {path: row["origin"].partition("#")[0] for path, row in table.items()} == {
        Q: f"{name}:4:1",
        "lm_head": f"{name}:6:1",
        "model.embed_tokens": f"{name}:2:1",
    }
    assert {row["source"] for row in table.values()} == {"tuned"}
    assert table["lm_head"]["dense"]
    assert (table[Q]["mode"], table[Q]["bits"]) == ("affine", 8)


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "a whole config.json"])
def test_an_override_file_in_json_has_pointer_origins(tmp_path, wrapped):
    block = {"bits": 4, "*.q_proj": {"bits": 8}}
    text = json.dumps({"quantization": block} if wrapped else block, indent=1)
    tensors = llama(AFFINE_4_64, q_proj=AFFINE_8_64)
    plan = plan_with(tmp_path, "tuned.json", text, tensors).require_sound()
    row = plan.modules[Q].as_json()
    prefix = "#/quantization" if wrapped else "#"
    assert row["source"] == "tuned"
    assert row["origin"].startswith("tuned.json:")
    assert row["origin"].endswith(f"{prefix}/*.q_proj")


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("o.json", "[1]", "malformed-quantization"),
        ("o.json", '{"x": 8}', "malformed-quantization"),
        ("o.yaml", "bits: 9\n", "unknown-scheme"),
        ("o.yaml", "x: {bits: eight}\n", "malformed-quantization"),
    ],
)
def test_a_malformed_override_file_is_a_problem_of_the_plan(tmp_path, name, text, code):
    plan = plan_with(tmp_path, name, text, llama())
    problem = next(problem for problem in plan.problems if problem.code == code)
    assert problem.origin.file == name


@pytest.mark.parametrize(
    ("name", "text", "code", "line"),
    [
        ("o.json", '{\n"bits": 4,\n}', "malformed-json", 3),
        ("o.yaml", "bits: 4\nbits: 8\n", "duplicate-key", 2),
        ("o.yaml", "bits: [4\n", "yaml-syntax", 1),
    ],
)
def test_an_override_file_that_cannot_be_parsed_is_told_at_its_line(
    tmp_path, name, text, code, line
):
    with pytest.raises(MlxpipeError, match=name) as caught:
        plan_with(tmp_path, name, text, llama())
    assert caught.value.code == code
    assert caught.value.diagnostics[0].origin.line == line


def test_a_missing_override_file_is_told_where_the_spec_names_it(tmp_path):
    write_checkpoint(tmp_path, llama(), llama_config())
    sources = {"tuned": {"type": "file", "path": "gone.json"}}
    with pytest.raises(UsageError, match=r"gone\.json") as caught:
        make_plan(spec(tmp_path, quantization={"sources": sources}))
    assert caught.value.code == "missing-file"
    assert caught.value.diagnostics[0].origin.file == "spec.yaml"
