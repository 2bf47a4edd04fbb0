"""A sample of the families with experts; `run.py --experts --all` makes all of them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import experts
import mlx.core as mx
import pytest
from experts import check, logits_of, make_sample, reference_logits, write
from families import FAMILIES, FAMILY_LIMITS, UNWRITTEN, original_convolutions, unshifted
from families import QWEN_NORMS as NORMS
from producers import PRODUCERS
from roundtrip import Verdict
from tiny import architectures

from mlxpipe import load, make_plan
from mlxpipe.errors import PlanError

BY_NAME = {producer.name: producer for producer in PRODUCERS}
AFFINE = BY_NAME["mlx-affine"]

#: One of each kind: names of projections, renamed blocks, stacks, fused rows in order and by turns,
#: parts that the architecture fuses, experts outside `.experts.`, latent attention.
SAMPLE = (
    ("deepseek_v3, kv_b packed", "modelopt-nvfp4"),
    ("deepseek_v3, kv_b packed", "mlx-affine"),
    ("gemma4_text", "mlx-affine"),
    ("gpt_oss", "ct-int4"),
    ("granitemoe", "gptq-int4"),
    ("hunyuan, dense and fused", "gptq-int4"),
    ("kimi_k3", "modelopt-nvfp4"),
    ("kimi_linear", "ct-int4"),
    ("llama4", "modelopt-nvfp4"),
    ("mixtral", "gptq-int4"),
    ("nemotron_h", "modelopt-nvfp4"),
    ("phixtral", "ct-int4"),
    ("qwen3_moe", "mlx-affine"),
    ("qwen3_next", "modelopt-nvfp4"),
    ("qwen3_vl_moe", "ct-int4"),
    ("step3p5", "gptq-int4"),
)


@pytest.mark.parametrize(("family", "producer"), SAMPLE)
def test_experts_under_the_originals_names_give_mlx_lms_logits(family, producer):
    outcome = check(family, BY_NAME[producer])
    assert outcome.verdict is Verdict.IDENTICAL, outcome.detail


def test_experts_in_another_order_are_noticed(monkeypatch):
    places = experts._places

    def turned(path, parts, sample):
        found = places(path, parts, sample)
        return dict(zip(found, list(found.values())[::-1], strict=True))

    monkeypatch.setattr(experts, "_places", turned)
    assert check("mixtral", AFFINE).verdict is Verdict.DIFFERS


def test_every_row_is_of_an_architecture_that_mlx_lm_has():
    named = {family.architecture or name for name, family in FAMILIES.items()}
    assert named | FAMILY_LIMITS.keys() | UNWRITTEN.keys() <= set(architectures())


# --- norms -----------------------------------------------------------------------------------


def one_original(weights, config):
    """Only the first convolution has the original's axes."""
    name = min(name for name in weights if name.endswith("conv1d.weight"))
    return {**weights, name: weights[name].moveaxis(1, 2)}


#: What a checkpoint is -> the steps from mlx-lm's tensors to its own, and what is noted of it.
STATES = {
    "original": ((original_convolutions, unshifted(*NORMS)), ()),
    "converted": ((), ()),
    "converted, one convolution left": ((one_original,), ("norms-by-value",)),
    "converted, all convolutions left": (
        (original_convolutions,),
        ("norms-by-value", "half-converted"),
    ),
    "converted, norms left": ((unshifted(*NORMS),), ("norms-by-value", "half-converted")),
}

DRAFT = {"mtp.fc.weight": mx.ones((8, 8)), "mtp.layers.0.input_layernorm.weight": mx.zeros((8,))}


@cache
def sampled(architecture):
    """A sample that no test changes, and its logits."""
    sample = make_sample(architecture, AFFINE)
    return sample, reference_logits(sample)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("architecture", ["qwen3_5_moe", "qwen3_next"])
def test_norms_are_shifted_once_and_only_once(tmp_path, architecture, state):
    """Whatever else is beside them: a draft's tensors are, in every state."""
    steps, codes = STATES[state]
    sample, expected = sampled(architecture)
    sample = replace(sample, family=replace(sample.family, steps=steps))
    write(sample, tmp_path, DRAFT)
    model, _ = load(tmp_path, dtype="checkpoint", tokenizer=False)
    assert mx.array_equal(logits_of(model), expected).item()
    plan = make_plan(tmp_path)
    if architecture == "qwen3_5_moe":  # the other one's rule is about its experts, and those differ
        assert {each.code for each in plan.notes} - {"left-out"} == set(codes)
    assert set(plan.unloaded) == DRAFT.keys()


