"""ModelOpt's algorithms, FP8 and gpt-oss; what `modules_to_not_convert` means."""

from __future__ import annotations

import pytest
from declarations import FP8, MXFP4, MXFP8, NVFP4, UNCLAIMED, clean, fault, read, says, winner

from mlxpipe.quant.claims import Reach
from mlxpipe.quant.dialects import modelopt

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
GATE, GATE_PROJ = "model.layers.0.mlp.gate", "model.layers.0.mlp.gate_proj"


# --- ModelOpt --------------------------------------------------------------------------------

OPT = {"quant_method": "modelopt"}

ALGORITHMS = [
    ("NVFP4", 16, NVFP4, ""),
    ("NVFP4", None, NVFP4, ""),
    ("W4A16_NVFP4", 16, NVFP4, "weights alone in NVFP4"),
    ("mxfp4", 32, MXFP4, ""),
    ("W4A8_MXFP4_FP8", 32, MXFP4, "weights in MXFP4, activations in FP8"),
    ("MXFP8", 32, MXFP8, ""),
    ("FP8", None, FP8, "FP8, one scale per tensor"),
    ("FP8", 0, FP8, "FP8, one scale per tensor"),
    ("FP8", 128, FP8, "FP8, one scale per tensor"),
    ("FP8_PER_CHANNEL_PER_TOKEN", None, FP8, "FP8, one scale per row"),
]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("name", "size", "scheme", "note"), ALGORITHMS)
def test_algorithms(mixed, name, size, scheme, note):
    entry = {"quant_algo": name, "group_size": size}
    mixture = {"quant_algo": "MIXED_PRECISION", "quantized_layers": {Q: entry}}
    reading = clean({**OPT, **(mixture if mixed else entry)})
    claim = winner(reading, Q)
    assert (claim.scheme, claim.note) == (scheme, note)
    assert claim.reach is (Reach.PATH if mixed else Reach.GLOBAL)
    assert says(reading, UP) == (UNCLAIMED if mixed else scheme)


@pytest.mark.parametrize("name", modelopt.REFUSED)
def test_algorithms_refused_by_name(name):
    finding = fault({**OPT, "quant_algo": name.lower()})
    assert finding.code == "unsupported-algorithm"
    assert name in finding.message
    assert modelopt.REFUSED[name] in finding.message


@pytest.mark.parametrize(
    ("more", "code", "pointer"),
    [
        ({"quant_algo": "NVFP5"}, "unknown-algorithm", "/quant_algo"),
        ({"quant_algo": "NVFP4", "group_size": 32}, "unsupported-group-size", "/group_size"),
        ({"quant_algo": "MIXED_PRECISION"}, "malformed-quantization", ""),
        ({}, "malformed-quantization", ""),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {Q: {"quant_algo": "INT4"}}},
            "unknown-algorithm",
            f"/quantized_layers/{Q}",
        ),
    ],
)
def test_modelopt_faults(more, code, pointer):
    finding = fault({**OPT, **more})
    assert (finding.code, finding.origin.pointer) == (code, pointer)


def test_an_unknown_algorithm_has_a_nearest_one():
    assert fault({**OPT, "quant_algo": "NVFP5"}).help == "did you mean 'NVFP4'?"


def test_one_bad_layer_leaves_the_others():
    layers = {Q: {"quant_algo": "INT4"}, UP: {"quant_algo": "FP8"}}
    reading = read({**OPT, "quant_algo": "MIXED_PRECISION", "quantized_layers": layers})
    assert (says(reading, Q), says(reading, UP)) == (UNCLAIMED, FP8)


def test_no_algorithm_claims_nothing():
    assert clean({**OPT, "quant_algo": None}).claims == ()


GLOBS = [
    (GATE, {GATE: None, GATE_PROJ: NVFP4}),
    ("model.layers.0.mlp*", {GATE: None, GATE_PROJ: None, Q: NVFP4}),
    ("*.gate", {GATE: None, GATE_PROJ: NVFP4}),
    ("model.layers.0.mlp", {GATE: NVFP4}),
    ("model.layers.[01].mlp.gate", {GATE: None}),
]


@pytest.mark.parametrize("key", ["ignore", "exclude_modules"])
@pytest.mark.parametrize(("glob", "expected"), GLOBS)
def test_exclusions_are_globs_over_the_whole_path(key, glob, expected):
    reading = clean({**OPT, "quant_algo": "NVFP4", key: [glob]})
    assert {path: says(reading, path) for path in expected} == expected
    assert reading.claims[-1].optional


