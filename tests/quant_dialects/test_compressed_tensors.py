"""compressed-tensors: arguments, formats, and which of several targets holds."""

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
    read,
    says,
    winner,
)

from mlxpipe.quant.claims import Reach
from mlxpipe.quant.dialects.compressed_numbers import FORMATS, REFUSED_FORMATS
from mlxpipe.quant.modes import ROW

Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}


def group(weights, *targets, **more):
    return {"targets": list(targets or ("Linear",)), "weights": weights, **more}


def config(*groups, **more):
    named = {f"group_{number}": each for number, each in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "config_groups": named, **more}


SCHEMES = [
    ({}, "int-quantized", affine(8, ROW)),
    ({"num_bits": 4, "group_size": 64}, "pack-quantized", affine(4, 64)),
    ({"num_bits": 4, "group_size": -1}, "pack-quantized", affine(4, ROW)),
    ({"num_bits": 3, "strategy": "channel"}, "pack-quantized", affine(3, ROW)),
    ({"num_bits": 8, "strategy": "tensor"}, "naive-quantized", affine(8, ROW)),
    ({"num_bits": 4, "group_size": 256, "type": "INT"}, "pack-quantized", affine(4, 256)),
    (
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        "nvfp4-pack-quantized",
        NVFP4,
    ),
    ({"num_bits": 4, "type": "float", "group_size": 16}, "nvfp4-pack-quantized", NVFP4),
    ({"num_bits": 4, "type": "float", "group_size": 32}, "mxfp4-pack-quantized", MXFP4),
    ({"num_bits": 8, "type": "float", "group_size": 32}, "mxfp8-quantized", MXFP8),
    (
        {"num_bits": 8, "type": "float", "group_size": 32, "scale_dtype": "torch.uint8"},
        None,
        MXFP8,
    ),
    ({"num_bits": 8, "type": "float"}, "float-quantized", FP8),
    ({"num_bits": 8, "type": "float", "strategy": "channel"}, "naive-quantized", FP8),
    (
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "64x128"},
        "float-quantized",
        FP8,
    ),
    ({"num_bits": 16, "type": "float"}, "float-quantized", None),
    ({"num_bits": 4, "group_size": 64}, "dense", None),
    ({"num_bits": 4, "group_size": 64}, "mixed-precision", affine(4, 64)),
    ({"num_bits": 4, "group_size": 64}, None, affine(4, 64)),
    (None, "pack-quantized", None),
]


@pytest.mark.parametrize(("weights", "form", "scheme"), SCHEMES)
def test_scheme_of_the_arguments(weights, form, scheme):
    assert says(clean(config(group(weights), format=form)), Q) == scheme


def test_blocks_are_told():
    weights = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": "64x128"}
    assert winner(clean(config(group(weights))), Q).note == "FP8 in blocks of 64×128"


FAULTS = [
    ({"num_bits": 7, "group_size": 32}, None, "unsupported-bits"),
    ({"num_bits": 1, "group_size": 32}, None, "unsupported-bits"),
    ({"num_bits": 9, "group_size": 32}, None, "unsupported-bits"),
    ({"num_bits": 4, "strategy": "block", "block_structure": [1, 2]}, None, "unsupported-scheme"),
    ({"num_bits": 4, "strategy": "sideways"}, None, "unsupported-scheme"),
    ({"num_bits": 4, "strategy": "group"}, None, "missing-field"),
    ({"num_bits": 6, "type": "float", "group_size": 32}, None, "unsupported-scheme"),
    ({"num_bits": 4, "type": "float", "group_size": 64}, None, "unsupported-scheme"),
    ({"num_bits": 4, "type": "float"}, None, "unsupported-scheme"),
    ({"num_bits": 8, "type": "float", "group_size": 128}, None, "unsupported-scheme"),
    ({"num_bits": 8, "type": "float", "group_size": 32}, "float-quantized", "unsupported-scheme"),
    ({"num_bits": 8, "type": "float", "symmetric": False}, None, "unsupported-scheme"),
    ({"num_bits": 8, "type": "float", "strategy": "block"}, None, "malformed-quantization"),
    (INT4, "packed-quantized", "unknown-format"),
    (INT4, "nvfp4-pack-quantized", "contradicting-format"),
    ({"num_bits": 8, "type": "float"}, "pack-quantized", "contradicting-format"),
    *((INT4, form, "unsupported-format") for form in REFUSED_FORMATS),
]


@pytest.mark.parametrize(("weights", "form", "code"), FAULTS)
def test_arguments_that_cannot_be_read(weights, form, code):
    assert fault(config(group(weights), format=form)).code == code


