"""GPTQ, AWQ and AutoRound: overrides per field, variants, lists of blocks."""

from __future__ import annotations

import pytest
from declarations import (
    FP8,
    MXFP4,
    MXFP8,
    NVFP4,
    UNCLAIMED,
    affine,
    clean,
    fault,
    says,
    winner,
)
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.naming.names import matches
from mlxpipe.quant.claims import Reach
from mlxpipe.quant.modes import ROW

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
UP10, GATE = "model.layers.10.mlp.up_proj", "model.layers.0.mlp.gate"
HEAD = "lm_head"

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}


# --- GPTQ ------------------------------------------------------------------------------------

DYNAMIC = [
    ({}, affine(4, 128)),
    ({"+:.*up_proj": {"bits": 8}}, affine(8, 128)),
    ({"+:.*up_proj": {"group_size": 32}}, affine(4, 32)),
    ({"+:.*up_proj": {"bits": 8, "group_size": -1}}, affine(8, ROW)),
    ({".*up_proj": {"bits": 8}}, affine(8, 128)),
    ({"+:.*up_proj": {}}, affine(4, 128)),
    ({"+:.*up_proj": {"bits": 16}}, None),
    ({"-:.*up_proj": {}}, None),
    ({"-:.*up_proj": None}, None),
    # From the start.
    ({"-:up_proj": {}}, affine(4, 128)),
    ({"-:model": {}}, None),
    ({"-:model.*gate": {}}, affine(4, 128)),
    # The first match holds.
    ({"+:.*mlp.*": {"bits": 8}, "-:.*up_proj": {}}, affine(8, 128)),
    ({"-:.*up_proj": {}, "+:.*mlp.*": {"bits": 8}}, None),
    ({"+:.*mlp.*": {}, "+:.*": {"bits": 8}}, affine(4, 128)),
    # A match inherits from the top, never from another match.
    ({"+:.*up.*": {"bits": 8}, "+:.*": {"group_size": 32}}, affine(8, 128)),
]


@pytest.mark.parametrize("top", [GPTQ, AWQ], ids=["gptq", "awq"])
@pytest.mark.parametrize(("dynamic", "expected"), DYNAMIC)
def test_dynamic(top, dynamic, expected):
    assert says(clean({**top, "dynamic": dynamic}), UP) == expected


RULES = st.dictionaries(
    st.sampled_from(
        [
            f"{sign}{body}"
            for sign in ("+:", "-:", "")
            for body in (".*", ".*up.*", "model.*0.*", ".*mlp", "up", "model.layers.1")
        ]
    ),
    st.fixed_dictionaries(
        {}, optional={"bits": st.sampled_from([2, 8]), "group_size": st.sampled_from([-1, 32])}
    ),
    max_size=5,
)


@given(RULES, st.sampled_from([Q, UP, UP10, GATE, HEAD]))
def test_dynamic_is_the_first_match_completed_from_the_top(rules, path):
    expected = affine(4, 128)
    for key, entry in rules.items():
        if matches(key.removeprefix("-:").removeprefix("+:"), path, "regex-start"):
            size = entry.get("group_size", 128)
            whole = affine(entry.get("bits", 4), ROW if size == -1 else size)
            expected = None if key.startswith("-:") else whole
            break
    assert says(clean({**GPTQ, "dynamic": rules}), path) == expected


def test_what_is_inherited_is_noted():
    claim = winner(clean({**GPTQ, "dynamic": {"+:.*up_proj": {"bits": 8}}}), UP)
    assert claim.note == "+:.*up_proj; group_size as in the top scheme"


@pytest.mark.parametrize(
    ("more", "variant"),
    [
        ({}, "gptq"),
        ({"checkpoint_format": "gptq"}, "gptq"),
        ({"checkpoint_format": "GPTQ_V2"}, "gptq_v2"),
        ({"format": "gptq_v2"}, "gptq_v2"),
        ({"checkpoint_format": "gptq", "format": "gptq_v2"}, "gptq"),
    ],
)
def test_what_the_zero_points_are(more, variant):
    reading = clean({**GPTQ, **more, "dynamic": {"+:.*up_proj": {"bits": 8}, "-:.*q_proj": {}}})
    assert [winner(reading, path).variant for path in (GATE, UP, Q)] == [variant, variant, ""]


