"""Damaged, contradictory and unknown packings: named errors of the plan, never a traceback."""

from __future__ import annotations

import re
from typing import NamedTuple

import decoders
import numpy as np
import pytest
from builders import ITEM_BYTES, Raw, spec, write_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoints import DOWN, TOKENS, Q, llama_config, llama_shapes, raw, rest

from mlxpipe import load, make_plan
from mlxpipe.errors import ExecutionError, MlxpipeError
from mlxpipe.naming.conventions import CONVENTIONS
from mlxpipe.quant.layouts import LAYOUTS, block_size

ITEMS = {**ITEM_BYTES, "I8": 1, "I64": 8, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E5M2": 1, "BOOL": 1}
ROWS, COLUMNS = 128, 128

FORMATS = {
    "ct": lambda rng: decoders.packed_integers(rng, ROWS, COLUMNS, 4, 32, symmetric=False),
    "ct ordered": lambda rng: decoders.packed_integers(rng, ROWS, COLUMNS, 4, 32, ordered=True),
    "ct nvfp4": lambda rng: decoders.floats4(rng, ROWS, COLUMNS, "divided"),
    "ct mxfp4": lambda rng: decoders.floats4(rng, ROWS, COLUMNS, "mxfp4"),
    "modelopt nvfp4": lambda rng: decoders.floats4(rng, ROWS, COLUMNS, "multiplied"),
    "fp8": lambda rng: decoders.floats8(rng, ROWS, COLUMNS, "tensor"),
    "fp8 rows": lambda rng: decoders.floats8(rng, ROWS, COLUMNS, "row [o, 1]"),
    "fp8 blocks": lambda rng: decoders.blocks8(rng, ROWS, COLUMNS, (64, 64), powers=False),
    "gptq": lambda rng: decoders.gptq(rng, ROWS, COLUMNS, 4, 32, ordered=True),
    "awq": lambda rng: decoders.awq(rng, ROWS, COLUMNS, 32),
}


def stored_as(name):
    return FORMATS[name](np.random.default_rng(0))


def empty(dtype, *shape):
    return Raw(dtype, shape, bytes(ITEMS[dtype] * int(np.prod(shape, dtype=np.int64))))


def llama_with(leaves, config=None, path=Q):
    """A dense llama, one layer of which is stored in `leaves`."""
    tensors = rest(llama_config(), np.random.default_rng(0))
    for other, shape in llama_shapes(llama_config()).items():
        if other != path:
            tensors[f"{other}.weight"] = empty("F32", *shape)
    tensors |= {f"{path}.{leaf}": tensor for leaf, tensor in leaves.items()}
    declared = {"quantization_config": config} if config else {}
    return dict(sorted(tensors.items())), llama_config(**declared)


@pytest.fixture
def problems(tmp_path):
    """The problems of a plan: `problems(leaves, config.json's block)`."""

    def find(leaves, config=None):
        write_checkpoint(tmp_path, *llama_with(leaves, config))
        try:
            return make_plan(tmp_path).problems
        except MlxpipeError as error:
            return error.diagnostics

    return find


def assert_about_q(found, *codes):
    """Errors, one of these codes among them, all of them about the one layer."""
    assert found
    assert set(codes) & {each.code for each in found}, [each.render() for each in found]
    for each in found:
        assert each.severity == "error"
        assert Q in each.render()
    assert len({each.code for each in found}) == len(found)


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_as_it_is_has_no_problem(problems, name):
    """What is below differs from this by one thing."""
    stored = stored_as(name)
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    assert problems(leaves, stored.config) == ()


# --- one array changed -----------------------------------------------------------------------


class Damage(NamedTuple):
    format: str
    leaf: str
    tensor: Raw | None


NOTHING = None

DAMAGES = [
    # The main tensor: zero-sized, odd, of another width or rank.
    Damage("ct", "weight_packed", empty("I32", 0, 16)),
    Damage("ct", "weight_packed", empty("I32", ROWS, 0)),
    Damage("ct", "weight_packed", empty("I32", ROWS, 17)),
    Damage("ct", "weight_packed", empty("I32", ROWS, 13)),
    Damage("ct", "weight_packed", empty("I32", ROWS + 1, 16)),
    Damage("ct", "weight_packed", empty("I32", ROWS * 16)),
    Damage("ct", "weight_packed", empty("I32")),
    Damage("ct", "weight_packed", empty("I32", 1, ROWS, 16)),
    Damage("ct nvfp4", "weight_packed", empty("U8", ROWS, 65)),
    Damage("ct nvfp4", "weight_packed", empty("U8", ROWS, 66)),
    Damage("ct nvfp4", "weight_packed", empty("U8", ROWS, 0)),
    Damage("ct nvfp4", "weight_packed", empty("U8", 64)),
    Damage("ct mxfp4", "weight_packed", empty("U8", ROWS, 65)),
    Damage("modelopt nvfp4", "weight", empty("U8", ROWS, 63)),
    Damage("fp8", "weight", empty("F8_E4M3", ROWS, COLUMNS + 1)),
    Damage("fp8", "weight", empty("F8_E4M3", ROWS, COLUMNS - 32)),
    Damage("fp8", "weight", empty("F8_E4M3", ROWS, 0)),
    Damage("fp8", "weight", empty("F8_E4M3", ROWS)),
    Damage("fp8", "weight", empty("F8_E4M3")),
    Damage("fp8 rows", "weight", empty("F8_E4M3", ROWS - 1, COLUMNS)),
    Damage("fp8 blocks", "weight", empty("F8_E4M3", ROWS, 0)),
    Damage("fp8 blocks", "weight", empty("F8_E4M3", ROWS, COLUMNS + 2)),
    Damage("fp8 blocks", "weight", empty("F8_E4M3", 0, COLUMNS)),
    Damage("gptq", "qweight", empty("I32", 16, ROWS + 1)),
    Damage("gptq", "qweight", empty("I32", 17, ROWS)),
    Damage("gptq", "qweight", empty("I32", 0, ROWS)),
    Damage("gptq", "qweight", empty("I32", ROWS)),
    Damage("gptq", "qweight", empty("I32")),
    Damage("awq", "qweight", empty("I32", COLUMNS + 1, 16)),
    Damage("awq", "qweight", empty("I32", COLUMNS, 15)),
    Damage("awq", "qweight", empty("I32", 0, 16)),
    # Scales: missing, of another dtype or shape.
    Damage("ct", "weight_scale", NOTHING),
    Damage("ct", "weight_scale", empty("I32", ROWS, 4)),
    Damage("ct", "weight_scale", empty("U8", ROWS, 4)),
    Damage("ct", "weight_scale", empty("BF16", ROWS, 3)),
    Damage("ct", "weight_scale", empty("BF16", ROWS, 0)),
    Damage("ct", "weight_scale", empty("BF16", ROWS, 8)),
    Damage("ct", "weight_scale", empty("BF16", ROWS)),
    Damage("ct nvfp4", "weight_scale", NOTHING),
    Damage("ct nvfp4", "weight_scale", empty("F8_E4M3", ROWS, 4)),
    Damage("ct nvfp4", "weight_scale", empty("F32", ROWS, 8)),
    Damage("ct nvfp4", "weight_scale", empty("F8_E8M0", ROWS, 8)),
    Damage("ct mxfp4", "weight_scale", empty("F8_E4M3", ROWS, 4)),
    Damage("ct mxfp4", "weight_scale", empty("U8", ROWS, 8)),
    Damage("fp8", "weight_scale", NOTHING),
    Damage("fp8", "weight_scale", empty("U8")),
    Damage("fp8", "weight_scale", empty("F32", 2)),
    Damage("fp8 rows", "weight_scale", empty("I32", ROWS, 1)),
    Damage("fp8 blocks", "weight_scale_inv", empty("F32", 2, 2, 1)),
    Damage("fp8 blocks", "weight_scale_inv", empty("I32", 2, 2)),
    Damage("fp8 blocks", "weight_scale_inv", empty("F32", 0, 2)),
    Damage("fp8 blocks", "weight_scale_inv", empty("F32", 3, 2)),
    Damage("fp8 blocks", "weight_scale_inv", empty("F32", 2, 16)),
    Damage("gptq", "scales", NOTHING),
    Damage("gptq", "scales", empty("I32", 4, ROWS)),
    Damage("gptq", "scales", empty("F16", 3, ROWS)),
    Damage("awq", "scales", empty("F16", 4, ROWS - 8)),
    Damage("awq", "scales", empty("F16", 5, ROWS)),
    # Zero points.
    Damage("ct", "weight_zero_point", empty("I32", ROWS, 4)),
    Damage("ct", "weight_zero_point", empty("I32", 15, 4)),
    Damage("ct", "weight_zero_point", empty("I32", 16, 3)),
    Damage("ct", "weight_zero_point", empty("I8", 16, 4)),
    Damage("ct", "weight_zero_point", empty("I32", 64)),
    Damage("gptq", "qzeros", NOTHING),
    Damage("gptq", "qzeros", empty("I32", 4, 15)),
    Damage("gptq", "qzeros", empty("I32", 3, 16)),
    Damage("gptq", "qzeros", empty("F32", 4, 16)),
    Damage("gptq", "qzeros", empty("I32", 64)),
    Damage("awq", "qzeros", NOTHING),
    Damage("awq", "qzeros", empty("I32", 4, 15)),
    Damage("awq", "qzeros", empty("I32", 0, 16)),
    # Factors: without one, NVFP4 is off by thousands.
    Damage("ct nvfp4", "weight_global_scale", NOTHING),
    Damage("ct nvfp4", "weight_global_scale", empty("F32", 2)),
    Damage("ct nvfp4", "weight_global_scale", empty("I32", 1)),
    Damage("modelopt nvfp4", "weight_scale_2", NOTHING),
    Damage("modelopt nvfp4", "weight_scale_2", empty("F32", ROWS)),
    Damage("ct mxfp4", "weight_global_scale", empty("F32", 1)),
    Damage("fp8", "weight_scale_2", empty("F32")),
    # Orders.
    Damage("ct ordered", "weight_g_idx", empty("I32", 100)),
    Damage("ct ordered", "weight_g_idx", empty("F32", COLUMNS)),
    Damage("ct ordered", "weight_g_idx", empty("I32", 0)),
    Damage("gptq", "g_idx", empty("I32", 100)),
    Damage("gptq", "g_idx", empty("I32", 1, COLUMNS)),
    Damage("gptq", "g_idx", empty("I32")),
    Damage("awq", "g_idx", empty("I32", COLUMNS)),
]


@pytest.mark.parametrize(
    "damage",
    DAMAGES,
    ids=lambda one: " ".join(
        [one.format, one.leaf, *([one.tensor.dtype, str(one.tensor.shape)] if one.tensor else [])]
    ),
)
def test_one_array_that_does_not_fit(problems, damage):
    stored = stored_as(damage.format)
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    if damage.tensor is None:
        del leaves[damage.leaf]
    else:
        leaves[damage.leaf] = damage.tensor
    found = problems(leaves, stored.config)
    assert found
    assert all(each.severity == "error" for each in found)
    assert all(Q in each.render() for each in found), [each.render() for each in found]


# --- declarations that contradict --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "number"),
    [
        ("gptq", {"bits": 8}, "bits = 32·16/128 = 4"),
        ("gptq", {"group_size": 64}, "group_size = 128/4 = 32"),
        ("awq", {"group_size": 128}, "group_size = 128/4 = 32"),
    ],
)
def test_a_global_that_the_tensors_contradict_is_told(tmp_path, name, changes, number):
    """It is the producer's only word, yet the tensors leave one answer: set aside, aloud."""
    stored = stored_as(name)
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    config = {**stored.config, **changes}
    write_checkpoint(tmp_path, *llama_with(leaves, config))
    plan = make_plan(tmp_path)
    module = plan.modules[Q]
    assert str(module.scheme) == "affine 4-bit g32"
    told = [note.found for note in plan.notes if note.code == "global-set-aside"]
    assert number in "\n".join(told) or any(number in problem.found for problem in plan.problems)