def test_an_unknown_format_is_named_with_the_nearest_known_one():
    finding = fault(config(group(INT4), format="packed-quantized"))
    assert finding.origin.pointer == "/format"
    assert finding.help == "did you mean 'pack-quantized'?"
    assert all(form in finding.expected for form in FORMATS)


def test_a_groups_format_beats_the_top_one():
    assert says(clean(config(group(INT4, format="pack-quantized"), format="float-quantized")), Q)
    finding = fault(config(group(INT4, format="float-quantized"), format="pack-quantized"))
    assert finding.origin.pointer == "/config_groups/group_0/format"


NEAR = [
    # (targets of the 4-bit group, of the 8-bit group, what holds for Q)
    (("Linear",), (Q,), 8),
    ((Q,), ("Linear",), 4),
    (("re:.*q_proj",), (Q,), 8),
    ((Q,), ("re:.*q_proj",), 4),
    (("Linear",), ("re:.*q_proj",), 8),
    (("re:.*",), ("Linear",), 4),
    # Of two patterns the first by the alphabet holds, wherever it stands.
    (("re:.*attn.*",), ("re:.*q_proj",), 4),
    (("re:.*q_proj",), ("re:.*attn.*",), 8),
    # Of two groups with one target the later holds.
    (("Linear",), ("Linear",), 8),
    (("re:.*q_proj",), ("re:.*q_proj",), 8),
    # A pattern is matched from the start.
    (("Linear",), ("re:q_proj",), 4),
    (("Linear",), ("re:model.*q_proj",), 8),
]


@pytest.mark.parametrize(("four", "eight", "bits"), NEAR)
def test_the_nearer_target_holds(four, eight, bits):
    reading = clean(config(group(INT4, *four), group(INT8, *eight)))
    assert says(reading, Q).bits == bits


IGNORED = [
    (Q, None),
    ("re:.*q_proj$", None),
    ("re:q_proj", affine(4, 32)),
    ("q_proj", affine(4, 32)),
    ("model.layers.0.self_attn", affine(4, 32)),
    ("Linear", affine(4, 32)),
]


@pytest.mark.parametrize(("name", "expected"), IGNORED)
def test_ignore_beats_an_exact_target(name, expected):
    reading = clean(config(group(INT4, Q, "re:.*up_proj"), ignore=[name]))
    assert says(reading, Q) == expected
    assert says(reading, UP) == affine(4, 32)


def test_ignored_names_may_fit_nothing_and_targets_may_not():
    reading = clean(config(group(INT4, Q, "re:.*up_proj"), ignore=["lm_head", "re:visual.*"]))
    assert [claim.optional for claim in reading.claims] == [False, False, True, True]


def test_classes():
    reading = read(config(group(INT4, "Linear"), group(INT8, "Embedding", "Conv1d")))
    assert [(found.code, found.severity) for found in reading.findings] == [
        ("unknown-class", "warning")
    ]
    assert says(reading, "model.embed_tokens") == affine(8, ROW)
    assert winner(reading, Q).reach is Reach.GLOBAL


def test_groups_without_weights_speak_of_activations():
    reading = read(config(group(INT4, Q), group(None, "LlamaAttention")))
    assert [finding.severity for finding in reading.findings] == ["note"]
    assert says(reading, UP) == UNCLAIMED


CHECKS = [
    ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-weights"),
    ({"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}, "transformed-weights"),
    ({"quantization_status": "lost"}, "malformed-quantization"),
    ({"config_groups": None}, "malformed-quantization"),
    ({"config_groups": {"W4A16": ["Linear"]}}, "preset-scheme"),
]


@pytest.mark.parametrize(("more", "code"), CHECKS)
def test_what_would_change_the_values_is_an_error(more, code):
    assert fault({**config(group(INT4)), **more}).code == code


@pytest.mark.parametrize(
    "more",
    [
        {"sparsity_config": {}},
        {"sparsity_config": {"format": "dense", "global_sparsity": 0.1}},
        {"transform_config": {"config_groups": {}}},
        {"quantization_status": "frozen"},
        {"ignore": None},
        {"moe_sparsity_config": None, "version": "0.19.0"},
    ],
)
def test_what_changes_nothing_is_fine(more):
    assert says(clean({**config(group(INT4)), **more}), Q) == affine(4, 32)


@pytest.mark.parametrize("order", [None, False, "weight", "static", "group", "dynamic"])
def test_activation_order_is_told_by_the_tensors(order):
    assert says(clean(config(group({**INT4, "actorder": order}))), Q) == affine(4, 32)