@pytest.mark.parametrize(
    ("more", "code", "pointer"),
    [
        ({"checkpoint_format": "marlin"}, "unsupported-format", "/checkpoint_format"),
        ({"is_marlin_format": True}, "unsupported-format", "/is_marlin_format"),
        ({"format": "gptq_v3"}, "unknown-format", "/format"),
    ],
)
def test_gptq_formats_that_cannot_be_read(more, code, pointer):
    finding = fault({**GPTQ, **more})
    assert (finding.code, finding.origin.pointer) == (code, pointer)


@pytest.mark.parametrize(
    ("more", "expected"),
    [({}, affine(4, 128)), ({"lm_head": True}, affine(4, 128)), ({"lm_head": False}, None)],
)
def test_the_head(more, expected):
    claim = winner(clean({**GPTQ, **more, "dynamic": {"+:.*up": {"bits": 8}}}), HEAD)
    assert claim.scheme == expected
    assert claim.optional == (expected is None)


def test_older_spellings():
    assert says(clean({"quant_method": "gptq", "w_bit": 8, "q_group_size": 32}), Q) == affine(8, 32)


# --- AWQ -------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [None, "gemm", "GEMM"])
def test_awq_gemm(version):
    claim = winner(clean({**AWQ, "version": version}), Q)
    assert (claim.scheme, claim.variant) == (affine(4, 128), "awq")


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"version": "gemv"}, "/version"),
        ({"version": "gemv_fast"}, "/version"),
        ({"version": "marlin"}, "/version"),
        ({"backend": "llm-awq"}, "/backend"),
    ],
)
def test_other_packings_of_awq_are_refused(more, pointer):
    finding = fault({**AWQ, **more})
    assert (finding.code, finding.origin.pointer) == ("unsupported-format", pointer)
    assert finding.expected == "gemm"


def test_awq_holds_four_bits():
    finding = fault({**AWQ, "bits": 8})
    assert (finding.code, finding.origin.pointer) == ("unsupported-bits", "/bits")


# --- AutoRound -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packing", "variant"),
    [
        (None, "gptq"),
        ("auto", "gptq"),
        ("auto_round:auto_gptq", "gptq"),
        ("auto_round:gptq", "gptq"),
        ("auto_round", "gptq_v2"),
        ("auto_round:gptqmodel", "gptq_v2"),
        ("auto_round:auto_awq", "awq"),
        ("auto_round:awq", "awq"),
        ("mlx", ""),
    ],
)
def test_packing(packing, variant):
    data = {**ROUND, "packing_format": packing, "extra_config": {UP: {"bits": 8}, Q: {"bits": 16}}}
    reading = clean(data)
    assert [winner(reading, path).variant for path in (GATE, UP, Q)] == [variant, variant, ""]


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"packing_format": "auto_round:auto_gtpq"}, "/packing_format"),
        ({"backend": "auto_round:exllamav2"}, "/backend"),
    ],
)
def test_packings_that_cannot_be_read(more, pointer):
    finding = fault({**ROUND, **more})
    assert (finding.code, finding.origin.pointer) == ("unknown-format", pointer)


BLOCKS = [
    ({}, (UP, UP10, HEAD)),
    ({"block_name_to_quantize": None}, (UP, UP10, HEAD)),
    ({"block_name_to_quantize": []}, (UP, UP10, HEAD)),
    ({"block_name_to_quantize": ""}, (UP, UP10, HEAD)),
    ({"block_name_to_quantize": "model.layers"}, (UP, UP10)),
    ({"block_name_to_quantize": "model.layers.0, lm_head"}, (UP, HEAD)),
    ({"block_name_to_quantize": ["model.layers.1"]}, (UP10,)),
    ({"block_name_to_quantize": [["model.layers.0", "model.layers.10"], ["x"]]}, (UP, UP10)),
    ({"to_quant_block_names": "model.layers"}, (UP, UP10)),
    ({"block_name_to_quantize": "lm_head", "to_quant_block_names": "model.layers"}, (HEAD,)),
    ({"quant_block_list": ["model.layers.0"], "block_name_to_quantize": "lm_head"}, (UP,)),
]


