"""Paths, prefixes and the one renaming that tensors and override keys share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.naming.names import (
    WRAPPERS,
    PathIndex,
    Renaming,
    Rule,
    core,
    is_pattern,
    matches,
    strip_leaf,
)

GATE = "layers.0.mlp.gate"


@pytest.mark.parametrize(
    ("path", "bare"),
    [
        ("model.layers.0.mlp.gate", GATE),
        ("model.language_model.layers.0.mlp.gate", GATE),
        ("language_model.model.layers.0.mlp.gate", GATE),
        (GATE, GATE),
        ("lm_head", "lm_head"),
        ("language_model.lm_head", "lm_head"),
        ("model", "model"),
        ("language_model.model", "model"),
        ("vision_tower.model.x", "vision_tower.model.x"),
        ("modeling.x", "modeling.x"),
    ],
)
def test_core_is_the_path_without_leading_wrappers(path, bare):
    assert core(path) == bare


@pytest.mark.parametrize(
    ("key", "path"),
    [("a.weight", "a"), ("a.scales", "a"), ("a.biases", "a"), ("a.b", "a.b"), ("weight", "weight")],
)
def test_a_key_may_carry_a_parameters_leaf(key, path):
    assert strip_leaf(key) == path


@pytest.mark.parametrize(
    ("pattern", "fits", "misses"),
    [
        ("lm_head", ["lm_head", "language_model.lm_head"], ["lm_head.x", "x.lm_head"]),
        ("*.mlp.gate", ["model.layers.0.mlp.gate"], ["model.layers.0.mlp.gate_proj", "mlp.gate"]),
        ("layers.0.*", ["model.layers.0.mlp.gate"], ["model.layers.00.x", "draft.layers.0.x"]),
        ("model.layers.?.x", ["model.layers.1.x"], ["model.layers.11.x", "layers.1.x"]),
        (r"re:^layers\.\d+\.x$", ["layers.7.x", "model.layers.12.x"], ["model.layers.a.x"]),
        (r"re:gate$", ["a.mlp.gate"], ["a.mlp.gate_proj"]),
        ("a.b", ["a.b"], ["axb"]),
    ],
)
def test_patterns_fit_whole_paths_with_or_without_wrappers(pattern, fits, misses):
    assert [path for path in fits if not matches(pattern, path)] == []
    assert [path for path in misses if matches(pattern, path)] == []


def test_a_key_is_a_pattern_by_its_signs():
    assert [key for key in ("a.*", "a?", "[ab]", "re:a") if not is_pattern(key)] == []
    assert [key for key in ("a.b", "lm_head", "rex") if is_pattern(key)] == []


# --- prefixes --------------------------------------------------------------------------------

PATHS = (f"language_model.model.{GATE}", "language_model.model.norm", "language_model.lm_head")


@given(
    st.lists(st.sampled_from(sorted(WRAPPERS)), max_size=4),
    st.sampled_from([*PATHS, f"model.{GATE}", "lm_head"]),
)
def test_missing_or_extra_prefixes_still_mean_the_module(wrappers, path):
    index = PathIndex([path])
    assert index.find(".".join([*wrappers, core(path)])) == path


@pytest.mark.parametrize("key", ["layers.1.mlp.gate", "mlp.gate", "x.lm_head", ""])
def test_a_prefix_that_is_no_wrapper_makes_another_path(key):
    assert PathIndex(PATHS).find(key) is None


def test_modules_that_differ_by_wrappers_only_need_their_exact_path():
    index = PathIndex(["model.norm", "text_model.norm"])
    assert index.find("model.norm") == "model.norm"
    assert index.find("norm") is None
    assert index.find("language_model.norm") is None


def test_an_exact_path_wins_over_an_alias_and_that_over_a_bare_one():
    index = PathIndex(["model.a", "model.b"], aliases={"model.a": "model.b", "a": "model.b"})
    assert index.find("model.a") == "model.a"
    assert index.find("a") == "model.b"
    assert index.find("language_model.a") == "model.a"


# --- the user's rules ------------------------------------------------------------------------

WRAP = Rule(r"^model\.language_model\.(.*)$", r"language_model.model.\1")


@pytest.mark.parametrize(
    ("rules", "key", "path"),
    [
        ([WRAP], f"model.language_model.{GATE}", f"language_model.model.{GATE}"),
        ([WRAP], f"other.{GATE}", f"other.{GATE}"),
        ([Rule(r"\.gate\.weight$", ".router.weight")], "a.mlp.gate", "a.mlp.router"),
        ([Rule(r"\.gate\.weight$", ".router.weight")], "a.mlp.gate_proj", "a.mlp.gate_proj"),
        ([Rule(r"gate$", "router")], "a.mlp.gate", "a.mlp.router"),
        (
            [WRAP, Rule(r"\.gate\.weight$", ".router.weight")],
            f"model.language_model.{GATE}",
            "language_model.model.layers.0.mlp.router",
        ),
        (
            [Rule(r"\.gate\.weight$", ".router.weight"), WRAP],
            f"model.language_model.{GATE}",
            "language_model.model.layers.0.mlp.router",
        ),
        ([], GATE, GATE),
    ],
)
def test_override_keys_go_through_the_rules_of_tensors(rules, key, path):
    assert Renaming(tuple(rules)).key(key) == path


WORD = st.sampled_from(["a", "b", "gate", "gate_proj", "model", "0"])
RULES = st.sampled_from(
    [
        WRAP,
        Rule(r"^model\.", ""),
        Rule(r"^", "model."),
        Rule(r"\.gate\.", ".router."),
        Rule(r"\.gate\.weight$", ".router.weight"),
        Rule(r"^a\.(.*)\.weight$", r"b.\1.weight"),
    ]
)


@given(st.lists(WORD, min_size=1, max_size=5), st.lists(RULES, max_size=4))
def test_a_key_is_renamed_to_where_its_weight_goes(segments, rules):
    renaming, path = Renaming(tuple(rules)), ".".join(segments)
    assert renaming.key(path) == strip_leaf(renaming.tensor(f"{path}.weight"))