def test_norms_that_tell_nothing_are_left_to_the_convolutions(tmp_path):
    sample = make_sample("qwen3_5_moe", AFFINE)
    halves = [
        (name, mx.full(array.shape, 0.5, array.dtype))
        for name, array in experts.tree_flatten(sample.model.parameters())
        if name.endswith(NORMS) and array.ndim == 1
    ]
    sample.model.load_weights(halves, strict=False)
    sample = replace(sample, family=replace(sample.family, steps=()))
    write(sample, tmp_path)
    plan = make_plan(tmp_path).require_sound()
    assert not any(parameter.instead for parameter in plan.parameters.values())


# --- parts that are not loaded ---------------------------------------------------------------


def packed(path, rows=64, columns=64):
    """A layer in MLX's affine layout."""
    parts = AFFINE.pack(mx.ones((rows, columns)), 0)
    return {f"{path}.{role}": array for role, array in parts.items()}


SEEING = {
    "qwen3_vl_moe": "model.visual.blocks.0.attn.qkv",
    "kimi_vl": "vision_tower.encoder.blocks.0.wqkv",
    "llama4": "vision_model.layers.0.self_attn.q_proj",
    "kimi_k25": "mm_projector.proj.0",
    "qwen3_moe": "model.vision_tower.blocks.0.attn.qkv",
}


@pytest.mark.parametrize("architecture", SEEING)
def test_the_language_model_of_one_that_sees_runs_alone(tmp_path, architecture):
    sample = make_sample(architecture, AFFINE)
    tower = packed(SEEING[architecture])
    write(sample, tmp_path, tower)
    plan = make_plan(tmp_path).require_sound()
    assert set(plan.unloaded) == tower.keys()
    (note,) = [each for each in plan.notes if each.code == "left-out"]
    assert "sees images" in note.message
    model, _ = load(tmp_path, dtype="checkpoint", tokenizer=False)
    assert mx.array_equal(logits_of(model), reference_logits(sample)).item()


def test_a_tensor_of_no_known_part_is_an_error(tmp_path):
    write(make_sample("kimi_vl", AFFINE), tmp_path, packed("language_model.model.visions.0"))
    with pytest.raises(PlanError) as caught:
        make_plan(tmp_path).require_sound()
    assert caught.value.code == "unexpected-tensor"


def test_layers_that_draft_tokens_are_left_out_with_their_overrides(tmp_path):
    sample = make_sample("deepseek_v3", AFFINE)
    draft = packed("model.layers.4.mlp.experts.0.up_proj") | packed("model.layers.4.eh_proj")
    draft["model.layers.4.enorm.weight"] = mx.ones((128,))
    paths = ("model.layers.4.eh_proj", "model.layers.4.mlp.experts.0.up_proj")
    declared = {path: {"bits": 8, "group_size": 64} for path in paths}
    write(with_config(sample, declared, num_nextn_predict_layers=1), tmp_path, draft)
    plan = make_plan(tmp_path).require_sound()
    assert set(plan.unloaded) == draft.keys()
    assert {each.code for each in plan.notes} == {"left-out", "dead-override"}
    assert plan.unmatched == ()
    model, _ = load(tmp_path, dtype="checkpoint", tokenizer=False)
    assert mx.array_equal(logits_of(model), reference_logits(sample)).item()


def test_a_layer_beyond_the_last_that_no_config_speaks_of_is_an_error(tmp_path):
    sample = with_config(make_sample("mixtral", AFFINE), {})
    write(sample, tmp_path, packed("model.layers.4.self_attn.q_proj"))
    with pytest.raises(PlanError) as caught:
        make_plan(tmp_path).require_sound()
    assert caught.value.code == "unexpected-tensor"


def test_what_the_architecture_transposes_is_dequantised_and_the_plan_says_so(tmp_path):
    sample = make_sample("deepseek_v3, kv_b packed", AFFINE)
    write(sample, tmp_path)
    plan = make_plan(tmp_path).require_sound()
    assert {each.code for each in plan.notes} == {"dequantised"}
    halves = [plan.modules[f"model.layers.0.self_attn.{leaf}"] for leaf in LATENT]
    assert [(each.scheme.bits, each.landing, each.grade) for each in halves] == [
        (4, None, "lossy")
    ] * 2
    stored = sample.latent["model.layers.0.self_attn.kv_b_proj"].values()
    assert sum(each.nbytes for each in halves) == sum(array.nbytes for array in stored)