# --- FP8 -------------------------------------------------------------------------------------

FINE = {"quant_method": "fp8"}

NOTES = [
    ({"weight_block_size": [128, 128]}, "FP8 in blocks of 128×128"),
    ({"weight_block_size": [1, 64]}, "FP8 in blocks of 1×64"),
    ({"weight_block_size": None}, "FP8, one scale per tensor"),
    ({}, "FP8; no block size given: the shape of the scales tells"),
    ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, "FP8, one scale per row"),
    ({"quant_method": "mxfp8"}, "MXFP8: an E8M0 scale per 32 columns"),
]


@pytest.mark.parametrize(("more", "note"), NOTES)
def test_what_an_fp8_scale_spans(more, note):
    claim = winner(clean({**FINE, **more}), Q)
    assert (claim.scheme, claim.note, claim.reach) == (FP8, note, Reach.GLOBAL)


@pytest.mark.parametrize(
    ("key", "word"), [("fmt", "e5m2"), ("scale_fmt", "e5m3"), ("expert_dtype", "fp4")]
)
def test_other_numbers_are_refused(key, word):
    finding = fault({**FINE, key: word})
    assert (finding.code, finding.origin.pointer, finding.found) == (
        "unsupported-format",
        f"/{key}",
        word,
    )


@pytest.mark.parametrize("fmt", ["e4m3", "E4M3", "float8_e4m3fn"])
def test_e4m3_by_its_names(fmt):
    assert says(clean({**FINE, "fmt": fmt}), Q) == FP8


# --- modules_to_not_convert ------------------------------------------------------------------

TOPS = {
    "fp8": (FINE, FP8),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 64}, None),
}

SKIPS = [
    # (entry, path, whether it is skipped)
    ("gate", GATE, True),
    ("gate", GATE_PROJ, False),
    ("gate", "model.layers.0.mlp.shared_expert_gate", False),
    ("mlp.gate", GATE, True),
    ("mlp.gate", GATE_PROJ, False),
    (GATE, GATE, True),
    (GATE, GATE_PROJ, False),
    ("model.layers.1", "model.layers.1.mlp.gate", True),
    ("model.layers.1", "model.layers.11.mlp.gate", False),
    ("visual", "model.visual.blocks.0.attn.qkv", True),
    ("self_attn", Q, True),
    ("lm_head", "lm_head", True),
    ("lm_head", "language_model.lm_head", True),
    ("model.layers.*.mlp.gate", GATE, True),
    ("model.layers.*.mlp.gate", GATE_PROJ, False),
    ("model.layers.*.self_attn", Q, True),
    (r"model\.layers\.(0|1)\.mlp", UP, True),
    (r"model\.layers\.(0|1)\.mlp", "model.layers.2.mlp.up_proj", False),
    ("lay|gate", GATE, False),
    (".*gate", GATE, True),
    (".*gate", GATE_PROJ, False),
]


@pytest.mark.parametrize("method", TOPS)
@pytest.mark.parametrize(("entry", "path", "skipped"), SKIPS)
def test_skipped_modules(method, entry, path, skipped):
    top, _ = TOPS[method]
    reading = clean({**top, "modules_to_not_convert": [entry]})
    assert (says(reading, path) is None) == skipped
    assert reading.claims[-1].optional


def test_ignored_layers_is_another_name_in_fp8():
    assert says(clean({**FINE, "ignored_layers": ["gate"]}), GATE) is None


# --- gpt-oss ---------------------------------------------------------------------------------

#: As the published checkpoints have it.
OSS = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}

OSS_PATHS = {
    "model.layers.3.mlp.experts": MXFP4,
    "model.layers.3.mlp.experts.gate_up_proj": MXFP4,
    "model.layers.13.mlp.experts.down_proj": MXFP4,
    "model.layers.3.self_attn.q_proj": None,
    "model.layers.3.mlp.router": None,
    "model.embed_tokens": None,
    "lm_head": None,
    "model.norm": UNCLAIMED,
    "model.layers.3.mlp.shared_experts_gate": UNCLAIMED,
}


@pytest.mark.parametrize("path", OSS_PATHS)
def test_gpt_oss_speaks_of_the_experts(path):
    assert says(clean(OSS), path) == OSS_PATHS[path]
