"""Bits go where they cost least."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from mlxpipe.quant.modes import Scheme
from mlxpipe.tasks.allocation import Choice, allocate, as_rules, give_back, place, smallest

FOUR = Scheme("affine", 4, 64)
EIGHT = Scheme("affine", 8, 64)

#: Whole numbers, so that sums and comparisons are exact.
others = st.builds(Choice, st.just(FOUR), st.integers(0, 60), st.integers(0, 60).map(float))
units = st.lists(others, max_size=3).map(lambda rest: [Choice(None, 60, 0.0), *rest])
tables = st.dictionaries(st.sampled_from("abcd"), units, min_size=1)


def size(taken):
    return sum(choice.nbytes for choice in taken)


def cost(taken):
    return sum(choice.divergence for choice in taken)


@settings(max_examples=200, deadline=None)
@given(tables, st.floats(0, 1))
def test_nothing_of_that_size_costs_less(choices, share):
    before = size(listed[0] for listed in choices.values())
    least = smallest(choices, before)
    wanted = least + share * (before - least)
    taken = allocate(choices, before, wanted)
    assert size(taken.values()) <= wanted
    for other in product(*choices.values()):
        assert size(other) > size(taken.values()) or cost(other) >= cost(taken.values())


@settings(max_examples=200, deadline=None)
@given(tables, st.floats(0, 1))
def test_what_is_given_back_fits_and_makes_nothing_worse(choices, share):
    before = size(listed[0] for listed in choices.values())
    least = smallest(choices, before)
    wanted = least + share * (before - least)
    taken = allocate(choices, before, wanted)
    better = give_back(choices, taken, wanted - size(taken.values()))
    assert size(better.values()) <= wanted
    assert all(better[unit].divergence <= taken[unit].divergence for unit in choices)
    for unit, listed in choices.items():
        for other in listed:
            changed = {**better, unit: other}
            assert size(changed.values()) > wanted or cost(changed.values()) >= cost(
                better.values()
            )


def test_a_step_too_large_is_partly_undone():
    small = [Choice(None, 10, 0.0), Choice(FOUR, 4, 1.0)]
    large = [Choice(None, 100, 0.0), Choice(FOUR, 40, 20.0)]
    choices = {"small": small, "large": large}
    taken = allocate(choices, 110, 60)
    assert size(taken.values()) == 44
    assert give_back(choices, taken, 60 - 44) == {"small": small[0], "large": large[1]}


def test_a_size_out_of_reach_is_neared_as_far_as_can_be():
    choices = {"a": [Choice(None, 10, 0.0), Choice(FOUR, 4, 1.0)]}
    assert allocate(choices, 10, 0)["a"].nbytes == smallest(choices, 10) == 4


def test_a_size_that_is_there_already_costs_nothing():
    choices = {"a": [Choice(None, 10, 0.0), Choice(FOUR, 4, 0.0)]}
    assert allocate(choices, 10, 10)["a"].scheme is None


PATHS = [f"model.layers.{layer}.mlp.{leaf}" for layer in range(12) for leaf in ("up", "down")]


def test_a_place_is_the_same_in_every_layer():
    assert place("model.layers.11.mlp.up") == "model.layers.*.mlp.up"


def test_modules_of_one_place_share_a_rule():
    schemes = {path: FOUR for path in PATHS if path.endswith("up")}
    (rule,) = as_rules(schemes, PATHS)
    assert rule == {
        "match": "model.layers.*.mlp.up", "mode": "affine", "bits": 4, "group_size": 64
    }  # fmt: skip


def test_modules_that_differ_from_their_place_are_named():
    schemes = dict.fromkeys(PATHS, FOUR) | {PATHS[0]: EIGHT}
    rules = as_rules(schemes, PATHS)
    ups = [rule for rule in rules if rule["match"].endswith("up")]
    assert all("*" not in rule["match"] for rule in ups)
    assert {rule["match"]: rule["bits"] for rule in ups}[PATHS[0]] == 8
    assert [rule["match"] for rule in rules if rule not in ups] == ["model.layers.*.mlp.down"]


def test_a_rule_never_speaks_of_a_module_that_stays():
    schemes = {path: FOUR for path in PATHS if path != PATHS[1]}
    assert all("*.mlp.down" not in rule["match"] for rule in as_rules(schemes, PATHS))
