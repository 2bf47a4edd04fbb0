"""Every checkpoint of the zoo, as its producer's own tool wrote it, against its reference.

`reference.safetensors` holds logits that were computed in float32 from the producer's dense
weights. Tolerances in float32: 2e-3, and 5e-3 for blocks of FP8 with arbitrary scales.
"""

from __future__ import annotations

import json
from functools import cache

import mlx.core as mx
import pytest
from builders import DATA, QWEN, spec, zoo_store_spec

from mlxpipe import load, make_plan
from mlxpipe.errors import ExecutionError
from mlxpipe.spec.load import override

STORE = "ollama-store"
NAMES = sorted(path.name for path in DATA.iterdir() if path.is_dir())

TOLERANCE = {"fp8-block-qwen3": 5e-3}
DEFAULT_TOLERANCE = 2e-3

#: Relative to the norm of the logits. MLX's bfloat16 kernels on a CPU err by some 4 % in each
#: affine layer, and a router that rounds may choose another expert.
SHORT_TOLERANCE = {"bfloat16": 0.15, "float16": 0.02}

DENSE, EXACT, CODES, LOSSY = "dense", "exact", "exact_codes", "lossy"
HEAD, EMBED = "lm_head", "model.embed_tokens"

#: What each checkpoint is: (segment of a module's path, or "" for the rest) -> scheme and grade.
#: The first segment that fits holds.
WORDS = {
    "ar-autoround-mixed-qwen3": {
        EMBED: (DENSE, EXACT),
        "1.mlp.down_proj": ("affine 8 64", CODES),
        "": ("affine 4 64", CODES),
    },
    "ar-awq-llama": {
        HEAD: (DENSE, EXACT),
        EMBED: (DENSE, EXACT),
        "": ("affine 4 64", CODES),
    },
    "ar-gptq-mixed-qwen3": {
        EMBED: (DENSE, EXACT),
        "layers.0.self_attn.q_proj": (DENSE, EXACT),
        "1.mlp.down_proj": ("affine 8 64", CODES),
        "": ("affine 4 64", CODES),
    },
    "ct-fp8dyn-qwen3": {EMBED: (DENSE, EXACT), "": ("mxfp8 8 32", EXACT)},
    "ct-mixed-llama": {
        HEAD: (DENSE, EXACT),
        EMBED: (DENSE, EXACT),
        "self_attn": ("affine 8 128", CODES),
        "": ("nvfp4 4 16", EXACT),
    },
    "ct-mxfp4a16-llama": {
        HEAD: (DENSE, EXACT),
        EMBED: (DENSE, EXACT),
        "": ("mxfp4 4 32", EXACT),
    },
    "ct-nvfp4a16-llama": {
        HEAD: (DENSE, EXACT),
        EMBED: (DENSE, EXACT),
        "": ("nvfp4 4 16", EXACT),
    },
    "ct-w4a16-llama": {
        HEAD: (DENSE, EXACT),
        EMBED: (DENSE, EXACT),
        "": ("affine 4 128", CODES),
    },
    "ct-w4a16asym-qwen3": {EMBED: (DENSE, EXACT), "": ("affine 4 128", CODES)},
    "fp8-block-qwen3": {EMBED: (DENSE, EXACT), "": (DENSE, LOSSY)},
    "fp8-blockpow2-llama": {
        HEAD: (DENSE, EXACT),
        EMBED: (DENSE, EXACT),
        "": ("mxfp8 8 32", EXACT),
    },
    "mlx-mxfp4-q8-gptoss": {
        "self_attn": ("mxfp8 8 32", EXACT),
        "mlp.experts": ("mxfp4 4 32", EXACT),
        "": ("affine 8 64", EXACT),
    },
    "mlx-nvfp4-mixed-qwen35moe": {
        HEAD: ("affine 6 32", EXACT),
        "mlp.gate": ("affine 8 64", EXACT),
        "mlp.shared_expert_gate": ("affine 8 64", EXACT),
        "linear_attn.in_proj_a": (DENSE, EXACT),
        "linear_attn.in_proj_b": (DENSE, EXACT),
        "": ("nvfp4 4 16", EXACT),
    },
    "mo-fp8-llama": {
        HEAD: (DENSE, EXACT),
        EMBED: (DENSE, EXACT),
        "": ("mxfp8 8 32", EXACT),
    },
    "mo-mixed-qwen3": {
        EMBED: (DENSE, EXACT),
        "self_attn": ("mxfp8 8 32", EXACT),
        "": ("nvfp4 4 16", EXACT),
    },
    "mo-nvfp4-qwen3moe": {
        HEAD: (DENSE, EXACT),
        EMBED: (DENSE, EXACT),
        "mlp.gate": (DENSE, EXACT),
        "": ("nvfp4 4 16", EXACT),
    },
}
WORDS[STORE] = WORDS["mlx-nvfp4-mixed-qwen35moe"]