@pytest.mark.parametrize(
    ("declared", "number"),
    [
        ({"num_bits": 8}, "bits = 32·16/128 = 4, not 8"),
        ({"group_size": 64}, "group_size = 128/4 = 32, not 64"),
        ({"strategy": "channel", "group_size": None}, "4 groups in a row, not one"),
    ],
)
def test_a_declaration_by_target_that_contradicts(problems, declared, number):
    stored = stored_as("ct")
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    group = stored.config["config_groups"]["group_0"]
    weights = {**group["weights"], **declared}
    config = {
        **stored.config,
        "config_groups": {"group_0": {**group, "targets": [Q], "weights": weights}},
    }
    found = problems(leaves, config)
    assert_about_q(found, "contradiction")
    (problem,) = found
    assert number in problem.message
    assert "bits = 32·16/128 = 4" in problem.found


def test_a_dense_layer_that_is_declared_packed(problems):
    stored = stored_as("ct")
    group = {**stored.config["config_groups"]["group_0"], "targets": [Q]}
    config = {**stored.config, "config_groups": {"group_0": group}}
    found = problems({"weight": empty("F32", ROWS, COLUMNS)}, config)
    assert_about_q(found, "contradiction")
    assert "the weight is dense" in found[0].message


def test_a_packed_layer_that_is_declared_dense(problems):
    stored = stored_as("ct")
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    found = problems(leaves, {**stored.config, "ignore": [Q]})
    assert_about_q(found, "contradiction")
    assert "the weight is packed" in found[0].message


