"""Companions by structure: which tensor hangs on which, under whose names."""

from __future__ import annotations

import pytest
from builders import AFFINE_4_64, EMBED, NVFP4, SPELLINGS, Q, layer, spelled, zeros

from mlxpipe.errors import PlanError, UsageError
from mlxpipe.naming.conventions import CONVENTIONS, select
from mlxpipe.naming.groups import group_tensors
from mlxpipe.naming.names import Renaming, Rule

WORDS, HALVES, NUMBER = zeros("U32", 8, 16), zeros("F16", 8, 2), zeros("F32")


def where(tensors, name, **options):
    """(path, role) under which a tensor was sorted in."""
    groups = group_tensors(dict(sorted(tensors.items())), **options).groups
    return next(
        (path, role)
        for path, group in groups.items()
        for role, part in group.parts.items()
        if name in part.names
    )


@pytest.mark.parametrize("convention", SPELLINGS)
@pytest.mark.parametrize("path", [Q, EMBED], ids=["linear", "embedding"])
@pytest.mark.parametrize("scheme", [AFFINE_4_64, NVFP4], ids=str)
def test_both_namings_for_linears_and_embeddings(path, convention, scheme):
    tensors = layer(path, scheme, 64, 128, convention=convention)
    (group,) = group_tensors(tensors).groups.values()
    roles = ("weight", "scales", "biases")[: len(tensors)]
    assert {role: part.names for role, part in group.parts.items()} == {
        role: (spelled(path, role, convention),) for role in roles
    }
    assert (group.path, group.packed, group.convention) == (path, True, convention)


@pytest.mark.parametrize(
    ("tensors", "name", "home"),
    [
        ({"router.scale": NUMBER}, "router.scale", ("router", "scale")),
        (
            {"router.scale": NUMBER, "router.proj.weight": WORDS, "router.proj.scales": HALVES},
            "router.scale",
            ("router", "scale"),
        ),
        ({"n.scales": HALVES, "n.weight": HALVES}, "n.scales", ("n", "scales")),
        ({"n.weight.scale": HALVES, "n.weight": HALVES}, "n.weight.scale", ("n.weight", "scale")),
        ({"dt.A_log": NUMBER}, "dt.A_log", ("dt", "A_log")),
        ({"A_log": NUMBER}, "A_log", ("", "A_log")),
    ],
)
def test_companions_never_taken_for_main_tensors(tensors, name, home):
    """A leaf called like a companion is a parameter where no packed tensor owns it."""
    assert where(tensors, name) == home
    assert group_tensors(tensors).groups[home[0]].convention == ""


@pytest.mark.parametrize(
    ("stem", "siblings", "leaf", "role"),
    [
        ("x.weight", ["scale"], "bias", "biases"),
        ("x.weight", ["scale"], "global_scale", "multiplier"),
        ("e.gate_up_proj", ["scale"], "bias", "biases"),
        ("e.gate_up_proj", ["scale"], "global_scale", "multiplier"),
        ("e.gate_up_proj", ["scales"], "global_scale", "amax"),
        ("e.gate_up_proj", ["scales"], "bias", "bias"),
        ("e.gate_up_proj", ["scales", "biases"], "bias", "bias"),
    ],
)
def test_a_shared_leaf_is_read_by_the_convention_whose_scales_are_there(stem, siblings, leaf, role):
    tensors = {stem: WORDS, f"{stem}.{leaf}": HALVES}
    tensors |= {f"{stem}.{sibling}": HALVES for sibling in siblings}
    path = stem.removesuffix(".weight")
    assert where(tensors, f"{stem}.{leaf}") == (path, role)


@pytest.mark.parametrize(
    ("leaf", "role"), [("bias", "bias"), ("biases", "biases"), ("global_scale", "amax")]
)
def test_the_additive_bias_and_the_offsets_are_never_mixed(leaf, role):
    tensors = {"x.weight": WORDS, "x.scales": HALVES, f"x.{leaf}": HALVES}
    assert where(tensors, f"x.{leaf}") == ("x", role)


def test_a_spec_can_leave_conventions_out():
    tensors = layer("x", AFFINE_4_64, 8, 64, convention="ollama")
    assert where(tensors, "x.weight.scale") == ("x", "scales")
    only_mlx = select(["mlx"])
    assert where(tensors, "x.weight.scale", conventions=only_mlx) == ("x.weight", "scale")


def test_select_takes_auto_one_name_or_several_in_the_tables_order():
    assert select("auto") == CONVENTIONS
    assert [row.name for row in select(["ollama", "mlx"])] == ["mlx", "ollama"]
    with pytest.raises(UsageError, match="did you mean 'ollama'") as caught:
        select(["mlx", "olama"])
    assert caught.value.code == "unknown-convention"


# --- rules and drops -------------------------------------------------------------------------


def test_rules_rename_a_main_tensor_and_its_companions_follow():
    renaming = Renaming((Rule(r"^old\.(.*)\.weight$", r"new.\1.weight"),))
    for convention in SPELLINGS:
        tensors = layer("old.x", AFFINE_4_64, 8, 64, convention=convention)
        (group,) = group_tensors(tensors, renaming=renaming).groups.values()
        assert group.path == "new.x"
        assert set(group.parts) == {"weight", "scales", "biases"}


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (["a.weight", "b.weight"], Rule("^b", "a")),
        (["a.norm", "b.norm"], Rule(r"^[ab]\.", "c.")),
    ],
)
def test_two_tensors_normalised_to_one_name_are_an_error(names, rule):
    with pytest.raises(PlanError) as caught:
        group_tensors(dict.fromkeys(names, HALVES), renaming=Renaming((rule,)))
    assert caught.value.code == "name-collision"
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("glob", ["mtp.*", "model.mtp.*", "*.fc.weight"])
def test_dropped_tensors_take_their_companions_along(glob):
    tensors = layer("model.mtp.fc", AFFINE_4_64, 8, 64) | {"model.norm.weight": HALVES}
    grouping = group_tensors(tensors, drop=[glob])
    assert list(grouping.groups) == ["model.norm"]
    assert sorted(grouping.dropped) == sorted(set(tensors) - {"model.norm.weight"})


def test_a_drop_may_be_written_for_names_before_or_after_the_rules():
    renaming = Renaming((Rule("^draft", "mtp"),))
    for glob in ("draft.*", "mtp.*"):
        grouping = group_tensors({"draft.norm": HALVES}, renaming=renaming, drop=[glob])
        assert grouping.dropped == ("draft.norm",)


def test_scales_without_a_weight_pack_nothing():
    (group,) = group_tensors({"x.scales": HALVES, "x.biases": HALVES}).groups.values()
    assert not group.packed