#: Companions that say nothing about weights, for every packed layer: leaf -> checkpoints.
IGNORED = {
    "ct-mixed-llama": "weight_shape",
    "ct-w4a16-llama": "weight_shape",
    "ct-w4a16asym-qwen3": "weight_shape",
    "mo-fp8-llama": "input_scale",
    "mo-mixed-qwen3": "input_scale",
    "mo-nvfp4-qwen3moe": "input_scale",
}

JSON_KEYS = {"modules", "conflicts", "stale", "unmatched", "totals"}


def loaded(name, **model):
    made = zoo_store_spec() if name == STORE else spec(DATA / name)
    for key, value in model.items():
        made = override(made, ("model", key), value)
    return made


@cache
def plan_of(name):
    return make_plan(loaded(name))


@cache
def reference(name):
    """(tokens [1, 16], logits [1, 16, V]); the store is the mlx directory's model."""
    folder = QWEN if name == STORE else DATA / name
    stored = mx.load(str(folder / "reference.safetensors"))
    return stored["tokens"], stored["logits"]


def answer(name, **model):
    return load(loaded(name, **model), tokenizer=False)[0](reference(name)[0])


def test_the_zoo_is_all_here():
    assert set(NAMES) == set(WORDS)
    assert len(NAMES) == 17
    for name in NAMES:
        tokens, logits = reference(name)
        assert tokens.shape == (1, 16)
        assert logits.shape[:2] == (1, 16)


@pytest.mark.parametrize("kernels", ["packed", "dense"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_in_float32(name, kernels):
    _, expected = reference(name)
    found = answer(name, dtype="float32", kernels=kernels)
    assert found.dtype == mx.float32
    assert found.shape == expected.shape
    distance = mx.abs(found - expected).max().item()
    assert distance < TOLERANCE.get(name, DEFAULT_TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_in_16_bits_are_near(name, dtype):
    _, expected = reference(name)
    found = answer(name, dtype=dtype, kernels="packed").astype(mx.float32)
    assert mx.isfinite(found).all().item()
    distance = mx.sqrt(mx.square(found - expected).sum() / mx.square(expected).sum()).item()
    assert distance < SHORT_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dense_experts_in_16_bits_are_refused_on_a_cpu(dtype):
    with pytest.raises(ExecutionError, match="float32 only") as caught:
        answer("mo-nvfp4-qwen3moe", dtype=dtype, kernels="dense", device="cpu")
    assert caught.value.code == "no-16-bit-experts"
    assert "kernels to packed" in caught.value.diagnostics[0].help


def expected_of(name, path):
    inside = f".{path}."
    return next(said for part, said in WORDS[name].items() if not part or f".{part}." in inside)


@pytest.mark.parametrize("name", NAMES)
def test_every_module_has_its_scheme_and_grade(name):
    found = {}
    expected = {}
    for path, module in plan_of(name).as_json()["modules"].items():
        form = " ".join(str(module[key]) for key in ("mode", "bits", "group_size") if key in module)
        found[path] = (DENSE if module.get("dense") else form, module["grade"])
        expected[path] = expected_of(name, path)
        assert "problem" not in module
        assert "open" not in module
    assert found == expected
    said = set(WORDS[name].values())
    assert set(found.values()) == said


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_is_clean(name):
    plan = plan_of(name).require_sound()
    assert (plan.problems, plan.conflicts, plan.unmatched, plan.unloaded) == ((), (), (), ())
    assert all(note.severity == "note" for note in plan.notes)


@pytest.mark.parametrize("name", NAMES)
def test_harmless_companions_are_ignored_and_nothing_else(name):
    plan = plan_of(name)
    leaf = IGNORED.get(name)
    assert {each.rpartition(".")[2] for each in plan.ignored} == ({leaf} if leaf else set())
    assert plan.as_json()["ignored"] == len(plan.ignored)


@pytest.mark.parametrize("name", NAMES)
def test_the_json_has_what_other_programs_rely_on(name):
    plan = plan_of(name)
    told = plan.as_json()
    assert json.loads(json.dumps(told)) == told
    assert told.keys() >= JSON_KEYS
    for module in told["modules"].values():
        assert module.keys() >= {"grade", "source", "origin"}
        assert module.get("dense") is True or module.keys() >= {"mode", "bits", "group_size"}
    totals = told["totals"]
    grades = [module["grade"] for module in told["modules"].values()]
    assert totals["grades"] == {grade: grades.count(grade) for grade in set(grades)}
    assert sum(totals["schemes"].values()) == len(grades)
    assert totals["loaded_tensors"] == totals["tensors"] - told["ignored"] - told["unloaded"]


def test_a_lossy_module_tells_what_it_was_stored_as():
    told = plan_of("fp8-block-qwen3").as_json()["modules"]["model.layers.0.mlp.down_proj"]
    assert told["dense"] is True
    assert (told["stored"], told["layout"]) == ("mxfp8 8-bit g32", "float8_blocks")
