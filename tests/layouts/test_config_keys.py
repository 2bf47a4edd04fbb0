"""config.json under the keys that mlx-lm reads: filled in, never replaced."""

from __future__ import annotations

import copy
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.architecture.config_keys import normalise

LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}
PER_LAYER = {
    "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
    "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
}


@pytest.mark.parametrize(
    ("config", "filled"),
    [
        ({"num_local_experts": 4}, {"num_experts": 4}),
        ({"num_experts": 4}, {"num_local_experts": 4}),
        ({"num_experts": None, "num_local_experts": 4}, {"num_experts": 4}),
        ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": "float16"}, {"dtype": "float16"}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, {"rope_theta": 1e6}),
        ({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": None}, {"rope_theta": 1e6}),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.25},
        ),
        (
            {"rope_parameters": LINEAR},
            {
                "rope_theta": 1e6,
                "rope_scaling": {"rope_type": "linear", "type": "linear", "factor": 2.0},
            },
        ),
        (
            {"rope_parameters": {"type": "yarn", "factor": 4.0}},
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        ),
        ({"rope_parameters": PER_LAYER}, {}),
        ({"rope_parameters": None}, {}),
        ({"rope_parameters": [1]}, {}),
        ({}, {}),
    ],
)
@pytest.mark.parametrize("section", [None, "text_config"])
def test_a_key_that_is_missing_is_filled_in(config, filled, section):
    expected = {**config, **filled}
    if section is None:
        assert normalise(config) == expected
    else:
        assert normalise({section: config}) == {section: expected}


@pytest.mark.parametrize(
    ("first", "second", "one", "other"),
    [("num_experts", "num_local_experts", 4, 8), ("dtype", "torch_dtype", "float16", "bfloat16")],
)
def test_two_names_that_disagree_stay_as_they_are(first, second, one, other):
    config = {first: one, second: other}
    assert normalise(config) == config


def test_what_is_said_outside_of_rope_parameters_stays():
    config = {"rope_theta": 1.0, "rope_scaling": {"type": "x"}, "rope_parameters": LINEAR}
    assert normalise(config) == config


@pytest.mark.parametrize(
    ("written", "number"), [("Infinity", math.inf), ("-Infinity", -math.inf), ("NaN", math.nan)]
)
def test_tagged_floats_are_numbers_wherever_they_are(written, number):
    tagged = {"__float__": written}
    config = {"top": tagged, "deep": [{"er": [tagged]}], "text_config": {"in": tagged}}
    found = normalise(config)
    for value in (found["top"], found["deep"][0]["er"][0], found["text_config"]["in"]):
        assert value == number or (math.isnan(value) and math.isnan(number))


@pytest.mark.parametrize(
    "value",
    [{"__float__": "1.5"}, {"__float__": "Infinity", "more": 1}, {"__float__": ["NaN"]}, "NaN"],
)
def test_what_only_resembles_a_tagged_float_stays(value):
    assert normalise({"key": value}) == {"key": value}


KEYS = st.sampled_from(
    [
        "num_experts",
        "num_local_experts",
        "dtype",
        "torch_dtype",
        "rope_theta",
        "rope_scaling",
        "partial_rotary_factor",
        "rope_parameters",
        "rope_type",
        "type",
        "text_config",
        "__float__",
        "other",
    ]
)
ATOMS = st.none() | st.booleans() | st.integers() | st.sampled_from(["default", "NaN", "linear"])
VALUES = st.recursive(
    ATOMS | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
CONFIGS = st.dictionaries(KEYS, VALUES, max_size=6)


@given(config=CONFIGS)
def test_any_config_is_copied_and_nothing_is_replaced(config):
    before = copy.deepcopy(config)
    found = normalise(config)
    assert config == before
    for key, value in config.items():
        if value is not None and "__float__" not in json.dumps(value) and key != "text_config":
            assert found[key] == value


@given(config=CONFIGS)
def test_normalising_again_changes_nothing(config):
    once = normalise(config)
    assert repr(normalise(once)) == repr(once)


@given(config=CONFIGS)
def test_the_result_shares_no_container_with_the_input(config):
    found = normalise(config)

    def spoil(value):
        if isinstance(value, dict):
            for inner in value.values():
                spoil(inner)
            value["spoiled"] = True
        elif isinstance(value, list):
            for inner in value:
                spoil(inner)
            value.append("spoiled")

    spoil(found)
    assert "spoiled" not in json.dumps(config)
