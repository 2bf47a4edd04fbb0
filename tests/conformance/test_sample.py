"""A sample of the round trips; `run.py` makes all of them."""

from __future__ import annotations

import pytest
from roundtrip import RECIPES, Verdict, check, recipes_for
from rows import LIMITS, ROWS, TIED_LIMITS
from tiny import architectures, tiny_config

import mlxpipe
from mlxpipe.errors import PlanError

#: One of each kind: dense, tied, experts, latent attention, sliding windows, fused projections,
#: recurrent layers, text sections, layers that only their architecture knows, and some that come
#: packed.
SAMPLE = (
    "afm7",
    "deepseek_v3",
    "gemma3",
    "gpt_oss",
    "granitemoehybrid",
    "llama",
    "mamba2",
    "mixtral",
    "olmoe",
    "phi3",
    "prism_hadamard_qwen35",
    "qwen3",
    "qwen3_5_moe",
)


TRIPS = [
    pytest.param(name, recipe, id=f"{name}-{recipe.name}")
    for name in SAMPLE
    for recipe in recipes_for(name)
]


@pytest.mark.parametrize(("name", "recipe"), TRIPS)
def test_the_logits_are_those_of_mlx_lm(name, recipe):
    outcome = check(name, recipe)
    assert outcome.verdict is Verdict.IDENTICAL, outcome.detail


def test_a_model_that_differs_in_one_layer_is_noticed(monkeypatch):
    load = mlxpipe.load

    def load_wrongly(*arguments, **options):
        model, tokenizer = load(*arguments, **options)
        scales = model.layers[1].mlp.up_proj.scales
        model.layers[1].mlp.up_proj.scales = scales * 1.01
        return model, tokenizer

    monkeypatch.setattr(mlxpipe, "load", load_wrongly)
    outcome = check("llama", RECIPES[0])
    assert outcome.verdict is Verdict.DIFFERS
    assert "of the logits differ" in outcome.detail


def test_what_mlxpipe_raises_is_a_difference(monkeypatch):
    def refuse(*arguments, **options):
        raise PlanError("missing-tensor", "a tensor is missing")

    monkeypatch.setattr(mlxpipe, "load", refuse)
    assert check("llama", RECIPES[0]).verdict is Verdict.DIFFERS


def test_what_mlx_lm_cannot_build_is_a_limit_of_mlx_lm():
    outcome = check("no_such_architecture", RECIPES[0])
    assert outcome.verdict is Verdict.LIMIT
    assert outcome.detail.startswith("build: ModuleNotFoundError")


def test_every_row_is_of_an_architecture_that_mlx_lm_has():
    assert ROWS.keys() | LIMITS.keys() | TIED_LIMITS.keys() <= set(architectures())


def test_the_configuration_of_an_architecture_without_a_row_comes_from_its_args():
    assert "llama" not in ROWS
    config = tiny_config("llama")
    assert config["model_type"] == "llama"
    assert (config["hidden_size"], config["num_hidden_layers"]) == (128, 4)
    assert tiny_config("llama", tied=True)["tie_word_embeddings"] is True
