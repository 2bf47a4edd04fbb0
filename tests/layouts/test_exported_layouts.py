"""Every producer's layout, linears and experts, through an export and back: the same logits."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from builders import spec
from mlx_lm.utils import load_model
from test_end_to_end import CASES, MOE_CASES, answer
from tiny_checkpoints import TOKENS, llama_config, moe_config, write_pair

import mlxpipe


def round_trip(folder, kernels, **options):
    mlxpipe.export(folder / "in", folder / "out", **options)
    if options.get("format") != "ollama":
        return answer(folder / "out", kernels)
    source = {"ollama": options["name"], "store": str(folder / "out")}
    loaded = spec(folder, source=source, model={"kernels": kernels, "dtype": "float32"})
    return mlxpipe.load(loaded, tokenizer=False)[0](TOKENS)


#: Kernels and options under which an export is bit for bit its source.
WAYS = {
    "for mlx-lm": ("dense", {}),
    "kept": ("packed", {"unsupported": "keep"}),
    "store": ("dense", {"format": "ollama", "name": "tiny"}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("cases", "name"),
    [(cases, name) for cases in (CASES, MOE_CASES) for name in cases],
    ids=lambda each: each if isinstance(each, str) else ("llama", "moe")[each is MOE_CASES],
)
def test_bit_for_bit(tmp_path, cases, name, way):
    case = cases[name]
    config = llama_config(case.hidden, case.inner) if cases is CASES else moe_config()
    packed, _ = write_pair(tmp_path, config, case.make)
    packed.rename(tmp_path / "in")
    kernels, options = WAYS[way]
    assert mx.array_equal(
        round_trip(tmp_path, kernels, **options), answer(tmp_path / "in", kernels)
    )


def test_permuted_inputs_are_dense_for_mlx_lm(tmp_path):
    packed, dense = write_pair(tmp_path, llama_config(), CASES["GPTQ desc_act"].make)
    done = mlxpipe.export(packed, tmp_path / "out")
    reasons = {form.reason for form in done.modules.values() if form.fidelity == "dequantised"}
    assert reasons == {"permuted inputs, for which the format has no place"}
    block = json.loads((tmp_path / "out/config.json").read_text()).get("quantization")
    assert block is None
    theirs, ours = load_model(tmp_path / "out")[0](TOKENS), load_model(dense)[0](TOKENS)
    assert mx.allclose(theirs, ours, rtol=1e-4, atol=1e-4).item()