@pytest.mark.parametrize(("more", "claimed"), BLOCKS)
def test_listed_blocks_and_nothing_else(more, claimed):
    reading = clean({**ROUND, **more})
    expected = {path: affine(4, 128) if path in claimed else UNCLAIMED for path in (UP, UP10, HEAD)}
    assert {path: says(reading, path) for path in expected} == expected
    # A list may name blocks of a tower that is not loaded.
    assert all(claim.optional or claim.reach is Reach.GLOBAL for claim in reading.claims)


EXTRAS = [
    ({UP: {"bits": 8}}, affine(8, 128)),
    ({UP: {"group_size": 32}}, affine(4, 32)),
    ({UP: {"bits": 8, "group_size": -1, "sym": False}}, affine(8, ROW)),
    ({UP: {"act_bits": 8}}, affine(4, 128)),
    ({UP: {}}, affine(4, 128)),
    ({UP: {"bits": 16, "data_type": "float"}}, None),
    # A plain key is a whole path, another is searched for.
    ({"up_proj": {"bits": 8}}, affine(4, 128)),
    ({r"mlp\.up_proj": {"bits": 8}}, affine(8, 128)),
    ({".*up_proj$": {"bits": 8}}, affine(8, 128)),
    ({r"^mlp\.up_proj": {"bits": 8}}, affine(4, 128)),
    # A path beats a pattern, and of patterns the first holds, the empty ones aside.
    ({UP: {"bits": 8}, ".*up_proj": {"bits": 2}}, affine(8, 128)),
    ({".*up_proj": {"bits": 2}, UP: {"bits": 8}}, affine(8, 128)),
    ({".*up_proj": {"bits": 2}, ".*mlp.*": {"bits": 8}}, affine(2, 128)),
    ({".*up_proj": {}, ".*mlp.*": {"bits": 8}}, affine(8, 128)),
]


@pytest.mark.parametrize("blocks", [None, "model.layers"])
@pytest.mark.parametrize(("extras", "expected"), EXTRAS)
def test_extra_config(blocks, extras, expected):
    data = {**ROUND, "block_name_to_quantize": blocks, "extra_config": extras}
    assert says(clean(data), UP) == expected


def test_extra_config_reaches_beyond_the_listed_blocks():
    extras = {HEAD: {"bits": 8, "group_size": 64}}
    data = {**ROUND, "block_name_to_quantize": "model.layers", "extra_config": extras}
    assert says(clean(data), HEAD) == affine(8, 64)


FLOATS = [
    ("auto_round:llm_compressor", "mx_fp", 4, 32, MXFP4, ""),
    ("auto_round:llm_compressor", "mx_fp8e4m3", 8, 32, MXFP8, ""),
    ("auto_round:llm_compressor", "nv_fp4", 4, 16, NVFP4, ""),
    ("auto_round:fp8_static", "fp", 8, -1, FP8, "FP8, one scale per row"),
    ("auto_round:fp8", "fp8", 8, 0, FP8, "FP8, one scale per tensor"),
]


@pytest.mark.parametrize(("packing", "kind", "bits", "size", "scheme", "note"), FLOATS)
def test_floats_of_autoround(packing, kind, bits, size, scheme, note):
    data = {**ROUND, "packing_format": packing, "data_type": kind, "bits": bits}
    claim = winner(clean({**data, "group_size": size}), UP)
    assert (claim.scheme, claim.note, claim.variant) == (scheme, note, "")


@pytest.mark.parametrize(
    "more",
    [
        {"data_type": "mx_int"},
        {"data_type": "int_asym_float_zp"},
        {"packing_format": "auto_round:llm_compressor", "data_type": "int"},
        {"packing_format": "auto_round:llm_compressor", "data_type": "nv_fp", "group_size": 32},
        {"packing_format": "auto_round:fp8_static", "data_type": "fp", "bits": 8},
        {"packing_format": "auto_round:fp8", "data_type": "fp", "bits": 4, "group_size": -1},
    ],
)
def test_schemes_of_autoround_that_cannot_be_read(more):
    assert fault({**ROUND, **more}).code == "unsupported-scheme"


@pytest.mark.parametrize("key", ["rotation_config", "transform_config"])
def test_rotations_would_change_the_values(key):
    finding = fault({**ROUND, key: {"type": "hadamard"}})
    assert (finding.code, finding.origin.pointer) == ("transformed-weights", f"/{key}")