def test_nobody_says_which_gptq_it_is(problems):
    leaves = {leaf: raw(tensor) for leaf, tensor in stored_as("gptq").leaves.items()}
    found = problems(leaves)
    assert_about_q(found, "undeclared-variant")
    (problem,) = found
    assert "gptq_v2" in problem.expected
    assert "checkpoint_format" in problem.help


def test_an_unknown_packing_lists_what_there_is_and_what_is_known(problems):
    stored = stored_as("ct")
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    leaves["weight_zero_point"] = empty("I32", 15, 4)
    first = problems(leaves, stored.config)[0]
    assert (first.code, first.module) == ("unknown-packing", Q)
    assert "zero_points I32 [15, 4]" in first.found
    assert all(row.name in first.expected for row in LAYOUTS)


@pytest.mark.parametrize("bits", [8])
def test_zero_points_of_other_bits_than_the_codes_are_told_when_loading(tmp_path, bits):
    """Headers alone cannot tell: 32 words may be 128 points of 8 bits."""
    stored = stored_as("gptq")
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    leaves["qzeros"] = empty("I32", 4, ROWS * bits // 32)
    write_checkpoint(tmp_path, *llama_with(leaves, stored.config))
    with pytest.raises(ExecutionError, match="zero points of 4 bits take 16 words") as caught:
        load(tmp_path, tokenizer=False)
    assert Q in str(caught.value)


def test_an_order_of_unequal_groups_is_told_when_loading(tmp_path):
    stored = stored_as("gptq")
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    leaves["g_idx"] = raw(decoders.as_tensor("I32", np.r_[0, np.arange(127) // 32]))
    write_checkpoint(tmp_path, *llama_with(leaves, stored.config))
    with pytest.raises(ExecutionError, match="unequal size") as caught:
        load(tmp_path, tokenizer=False)
    assert Q in str(caught.value)


def test_asymmetric_integers_without_zero_points(problems):
    """They would be read as symmetric ones."""
    stored = stored_as("ct")
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    del leaves["weight_zero_point"]
    assert stored.config["config_groups"]["group_0"]["weights"]["symmetric"] is False
    assert problems(leaves, stored.config)


def test_blocks_of_a_declared_size_that_is_no_power_of_two(problems):
    """Two blocks of 96 rows have as many scales as two of 128 and 64."""
    leaves = {
        "weight": empty("F8_E4M3", ROWS, COLUMNS),
        "weight_scale_inv": empty("F32", 2, 2),
    }
    assert problems(leaves, {"quant_method": "fp8", "weight_block_size": [96, 96]})


# --- companions that change values --------------------------------------------------------------


@pytest.mark.parametrize(
    "leaf", ["pre_quant_scale", "rotation", "svdquant_lora_a", "svdquant_lora_b"]
)
@pytest.mark.parametrize("name", ["modelopt nvfp4", "fp8", "gptq"])
def test_a_companion_that_changes_values_is_a_named_error(problems, name, leaf):
    stored = stored_as(name)
    leaves = {key: raw(tensor) for key, tensor in stored.leaves.items()}
    found = problems({**leaves, leaf: empty("F16", COLUMNS)}, stored.config)
    (problem,) = found
    assert problem.code == "unsupported-companion"
    assert f"{Q}.{leaf}" in problem.message
    assert problem.found
    assert "folded" in problem.help


@pytest.mark.parametrize("leaf", ["k_scale", "v_scale", "kv_scale"])
def test_scales_of_a_quantised_cache_are_left_out(problems, leaf):
    """The cache is kept in full precision, so they change nothing."""
    stored = stored_as("fp8")
    leaves = {key: raw(tensor) for key, tensor in stored.leaves.items()}
    assert problems({**leaves, leaf: empty("F32")}, stored.config) == ()


@pytest.mark.parametrize("leaf", ["k_scale", "v_scale", "kv_scale"])
def test_a_cache_that_is_asked_for_with_its_scales_is_a_named_error(problems, tmp_path, leaf):
    stored = stored_as("fp8")
    config = {**stored.config, "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    leaves = {key: raw(tensor) for key, tensor in stored.leaves.items()}
    assert problems(leaves, config) == ()
    (problem,) = problems({**leaves, leaf: empty("F32")}, config)
    assert problem.code == "quantised-cache"
    assert problem.origin.pointer == "/quantization_config/kv_cache_scheme"
    assert f"{Q}.{leaf}" in problem.found
    # The way out that the error names.
    (advised,) = re.findall(r"naming: \{.*\}", problem.help)
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"version: 1\nsource: {{path: .}}\n{advised}\n")
    make_plan(spec).require_sound()


@pytest.mark.parametrize(
    ("name", "leaf"),
    [
        ("fp8", "input_scale"),
        ("modelopt nvfp4", "input_scale"),
        ("fp8 blocks", "input_scale"),
        ("ct nvfp4", "input_global_scale"),
        ("ct", "input_scale"),
        ("ct", "input_zero_point"),
        ("ct", "weight_shape"),
    ],
)
def test_a_companion_that_says_nothing_of_weights_is_listed_as_ignored(tmp_path, name, leaf):
    stored = stored_as(name)
    leaves = {key: raw(tensor) for key, tensor in stored.leaves.items()}
    leaves.setdefault(leaf, empty("F32", 1))
    write_checkpoint(tmp_path, *llama_with(leaves, stored.config))
    plan = make_plan(tmp_path).require_sound()
    assert f"{Q}.{leaf}" in plan.ignored
    assert f"{Q}.{leaf}" not in plan.unloaded


# --- any arrays under any convention's names ------------------------------------------------------

DIMS = st.sampled_from([0, 1, 2, 3, 4, 8, 15, 16, 17, 32, 64, 65, 127, 128, 129])
SHAPES = st.lists(DIMS, max_size=3).map(tuple)
NEAR = st.sampled_from([(ROWS, n) for n in (1, 2, 4, 8, 16, 32, 64, 128)] + [(4, 16), (16, 128)])
DTYPES = st.sampled_from(["I32", "U32", "U8", "F8_E4M3", "F8_E8M0", "F32", "BF16", "F16", "I8"])

CONFIGS = [None, *(stored_as(name).config for name in FORMATS)]


@st.composite
def layers(draw):
    """A main tensor and any companions of one convention, of any dtypes and shapes."""
    row = draw(st.sampled_from(CONVENTIONS))
    main = draw(st.sampled_from(row.bases)).format("x").removeprefix("x").lstrip(".") or "weight"
    chosen = draw(st.sets(st.sampled_from(sorted(row.companions)), max_size=5))
    leaves = {main: (draw(st.sampled_from(sorted(row.dtypes)) | DTYPES), draw(NEAR | SHAPES))}
    for leaf in sorted(chosen | set(row.scales)):
        leaves[leaf] = (draw(DTYPES), draw(NEAR | SHAPES))
    return {leaf: empty(dtype, *shape) for leaf, (dtype, shape) in leaves.items()}


@st.composite
def nearly_right(draw):
    """A layer of a known format with one or two of its arrays lost, or of another form."""
    stored = stored_as(draw(st.sampled_from(sorted(FORMATS))))
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    for leaf in draw(st.lists(st.sampled_from(sorted(leaves)), min_size=1, max_size=2)):
        own = stored.leaves[leaf]
        dtype = draw(st.just(own.dtype) | DTYPES)
        axes = [
            st.sampled_from([size, size - 1, size + 1, size * 2, size // 2, 0, 1])
            for size in own.shape
        ]
        shape = draw(st.tuples(*axes) | SHAPES)
        leaves[leaf] = empty(dtype, *(max(0, size) for size in shape))
    return leaves, stored.config


@pytest.mark.parametrize("architecture", [True, False], ids=["plan", "check"])
@given(layer=nearly_right() | st.tuples(layers(), st.sampled_from(CONFIGS)))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_arrays_get_a_plan_or_named_problems(tmp_path, architecture, layer):
    """And a plan without problems can be loaded and run."""
    folder = write_checkpoint(tmp_path, *llama_with(*layer))
    try:
        plan = make_plan(folder, architecture=architecture)
    except MlxpipeError as error:
        assert error.diagnostics
        return
    for problem in plan.problems:
        assert problem.render()
    if architecture and not plan.problems:
        try:
            model, _ = load(spec(folder, model={"kernels": "packed"}), tokenizer=False)
        except ExecutionError as error:
            assert Q in str(error)
            return
        assert model(TOKENS).shape == (1, 7, 64)


@pytest.mark.parametrize("size", [1, 2, 16, 32, 64, 128, 256])
def test_blocks_of_a_power_of_two_are_found_from_their_number(size):
    """Every column is in the block that it was in; of one block alone the size does not matter."""
    for length in range(1, 400):
        found = block_size(length, -(-length // size))
        assert found is not None
        owners = [column // found for column in range(length)]
        assert owners == [column // size for column in range(length)]
        assert block_size(length, length + 1) is None
        assert block_size(length, 0) is None


@pytest.mark.parametrize(("length", "blocks"), [(288, 4), (384, 5), (300, 7)])
def test_blocks_of_other_sizes_are_not_guessed(length, blocks):
    assert block_size(length, blocks) is None


def test_the_layer_below_a_damaged_one_is_fine(problems):
    """One damaged layer is told once, and others not at all."""
    stored = stored_as("ct")
    leaves = {leaf: raw(tensor) for leaf, tensor in stored.leaves.items()}
    leaves["weight_packed"] = empty("I32", ROWS, 17)
    found = problems(leaves, stored.config)
    assert all(DOWN not in each.render() for each in found)
