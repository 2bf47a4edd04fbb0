"""Packed experts: stacked, split and put where the architecture has them."""

from __future__ import annotations

import pytest
from builders import AFFINE_4_64, AFFINE_8_64, NVFP4, layer, zeros
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.errors import PlanError
from mlxpipe.naming.experts import collapse_path, place_experts
from mlxpipe.naming.groups import Run, group_tensors
from mlxpipe.naming.names import ExpertName, PathIndex, parse_expert
from mlxpipe.quant.forms import mlx_form, outputs

BLOCK = "model.layers.0.mlp"
MODULES = [f"{BLOCK}.switch_mlp.{p}_proj" for p in ("gate", "up", "down")]
GATE, UP, DOWN = MODULES


def place(tensors, modules=MODULES):
    groups = group_tensors(dict(sorted(tensors.items()))).groups
    return place_experts(groups, PathIndex(modules).find, outputs)


def numbered(count, projection="up_proj", scheme=AFFINE_4_64):
    tensors = {}
    for number in range(count):
        tensors |= layer(f"{BLOCK}.experts.{number}.{projection}", scheme, 8, 64)
    return tensors


def code(tensors, modules=MODULES):
    with pytest.raises(PlanError) as caught:
        place(tensors, modules)
    return caught.value.code, str(caught.value)


def test_the_parts_of_an_experts_path():
    assert parse_expert("a.experts.7.up_proj") == ExpertName("a", 7, "up_proj")
    assert parse_expert("a.experts.gate_up_proj") == ExpertName("a", None, "gate_up_proj")
    assert parse_expert("a.shared_experts.up_proj") is None
    assert collapse_path("a.experts.7.up_proj") == "a.experts.up_proj"
    assert collapse_path("a.mlp.up_proj") == "a.mlp.up_proj"


@given(st.integers(1, 25), st.sampled_from([AFFINE_4_64, NVFP4]))
def test_packed_experts_are_stacked_in_the_order_of_their_numbers(count, scheme):
    """Ten comes after nine, whatever order the names are sorted in."""
    group = place(numbered(count, scheme=scheme))[UP]
    for role, part in group.parts.items():
        spelled = [f"{BLOCK}.experts.{number}.up_proj.{role}" for number in range(count)]
        assert part.names == tuple(spelled)
        assert part.stacked
        assert part.shape[:2] == (count, 8)


def test_a_gap_in_the_experts_is_an_error():
    tensors = {name: raw for name, raw in numbered(4).items() if ".2." not in name}
    name, text = code(tensors)
    assert name == "missing-expert"
    assert "expert 2" in text


@pytest.mark.parametrize(
    "other",
    [
        layer(f"{BLOCK}.experts.1.up_proj", AFFINE_8_64, 8, 64),
        layer(f"{BLOCK}.experts.1.up_proj", AFFINE_4_64, 16, 64),
        layer(f"{BLOCK}.experts.1.up_proj", NVFP4, 8, 64),
        layer(f"{BLOCK}.experts.1.up_proj", AFFINE_4_64, 8, 64)
        | {f"{BLOCK}.experts.1.up_proj.scales": zeros("F32", 8, 1)},
    ],
    ids=["bits", "rows", "mode", "dtype"],
)
def test_unequal_experts_are_an_error(other):
    kept = {name: raw for name, raw in numbered(3).items() if ".1." not in name}
    name, text = code(kept | other)
    assert name == "unequal-experts"
    assert "expert 1" in text
    assert "expert 0" in text


@pytest.mark.parametrize(
    "place_name",
    ["{b}.switch_mlp.{p}", "{b}.experts.{p}", "{b}.experts.switch_glu.{p}"],
)
def test_stacked_experts_go_where_the_architecture_keeps_them(place_name):
    module = place_name.format(b=BLOCK, p="up_proj")
    tensors = layer(f"{BLOCK}.experts.up_proj", NVFP4, 4, 8, 64, convention="ollama")
    assert list(place(tensors, [module])) == [module]


def test_mixtrals_projections_have_other_names():
    tensors = {}
    for projection in ("w1", "w2", "w3"):
        tensors |= numbered(2, projection)
    placed = place(tensors)
    assert {path: group.parts["weight"].names[0] for path, group in placed.items()} == {
        GATE: f"{BLOCK}.experts.0.w1.weight",
        DOWN: f"{BLOCK}.experts.0.w2.weight",
        UP: f"{BLOCK}.experts.0.w3.weight",
    }


@pytest.mark.parametrize("form", ["{}", "{}.weight"], ids=["bare", "with .weight"])
def test_a_fused_projection_is_split_by_rows(form):
    name = form.format(f"{BLOCK}.experts.gate_up_proj")
    tensors = {
        name: zeros("U32", 4, 16, 8),
        f"{name}.scale": zeros("F16", 4, 16, 1),
        f"{name}.bias": zeros("F16", 4, 16, 1),
        f"{name}.global_scale": zeros("F32", 4),
    }
    placed = place(tensors)
    assert sorted(placed) == [GATE, UP]
    for module, rows in ((GATE, Run(0, 8)), (UP, Run(8, 16))):
        form = mlx_form(placed[module])
        assert {role: array.shape for role, array in form.items()} == {
            "weight": (4, 8, 8),
            "scales": (4, 8, 1),
            "biases": (4, 8, 1),
            "multiplier": (4,),
        }
        assert placed[module].rows == (rows,)


def test_an_odd_number_of_fused_rows_is_an_error():
    tensors = layer(f"{BLOCK}.experts.gate_up_proj", NVFP4, 4, 15, 64)
    assert code(tensors)[0] == "uneven-fusion"


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (numbered(2), layer(UP, AFFINE_4_64, 2, 8, 64)),
        (layer(f"{BLOCK}.experts.up_proj", AFFINE_4_64, 2, 8, 64), numbered(2)),
        (
            layer(f"{BLOCK}.experts.up_proj", AFFINE_4_64, 2, 8, 64),
            layer(UP, AFFINE_4_64, 2, 8, 64),
        ),
        (
            layer(f"{BLOCK}.experts.gate_up_proj", AFFINE_4_64, 2, 16, 64),
            layer(UP, AFFINE_4_64, 2, 8, 64),
        ),
    ],
)
def test_two_groups_for_one_module_are_an_error(first, second):
    """None of them silently wins."""
    name, text = code(first | second)
    assert name == "name-collision"
    assert UP in text


def test_experts_that_the_architecture_has_no_place_for_are_left_alone():
    placed = place(numbered(2), modules=["elsewhere"])
    assert sorted(placed) == [f"{BLOCK}.experts.{number}.up_proj" for number in (0, 1)]


def test_dense_experts_are_left_to_sanitize():
    tensors = {f"{BLOCK}.experts.{number}.up_proj.weight": zeros("F16", 8, 64) for number in (0, 1)}
    assert sorted(place(tensors)) == [f"{BLOCK}.experts.{number}.up_proj" for number in (0, 1)]
