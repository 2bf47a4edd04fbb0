"""Every dialect on configs that its producer's own tool wrote, and the laws for all of them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from declarations import (
    FP8,
    MXFP4,
    NVFP4,
    UNCLAIMED,
    affine,
    block,
    clean,
    fault,
    read,
    says,
    winner,
)
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.checkpoint import json_pointer
from mlxpipe.errors import Diagnostic
from mlxpipe.naming.names import matches
from mlxpipe.quant.claims import Claim, Reach, Reading
from mlxpipe.quant.dialects import (
    BY_METHOD,
    DIALECTS,
    REFUSED,
    SIDECARS,
    read_sidecar,
)
from mlxpipe.quant.modes import ROW

CONFIGS = Path(__file__).parent / "configs"
ZOO = {path.stem: json.loads(path.read_text()) for path in sorted(CONFIGS.glob("*.json"))}

# --- what producers' tools wrote ---------------------------------------------------------------

Q0, Q1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
DOWN0, DOWN1 = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"
HEAD, EMBED = "lm_head", "model.embed_tokens"
GATE, EXPERT = "model.layers.1.mlp.gate", "model.layers.1.mlp.experts.3.gate_proj"

EXPECTED = {
    "ct-w4a16-llama": {Q0: affine(4, 128), DOWN1: affine(4, 128), HEAD: None},
    "ct-w4a16asym-qwen3": {Q0: affine(4, 128), HEAD: None},
    "ct-nvfp4a16-llama": {Q0: NVFP4, HEAD: None},
    "ct-mxfp4a16-llama": {Q0: MXFP4, HEAD: None},
    "ct-fp8dyn-qwen3": {Q0: FP8, HEAD: None},
    "ct-mixed-llama": {Q0: affine(8, 128), DOWN1: NVFP4, HEAD: None, EMBED: UNCLAIMED},
    "mo-nvfp4-qwen3moe": {
        Q0: NVFP4,
        EXPERT: NVFP4,
        GATE: None,
        GATE + "_proj": NVFP4,
        HEAD: None,
        EMBED: None,
    },
    "mo-fp8-llama": {Q0: FP8, HEAD: None, EMBED: None},
    "mo-mixed-qwen3": {Q0: FP8, DOWN0: NVFP4, HEAD: UNCLAIMED, EMBED: None},
    "ar-gptq-mixed-qwen3": {
        Q0: None,
        Q1: affine(4, 64),
        DOWN0: affine(4, 64),
        DOWN1: affine(8, 64),
        HEAD: None,
    },
    "ar-awq-llama": {Q0: affine(4, 64), HEAD: None},
    "ar-autoround-mixed-qwen3": {
        Q0: affine(4, 64),
        DOWN0: affine(4, 64),
        DOWN1: affine(8, 64),
        HEAD: UNCLAIMED,
        EMBED: UNCLAIMED,
    },
    "fp8-block-qwen3": {Q0: FP8, HEAD: None, EMBED: None},
    "fp8-blockpow2-llama": {Q0: FP8, HEAD: None, EMBED: None},
}


def test_every_config_of_the_zoo_has_expectations():
    assert set(EXPECTED) == set(ZOO)


@pytest.mark.parametrize("name", EXPECTED)
def test_config_of_the_zoo(name):
    reading = clean(ZOO[name]["quantization_config"])
    assert {path: says(reading, path) for path in EXPECTED[name]} == EXPECTED[name]
    assert {claim.source for claim in reading.claims} == {"config"}


SIDE_FILES = [(name, file) for name, files in ZOO.items() for file in files if file in SIDECARS]


@pytest.mark.parametrize(("name", "file"), SIDE_FILES)
def test_side_file_says_what_the_config_says(name, file):
    reading = read_sidecar(file, block(ZOO[name][file]))
    assert reading.findings == ()
    assert {path: says(reading, path) for path in EXPECTED[name]} == EXPECTED[name]
    assert {claim.source for claim in reading.claims} == {"sidecar"}


@pytest.mark.parametrize(
    ("name", "path", "variant"),
    [
        ("ar-gptq-mixed-qwen3", DOWN0, "gptq"),
        ("ar-gptq-mixed-qwen3", DOWN1, "gptq"),
        ("ar-gptq-mixed-qwen3", Q0, ""),
        ("ar-awq-llama", Q0, "awq"),
        ("ar-autoround-mixed-qwen3", DOWN0, "gptq"),
        ("ar-autoround-mixed-qwen3", DOWN1, "gptq"),
        ("ct-w4a16-llama", Q0, ""),
    ],
)
def test_variant(name, path, variant):
    assert winner(clean(ZOO[name]["quantization_config"]), path).variant == variant


@pytest.mark.parametrize(
    ("name", "path", "pointer"),
    [
        ("ct-mixed-llama", Q0, "/config_groups/group_0/targets/0"),
        ("ct-mixed-llama", HEAD, "/ignore/0"),
        ("mo-mixed-qwen3", Q0, f"/quantized_layers/{Q0}"),
        ("mo-nvfp4-qwen3moe", Q0, "/quant_algo"),
        ("ar-gptq-mixed-qwen3", Q0, "/dynamic/-:.*model\\.layers\\.0\\.self_attn\\.q_proj.*"),
        ("ar-autoround-mixed-qwen3", DOWN1, f"/extra_config/{DOWN1}"),
        ("ar-autoround-mixed-qwen3", DOWN0, "/block_name_to_quantize"),
        ("fp8-block-qwen3", EMBED, "/modules_to_not_convert/1"),
    ],
)
def test_a_claim_knows_its_place(name, path, pointer):
    assert winner(clean(ZOO[name]["quantization_config"]), path).origin.pointer == pointer


def test_nested_side_file_knows_its_place():
    reading = read_sidecar(
        "hf_quant_config.json", block(ZOO["mo-mixed-qwen3"]["hf_quant_config.json"])
    )
    assert winner(reading, Q0).origin.pointer == f"/quantization/quantized_layers/{Q0}"


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("mo-fp8-llama", "FP8, one scale per tensor"),
        ("ct-fp8dyn-qwen3", "FP8, one scale per row"),
        ("fp8-block-qwen3", "FP8 in blocks of 128×128"),
    ],
)
def test_fp8_says_what_its_scales_span(name, note):
    assert winner(clean(ZOO[name]["quantization_config"]), Q0).note == note


# --- dispatch ------------------------------------------------------------------------------------


def test_no_method_has_two_owners_and_none_is_refused_too():
    methods = [method for dialect in DIALECTS for method in dialect.methods]
    assert len(methods) == len(set(methods)) == len(BY_METHOD)
    assert not set(methods) & set(REFUSED)
    assert all(method == method.lower() for method in (*methods, *REFUSED))


@pytest.mark.parametrize("method", REFUSED)
def test_refused_by_name_with_advice(method):
    finding = fault({"quant_method": method})
    assert (finding.code, finding.found) == ("refused-format", method)
    assert method in finding.message
    assert finding.help == REFUSED[method]
    assert finding.origin.pointer == "/quant_method"


@pytest.mark.parametrize(
    ("data", "code", "help_"),
    [
        ({"quant_method": "compressed-tensor"}, "unknown-quant-method", "'compressed-tensors'"),
        ({"quant_method": "bitsandbites"}, "unknown-quant-method", "'bitsandbytes'"),
        ({"quant_method": "?"}, "unknown-quant-method", "convert"),
        ({}, "unknown-quant-method", "convert"),
        ({"load_in_4bit": True}, "refused-format", "code books"),
        ({"quant_method": 4}, "malformed-quantization", ""),
        ([], "malformed-quantization", ""),
        (None, "malformed-quantization", ""),
    ],
)
def test_strangers(data, code, help_):
    finding = fault(data)
    assert finding.code == code
    assert help_ in finding.help


@pytest.mark.parametrize("data", [{"quant_method": "GPTQ"}, {"method": "gptq"}])
def test_method_in_capitals_or_under_its_newer_name(data):
    assert says(clean({**data, "bits": 4, "group_size": 32}), Q0) == affine(4, 32)


SIDECAR_CASES = [
    ("quantize_config.json", {"bits": 4, "group_size": 128}, affine(4, 128), "gptq"),
    (
        "quant_config.json",
        {"w_bit": 4, "q_group_size": 128, "version": "GEMM"},
        affine(4, 128),
        "awq",
    ),
    ("hf_quant_config.json", {"quantization": {"quant_algo": "nvfp4"}}, NVFP4, ""),
    (
        "quantize_config.json",
        {"quant_method": "awq", "bits": 4, "group_size": 64},
        affine(4, 64),
        "awq",
    ),
]


@pytest.mark.parametrize(("name", "data", "scheme", "variant"), SIDECAR_CASES)
def test_side_file_without_a_method_is_its_producers(name, data, scheme, variant):
    reading = read_sidecar(name, block(data))
    assert reading.findings == ()
    (claim,) = reading.claims
    assert (claim.scheme, claim.variant, claim.source) == (scheme, variant, "sidecar")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("quantisation_config.json", "unknown-sidecar"),
        ("quantization_config.json", "unknown-quant-method"),
    ],
)
def test_side_files_that_cannot_be_read(name, code):
    reading = read_sidecar(name, block({"bits": 4, "group_size": 128}))
    assert [finding.code for finding in reading.findings] == [code]
    assert reading.claims == ()


# --- the law: whatever a field holds, a finding and no exception ----------------------------

#: One declaration per producer with every field that is read.
FULL = {
    "ct": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "kv_cache_scheme": None,
        "sparsity_config": {"format": "dense"},
        "transform_config": {"config_groups": {}},
        "ignore": ["lm_head", "re:.*gate$", "Embedding"],
        "config_groups": {
            "a": {
                "targets": ["Linear", "re:.*down", Q0],
                "format": "pack-quantized",
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": 32,
                    "actorder": "static",
                },
            },
            "b": {
                "targets": ["re:.*up_proj"],
                "weights": {
                    "num_bits": 8,
                    "type": "float",
                    "strategy": "block",
                    "block_structure": [128, 128],
                },
            },
        },
    },
    "modelopt": {
        "quant_method": "modelopt",
        "quantization": {
            "quant_algo": "MIXED_PRECISION",
            "kv_cache_quant_algo": None,
            "quantized_layers": {Q0: {"quant_algo": "NVFP4", "group_size": 16}},
            "exclude_modules": ["lm_head", "*.gate"],
        },
    },
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "desc_act": False,
        "checkpoint_format": "gptq",
        "is_marlin_format": False,
        "lm_head": False,
        "dynamic": {"-:.*gate": {}, "+:.*down": {"bits": 8, "group_size": -1, "sym": False}},
    },
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "version": "gemm",
        "backend": "autoawq",
        "modules_to_not_convert": ["visual", "model.*.gate"],
    },
    "autoround": {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 128,
        "sym": True,
        "data_type": "int",
        "packing_format": "auto_round",
        "rotation_config": None,
        "block_name_to_quantize": [["model.layers"], "a,b"],
        "extra_config": {Q0: {"bits": 8}, ".*gate": {"bits": 16, "data_type": "fp"}},
    },
    "fp8": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "scale_fmt": "ue8m0",
        "expert_dtype": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.*.gate"],
        "ignored_layers": ["gate"],
    },
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "a.*.b"]},
}


def places(value, place=()):
    """Every place of a JSON value, the root included."""
    yield place
    items = value.items() if isinstance(value, dict) else ()
    for key, item in (*items, *(enumerate(value) if isinstance(value, list) else ())):
        yield from places(item, (*place, key))


def replaced(value, place, new):
    """A copy with another value at one place."""
    if not place:
        return new
    value = copy.deepcopy(value)
    inner = value
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return value


PLACES = [(name, place) for name, data in FULL.items() for place in places(data)]

ODD_TEXT = st.sampled_from(
    ["", "re:", "re:(", "(", "[[", "*", "a{1}{2}", "a{99999999999}", "-:[", "(?i)a", "\\", "é.ü"]
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 4, 7, 8, 16, 32])
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | ODD_TEXT,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4) | ODD_TEXT, inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("name", FULL)
def test_the_full_declarations_have_no_fault(name):
    assert clean(FULL[name]).claims


@given(st.sampled_from(PLACES), JSON)
def test_any_value_in_any_field_gives_a_reading(where, value):
    name, place = where
    data = replaced(FULL[name], place, value)
    for reading in (read(data), *(read_sidecar(file, block(data)) for file in SIDECARS)):
        _is_sound(reading)


@given(JSON)
def test_any_value_gives_a_reading(value):
    _is_sound(read(value))


def _is_sound(reading):
    assert isinstance(reading, Reading)
    for finding in reading.findings:
        assert isinstance(finding, Diagnostic)
        assert finding.origin is not None
        assert finding.render()
    for claim in reading.claims:
        assert isinstance(claim, Claim)
        assert claim.scheme is None or claim.scheme.group_size >= ROW
        if claim.reach is Reach.PATTERN:
            matches(claim.pattern, "a.b", claim.matcher)  # the pattern compiles


WRONG = {"integer": "4", "bool": True, "list": [], "float": 4.5}

TYPED = [
    *(
        (name, ("bits",), wrong)
        for name in ("gptq", "awq", "autoround")
        for wrong in WRONG.values()
    ),
    *(
        (name, ("group_size",), wrong)
        for name in ("gptq", "awq", "autoround")
        for wrong in ("", True)
    ),
    *((name, ("group_size",), size) for name in ("gptq", "awq", "autoround") for size in (0, -2)),
    ("gptq", ("sym",), 1),
    ("gptq", ("desc_act",), "no"),
    ("gptq", ("lm_head",), 0),
    ("gptq", ("checkpoint_format",), 2),
    ("gptq", ("dynamic",), ["+:.*"]),
    ("gptq", ("dynamic", "+:.*down"), 8),
    ("gptq", ("dynamic", "+:.*down", "bits"), True),
    ("awq", ("zero_point",), "yes"),
    ("awq", ("version",), 1),
    ("awq", ("modules_to_not_convert",), "lm_head"),
    ("awq", ("modules_to_not_convert", 0), 7),
    ("autoround", ("extra_config", Q0), 8),
    ("autoround", ("extra_config", Q0, "bits"), 8.0),
    ("autoround", ("block_name_to_quantize",), 3),
    ("autoround", ("block_name_to_quantize", 0, 0), None),
    ("autoround", ("data_type",), 3),
    ("fp8", ("weight_block_size",), 128),
    ("fp8", ("weight_block_size",), [128]),
    ("fp8", ("weight_block_size",), [True, 128]),
    ("fp8", ("weight_block_size",), [128, 0]),
    ("fp8", ("fmt",), 3),
    ("mxfp4", ("modules_to_not_convert",), {"a": 1}),
    ("modelopt", ("quantization",), []),
    ("modelopt", ("quantization", "quant_algo"), 8),
    ("modelopt", ("quantization", "quantized_layers"), []),
    ("modelopt", ("quantization", "quantized_layers", Q0), "NVFP4"),
    ("modelopt", ("quantization", "quantized_layers", Q0, "group_size"), True),
    ("modelopt", ("quantization", "exclude_modules"), "lm_head"),
    ("ct", ("config_groups",), []),
    ("ct", ("config_groups", "a"), 1),
    ("ct", ("config_groups", "a", "targets"), "Linear"),
    ("ct", ("config_groups", "a", "weights"), "int4"),
    ("ct", ("config_groups", "a", "weights", "num_bits"), True),
    ("ct", ("config_groups", "a", "weights", "group_size"), -2),
    ("ct", ("config_groups", "a", "weights", "actorder"), "sideways"),
    ("ct", ("config_groups", "a", "weights", "type"), "complex"),
    ("ct", ("config_groups", "b", "weights", "block_structure"), [128, 128, 1]),
    ("ct", ("quantization_status",), "lost"),
    ("ct", ("ignore", 0), None),
]


@pytest.mark.parametrize(("name", "place", "value"), TYPED)
def test_a_wrong_type_is_one_error_at_its_place(name, place, value):
    finding = fault(replaced(FULL[name], place, value))
    assert finding.code == "malformed-quantization"
    assert finding.origin.pointer == json_pointer(*place)


MISSING = [
    *((name, key) for name in ("gptq", "awq", "autoround") for key in ("bits", "group_size")),
]


@pytest.mark.parametrize(("name", "key"), MISSING)
def test_a_missing_field_is_never_guessed(name, key):
    data = {field: value for field, value in FULL[name].items() if field != key}
    finding = fault(data)
    assert finding.code == "missing-field"
    assert f"'{key}'" in finding.message


BAD_PATTERNS = [
    ("ct", ("ignore", 1), "re:(", "/ignore/1"),
    ("ct", ("config_groups", "a", "targets", 1), "re:*", "/config_groups/a/targets/1"),
    ("awq", ("modules_to_not_convert", 1), "*.gate", "/modules_to_not_convert/1"),
    ("gptq", ("dynamic",), {"+:[": {}}, "/dynamic/+:["),
    ("gptq", ("dynamic",), {"-:a{99999999999}": {}}, "/dynamic/-:a{99999999999}"),
    ("autoround", ("extra_config",), {"(": {"bits": 8}}, "/extra_config/("),
    ("modelopt", ("quantization", "exclude_modules", 1), "re:(", "/quantization/exclude_modules/1"),
]


@pytest.mark.parametrize(("name", "place", "value", "pointer"), BAD_PATTERNS)
def test_a_broken_pattern_is_one_error_at_its_place(name, place, value, pointer):
    finding = fault(replaced(FULL[name], place, value))
    assert (finding.code, finding.origin.pointer) == ("malformed-pattern", pointer)


NO_BITS = st.integers(max_value=15).filter(lambda bits: bits not in (2, 3, 4, 5, 6, 8))


@given(st.sampled_from(["gptq", "autoround"]), NO_BITS)
def test_bits_that_mlx_has_not_are_refused(name, bits):
    # An override with bits of its own stays readable.
    codes = {finding.code for finding in read({**FULL[name], "bits": bits}).findings}
    assert codes == {"unsupported-bits"}


@given(st.sampled_from(["gptq", "awq", "autoround"]), st.integers(min_value=16, max_value=64))
def test_sixteen_bits_and_more_are_dense(name, bits):
    reading = clean({**FULL[name], "bits": bits})
    assert says(reading, "model.layers.7.mlp.up_proj") is None


@pytest.mark.parametrize("name", ["gptq", "awq", "autoround"])
def test_group_size_minus_one_is_a_whole_row(name):
    reading = clean({**FULL[name], "group_size": -1})
    assert says(reading, "model.layers.7.mlp.up_proj") == affine(4, ROW)


CACHES = [
    ("ct", ("kv_cache_scheme",), {"num_bits": 8}),
    ("modelopt", ("quantization", "kv_cache_quant_algo"), "FP8"),
    ("autoround", ("static_kv_dtype",), "fp8"),
]


@pytest.mark.parametrize(("name", "place", "value"), CACHES)
def test_a_quantised_cache_is_noted_and_nothing_else_changes(name, place, value):
    data = copy.deepcopy(FULL[name])
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    reading = read(data)
    (note,) = reading.findings
    assert (note.code, note.severity) == ("kv-cache-precision", "note")
    assert note.origin.pointer == json_pointer(*place)
    assert reading.claims == read(FULL[name]).claims