LATENT = ("embed_q", "unembed_out")


def test_two_layers_for_one_module_are_an_error(tmp_path):
    sample = make_sample("kimi_linear", AFFINE)
    write(sample, tmp_path, packed("model.layers.1.mlp.shared_experts.up_proj", 128, 128))
    with pytest.raises(PlanError) as caught:
        make_plan(tmp_path)
    assert caught.value.code == "name-collision"


# --- declarations ----------------------------------------------------------------------------

BLOCK = "model.layers.0.block_sparse_moe"
OWN = {"bits": 4, "group_size": 64}
OTHER = {"bits": 8, "group_size": 32}
DOWN = f"{BLOCK}.switch_mlp.down_proj"


def with_config(sample, declared, **fields):
    """The sample, its config.json declaring more."""
    quantization = {**AFFINE.config["quantization"], **declared}
    producer = replace(sample.producer, config={"quantization": quantization, **fields})
    return replace(sample, producer=producer)


def mixtral(folder, declared, overrides=()):
    write(with_config(sampled("mixtral")[0], declared), folder)
    data = {"version": 1, "source": {"path": str(folder)}}
    if overrides:
        data["quantization"] = {"overrides": list(overrides)}
    (folder / "spec.yaml").write_text(experts.json.dumps(data), encoding="utf-8")
    return make_plan(folder / "spec.yaml")


@pytest.mark.parametrize(
    "declared",
    [
        {f"{BLOCK}.experts.{number}.w2": OWN for number in range(4)},
        {f"{BLOCK}.experts.*.w2": OWN},
        {f"{BLOCK}.experts.w2": OWN},
        {DOWN: OWN},
        {f"{BLOCK}.experts.3.w2": OWN},
        {f"{BLOCK}.experts.3.down_proj": OWN},
    ],
    ids=["each", "any", "stacked", "module", "one, as the global", "by mlx-lm's projection"],
)
def test_claims_on_experts_that_agree_are_the_layers(tmp_path, declared):
    plan = mixtral(tmp_path, declared).require_sound()
    assert (plan.modules[DOWN].verdict.source, plan.unmatched) == ("config", ())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([{"match": f"{BLOCK}.experts.3.w2", **OTHER}], "expert 3: affine 8-bit g32"),
        ([{"match": "*.0.block_sparse_moe.experts.2.w2", **OTHER}], "expert 2: affine 8-bit g32"),
        (
            [{"match": r"re:layers\.0\..*experts\.[0-2]\.w2", **OTHER}],
            "experts 0-2: affine 8-bit g32",
        ),
        ([{"match": f"{BLOCK}.experts.1.w2", "dense": True}], "expert 1: dense"),
    ],
)
def test_claims_that_divide_the_experts_say_which(tmp_path, overrides, said):
    plan = mixtral(tmp_path, {}, overrides)
    (problem,) = plan.problems
    assert (problem.code, problem.module) == ("divided-experts", DOWN)
    assert said in problem.found
    assert "affine 4-bit g64 (config" in problem.found


@pytest.mark.parametrize(
    "pattern",
    [
        "*.0.block_sparse_moe.experts.*.w2",
        r"re:layers\.0\..*experts\.\d+\.w2",
        r"re:layers\.0\..*experts\.[0-3]\.w2$",
    ],
)
def test_a_pattern_over_all_experts_is_the_layers(tmp_path, pattern):
    plan = mixtral(tmp_path, {}, [{"match": pattern, **OWN}]).require_sound()
    assert plan.modules[DOWN].verdict.source == "spec"
    assert plan.modules[DOWN.replace(".0.", ".1.")].verdict.source == "config"


def test_a_rule_for_the_whole_layer_settles_what_divides_its_experts(tmp_path):
    declared = {f"{BLOCK}.experts.3.w2": OTHER}
    plan = mixtral(tmp_path, declared, [{"match": f"{BLOCK}.experts.*.w2", **OWN}])
    assert plan.require_sound().modules[DOWN].verdict.source == "spec"


def test_an_expert_that_there_is_not_is_unmatched(tmp_path):
    (claim,) = mixtral(tmp_path, {f"{BLOCK}.experts.4.w2": OWN}).unmatched
    assert claim.code == "unmatched-override"
