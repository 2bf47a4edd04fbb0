"""Recipes give each module what mlx-lm's own conversion gives it, bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.convert import mixed_quant_predicate_builder
from mlx_lm.utils import dequantize_model, load_model, quantize_model, save_config, save_model
from roundtrip import build
from tiny import architectures, tiny_config

import mlxpipe
from mlxpipe.architecture.advice import advise
from mlxpipe.architecture.skeleton import build_skeleton
from mlxpipe.errors import MlxpipeError, PlanError
from mlxpipe.quant.presets import PRESETS, Table, UnfitError
from mlxpipe.spec import parse_spec

MIXED = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
QUICKSTART = Path(__file__).parents[2] / "examples/quickstart/model"

#: Dense, experts with a predicate of their own, latent attention with experts.
QUANTISED = ("llama", "qwen3_5_moe", "mixtral", "deepseek_v3")


#: Where mlx-lm's predicate itself fails: it takes a name for a layer's number.
NO_NUMBER = {"longcat_flash_ngram": "model.ngram_embeddings"}


def skeleton_of(name: str) -> Any:
    try:
        return build_skeleton(tiny_config(name))
    except (MlxpipeError, SystemExit) as error:
        pytest.skip(f"mlx-lm cannot build it: {error}")


def table_of(skeleton: Any) -> Table:
    kinds = {path: each.kind.value for path, each in skeleton.modules.items() if each.quantisable}
    return Table(kinds, advise(skeleton))


@pytest.mark.parametrize("name", architectures())
def test_a_mixed_preset_is_mlx_lms(name: str) -> None:
    skeleton = skeleton_of(name)
    table, modules = table_of(skeleton), dict(skeleton.model.named_modules())
    for preset in MIXED:
        try:
            theirs = mixed_quant_predicate_builder(preset, skeleton.model, 32)
        except (ValueError, AttributeError):
            with pytest.raises(UnfitError):
                PRESETS[preset].make(table, 32)
            return
        ours = PRESETS[preset].make(table, 32)
        for path in table.kinds:
            scheme = ours(path)
            assert scheme is not None
            if path.startswith(NO_NUMBER.get(name, "-")):
                continue
            fields = {"group_size": scheme.group_size, "bits": scheme.bits, "mode": scheme.mode}
            assert fields == theirs(path, modules[path]), path


@pytest.mark.parametrize("name", architectures())
def test_the_router_safe_preset_follows_the_architecture(name: str) -> None:
    skeleton = skeleton_of(name)
    table = table_of(skeleton)
    choose = PRESETS["nvfp4_router8"].make(table, 16)
    for path, choice in table.advice.choices.items():
        scheme = choose(path)
        if choice is False:
            assert scheme is None
        elif choice is not True:
            assert (scheme.bits, scheme.mode) == (choice["bits"], choice.get("mode", "affine"))
        elif str(scheme) == "affine 8-bit g64":
            plain = table.kinds[path] == "linear" and not path.endswith("lm_head")
            assert not plain or {"gate", "router", "shared_expert_gate"} & set(path.split("."))
        else:
            assert str(scheme) == "nvfp4 4-bit g16"


ROUTERS = [
    ("mixtral", "model.layers.1.block_sparse_moe.gate"),
    ("qwen2_moe", "model.layers.1.mlp.shared_expert_gate"),
    ("granitemoehybrid", "model.layers.1.block_sparse_moe.router.layer"),
    ("jamba", "model.layers.1.feed_forward.router"),
    ("hunyuan", "model.layers.1.mlp.gate.wg"),
    ("gemma4_text", "model.layers.1.router.proj"),
]


@pytest.mark.parametrize(("name", "router"), ROUTERS)
def test_a_router_gets_eight_bits_and_the_experts_nvfp4(name: str, router: str) -> None:
    table = table_of(skeleton_of(name))
    choose = PRESETS["nvfp4_router8"].make(table, 16)
    assert str(choose(router)) == "affine 8-bit g64"
    experts = [path for path, kind in table.kinds.items() if kind == "experts"]
    assert {str(choose(path)) for path in experts} == {"nvfp4 4-bit g16"}


def test_a_preset_that_goes_by_other_names_is_refused_at_its_line(tmp_path: Path) -> None:
    folder = save_tiny("mamba2", tmp_path)
    text = f"version: 1\nsource: {{path: {folder}}}\nquantize:\n  - {{preset: mixed_4_6}}\n"
    with pytest.raises(PlanError) as caught:
        mlxpipe.make_plan(parse_spec(text))
    assert caught.value.code == "preset-unfit"
    assert caught.value.diagnostics[0].origin.line == 4


# --- bytes -----------------------------------------------------------------------------------


def save_tiny(name: str, folder: Path) -> Path:
    config = tiny_config(name)
    save_model(folder, build(name, config))
    save_config(config, folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's model, dequantised by mlx-lm."""
    folder = tmp_path_factory.mktemp("quickstart")
    model, config = load_model(QUICKSTART)
    dense = {key: value for key, value in config.items() if not key.startswith("quantization")}
    save_model(folder, dequantize_model(model))
    save_config(dense, folder / "config.json")
    return folder


def ours(folder: Path, recipe: str) -> dict[str, mx.array]:
    head = f"version: 1\nsource: {{path: {folder}}}\nmodel: {{kernels: packed}}\n"
    model, _ = mlxpipe.load(
        parse_spec(f"{head}quantize: {recipe}\n"), dtype="checkpoint", tokenizer=False
    )
    return dict(tree_flatten(model.parameters()))


def theirs(folder: Path, mode: str, preset: str | None) -> dict[str, mx.array]:
    model, config = load_model(folder, lazy=True)
    predicate = mixed_quant_predicate_builder(preset, model) if preset else None
    quantised, _ = quantize_model(
        model, copy.deepcopy(config), None, None, mode, quant_predicate=predicate
    )
    return dict(tree_flatten(quantised.parameters()))


def assert_equal(left: dict[str, mx.array], right: dict[str, mx.array]) -> None:
    assert left.keys() == right.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype, name
        assert mx.array_equal(array, right[name]).item(), name
    assert sum(name.endswith(".scales") for name in left) > 4


@pytest.mark.parametrize("name", QUANTISED)
def test_a_dense_checkpoint_becomes_what_mlx_lm_makes_of_it(name: str, tmp_path: Path) -> None:
    folder = save_tiny(name, tmp_path)
    assert_equal(ours(folder, "[{preset: mixed_3_6}]"), theirs(folder, "affine", "mixed_3_6"))


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8"])
def test_one_scheme_for_all_is_mlx_lms_without_a_predicate(mode: str, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path)
    assert_equal(ours(folder, f"[{{match: '*', mode: {mode}}}]"), theirs(folder, mode, None))


@pytest.mark.parametrize("preset", ["mixed_4_6", "mixed_2_6"])
def test_the_quickstart_becomes_what_mlx_lm_makes_of_it(preset: str, quickstart: Path) -> None:
    assert_equal(ours(quickstart, f"[{{preset: {preset}}}]"), theirs(quickstart, "affine", preset))


def test_nvfp4_with_the_architectures_own_predicate(quickstart: Path) -> None:
    mine = ours(
        quickstart,
        "[{preset: nvfp4_router8}, {match: lm_head, mode: nvfp4},"
        " {match: '*.embed_tokens', mode: nvfp4}]",
    )
    assert_equal(mine, theirs(quickstart, "nvfp4", None))
