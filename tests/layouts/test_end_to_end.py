"""Tiny models written in producers' formats, against mlx-lm with the decoded weights."""

from __future__ import annotations

from typing import NamedTuple

import decoders
import mlx.core as mx
import pytest
from builders import spec
from mlx_lm.utils import load_model
from tiny_checkpoints import DOWN, EXPERTS, TOKENS, Q, llama_config, moe_config, write_pair

from mlxpipe import load, make_plan


class Case(NamedTuple):
    make: object
    scheme: str
    grade: str = "exact_codes"
    hidden: int = 128
    inner: int = 256


def integers(bits, group, **options):
    def make(rng, rows, columns):
        return decoders.packed_integers(rng, rows, columns, bits, group, **options)

    return make


def gptq(bits, group, **options):
    def make(rng, rows, columns):
        return decoders.gptq(rng, rows, columns, bits, group, **options)

    return make


def floats4(form):
    return lambda rng, rows, columns: decoders.floats4(rng, rows, columns, form)


def floats8(form):
    return lambda rng, rows, columns: decoders.floats8(rng, rows, columns, form)


def blocks8(powers, scale_dtype="F32"):
    def make(rng, rows, columns):
        block = (128, 128)
        return decoders.blocks8(rng, rows, columns, block, powers=powers, scale_dtype=scale_dtype)

    return make


CASES = {
    "GPTQ": Case(gptq(4, 64), "affine 4-bit g64"),
    "GPTQ desc_act": Case(gptq(4, 32, ordered=True), "affine 4-bit g32"),
    "GPTQ 3-bit": Case(gptq(3, 64), "affine 3-bit g64"),
    "GPTQ v2": Case(gptq(4, 128, version="gptq_v2"), "affine 4-bit g128"),
    "GPTQ v2 8-bit desc_act": Case(
        gptq(8, 64, version="gptq_v2", ordered=True), "affine 8-bit g64"
    ),
    "AWQ": Case(
        lambda rng, rows, columns: decoders.awq(rng, rows, columns, 64), "affine 4-bit g64"
    ),
    "CT 3-bit asymmetric": Case(integers(3, 64, symmetric=False), "affine 3-bit g64"),
    "CT 5-bit": Case(integers(5, 32), "affine 5-bit g32"),
    "CT actorder": Case(integers(4, 32, symmetric=False, ordered=True), "affine 4-bit g32"),
    "CT group 256": Case(integers(4, 256), "affine 4-bit g256", hidden=256, inner=512),
    "CT per channel": Case(integers(8, -1), "affine 8-bit per row", hidden=192, inner=320),
    "CT nvfp4": Case(floats4("divided"), "nvfp4 4-bit g16", "exact"),
    "ModelOpt NVFP4": Case(floats4("multiplied"), "nvfp4 4-bit g16", "exact"),
    "CT mxfp4": Case(floats4("mxfp4"), "mxfp4 4-bit g32", "exact"),
    "FP8 per tensor": Case(floats8("tensor"), "mxfp8 8-bit g32", "exact"),
    "FP8 per row": Case(floats8("row [o, 1]"), "mxfp8 8-bit g32", "exact"),
    "ModelOpt FP8 per row": Case(floats8("row"), "mxfp8 8-bit g32", "exact"),
    "block FP8, ragged": Case(blocks8(False), "mxfp8 8-bit g32", "lossy", 192, 320),
    "block FP8, ragged, powers of two": Case(blocks8(True), "mxfp8 8-bit g32", "exact", 192, 320),
    "block FP8, E8M0 scales": Case(blocks8(True, "F8_E8M0"), "mxfp8 8-bit g32", "exact", 192, 320),
    "block FP8, E8M0 in bytes": Case(blocks8(True, "U8"), "mxfp8 8-bit g32", "exact", 192, 320),
}

MOE_CASES = {
    "ModelOpt NVFP4": Case(floats4("multiplied"), "nvfp4 4-bit g16", "exact"),
    "CT nvfp4": Case(floats4("divided"), "nvfp4 4-bit g16", "exact"),
    "FP8": Case(floats8("tensor"), "mxfp8 8-bit g32", "exact"),
    "FP8 per row": Case(floats8("row [o, 1]"), "mxfp8 8-bit g32", "exact"),
    "block FP8": Case(blocks8(False), "mxfp8 8-bit g32", "lossy"),
    "CT int4": Case(integers(4, 32, symmetric=False), "affine 4-bit g32"),
    "GPTQ": Case(gptq(4, 32), "affine 4-bit g32"),
    "AWQ": Case(
        lambda rng, rows, columns: decoders.awq(rng, rows, columns, 32), "affine 4-bit g32"
    ),
}

#: float32 sums in another order, relative to the largest logit.
TOLERANCE = 1e-4


def answer(folder, kernels):
    loaded = spec(folder, model={"kernels": kernels, "dtype": "float32"})
    return load(loaded, tokenizer=False)[0](TOKENS)


def assert_alike(packed, dense):
    expected = load_model(dense)[0](TOKENS)
    assert mx.isfinite(expected).all().item()
    assert mx.std(expected).item() > 0.1
    for kernels in ("packed", "dense"):
        found = answer(packed, kernels)
        distance = mx.abs(found - expected).max() / mx.abs(expected).max()
        assert distance.item() < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_a_llama(tmp_path, name):
    case = CASES[name]
    packed, dense = write_pair(tmp_path, llama_config(case.hidden, case.inner), case.make)
    plan = make_plan(packed).require_sound()
    assert (plan.conflicts, plan.stale, plan.unmatched) == ((), (), ())
    for path in (Q, DOWN):
        module = plan.modules[path]
        assert (str(module.scheme), module.grade) == (case.scheme, case.grade)
        assert module.verdict.source == "config"
    assert_alike(packed, dense)


@pytest.mark.parametrize("name", MOE_CASES)
def test_experts_stored_one_by_one(tmp_path, name):
    """Each has scales of its own, those of the whole tensor included."""
    case = MOE_CASES[name]
    packed, dense = write_pair(tmp_path, moe_config(), case.make)
    plan = make_plan(packed).require_sound()
    module = plan.modules[EXPERTS.replace("experts", "switch_mlp.up_proj")]
    assert (module.kind, str(module.scheme)) == ("experts", case.scheme)
    assert module.grade == case.grade
    assert_alike(packed, dense)


def test_float16_survives_the_sums_before_a_multiplier(tmp_path):
    """Codes times block scales are of up to 2688; float16 ends at 65504."""

    def make(rng, rows, columns):
        stored = decoders.floats4(rng, rows, columns, "multiplied", factor=2.0**-15)
        scales = stored.leaves["weight_scale"]
        stored.leaves["weight_scale"] = decoders.as_tensor("F8_E4M3", 0 * scales.array + 126)
        stored.leaves["weight"] = decoders.as_tensor("U8", 0 * stored.leaves["weight"].array + 0x77)
        return stored

    packed, _ = write_pair(tmp_path, llama_config(), make)
    model, _ = load(spec(packed, model={"kernels": "packed", "dtype": "float16"}), tokenizer=False)
    layer = model.model.layers[0].mlp.down_proj
    x = mx.ones((1, 256), mx.float16)
    y = layer(x)
    assert y.dtype == mx.float16
    assert mx.allclose(y, mx.full(y.shape, 256 * 6 * 448 * 2.0**-15, mx.float16), rtol=1e-3)
