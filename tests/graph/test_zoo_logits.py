"""The graph answers as the checkpoint's reference does, and as mlx-lm does."""

from __future__ import annotations

from functools import cache

import mlx.core as mx
import mlx_lm
import pytest
from builders import (
    AFFINE_4_64,
    AFFINE_8_32,
    EMBED,
    GPTOSS,
    HEAD,
    MXFP8,
    NVFP4,
    QWEN,
    SPELLINGS,
    llama_config,
    quantised_llama,
    spec,
    write_checkpoint,
    zoo_store_spec,
)
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

from mlxpipe import load
from mlxpipe.errors import PlanError
from mlxpipe.graph.layers import PackedEmbedding, PackedExperts, PackedLinear

DIRECTORIES = [QWEN, GPTOSS]
TOLERANCE = 2e-3


@cache
def reference(folder):
    """(tokens, logits) that were computed when the checkpoint was made."""
    stored = mx.load(str(folder / "reference.safetensors"))
    return stored["tokens"], stored["logits"]


def answer(source, tokens, dtype="float32"):
    model, tokenizer = load(source, dtype=dtype, tokenizer=False)
    assert tokenizer is None
    logits = model(tokens)
    mx.eval(logits)
    return logits


def distance(one, other):
    return mx.abs(one.astype(mx.float32) - other.astype(mx.float32)).max().item()


@pytest.mark.parametrize("folder", DIRECTORIES, ids=lambda folder: folder.name)
def test_a_directory_in_float32_is_within_the_reference(folder):
    tokens, expected = reference(folder)
    logits = answer(folder, tokens)
    assert logits.dtype == mx.float32
    assert distance(logits, expected) < TOLERANCE


@pytest.mark.parametrize("kernels", ["packed", "dense"])
def test_the_store_in_float32_is_within_the_reference_with_either_kernel(kernels):
    tokens, expected = reference(QWEN)
    logits = answer(zoo_store_spec(model={"kernels": kernels}), tokens)
    assert distance(logits, expected) < TOLERANCE


@pytest.mark.parametrize("folder", DIRECTORIES, ids=lambda folder: folder.name)
def test_as_stored_a_directory_is_bit_identical_to_mlx_lm(folder):
    tokens, _ = reference(folder)
    ours = answer(folder, tokens, "checkpoint")
    theirs, _ = load_model(folder)
    expected = theirs(tokens)
    assert ours.dtype == expected.dtype
    assert mx.array_equal(ours, expected)


def test_the_store_and_the_directory_are_one_model():
    tokens, _ = reference(QWEN)
    ours = answer(zoo_store_spec(), tokens, "checkpoint")
    assert mx.array_equal(ours, answer(QWEN, tokens, "checkpoint"))


def test_a_contradiction_loads_nothing():
    with pytest.raises(PlanError, match=r"layers\.0\.mlp\.gate") as caught:
        load(zoo_store_spec(quantization={"precedence": "metadata > config"}), tokenizer=False)
    assert caught.value.code == "contradiction"


def test_load_is_a_drop_in_for_mlx_lms():
    ours, theirs = load(QWEN, dtype="checkpoint"), mlx_lm.load(str(QWEN))
    texts = [
        mlx_lm.generate(model, tokenizer, "one two", max_tokens=4)
        for model, tokenizer in (ours, theirs)
    ]
    assert texts[0] == texts[1]


def test_packed_layers_are_what_mlx_lm_asks_for():
    """Code that asks `isinstance` for MLX's quantised layers finds them."""
    model, _ = load(QWEN, dtype="checkpoint", tokenizer=False)
    theirs, _ = load_model(QWEN)
    kinds = dict(theirs.named_modules())
    seen = set()
    for path, module in model.named_modules():
        assert isinstance(module, type(kinds[path]))
        seen.add(type(module))
    assert {PackedLinear, PackedEmbedding, PackedExperts} <= seen


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_that_of_every_float(dtype):
    """Codes and one-byte scales stay; A_log is what the architecture keeps precise."""
    model, _ = load(spec(QWEN, model={"kernels": "packed"}), dtype=dtype, tokenizer=False)
    names = {
        str(array.dtype).rpartition(".")[2]
        for name, array in tree_flatten(model.parameters())
        if not name.endswith("A_log")
    }
    assert names == {dtype, "uint32", "uint8"}


# --- a llama with random weights -------------------------------------------------------------

TOKENS = mx.array([[1, 5, 9, 63, 0, 7]])


def mixed(path):
    return {EMBED: AFFINE_8_32, HEAD: MXFP8}.get(path, NVFP4 if "mlp" in path else AFFINE_4_64)


BLOCK = {
    "mode": "nvfp4",
    "bits": 4,
    "group_size": 16,
    EMBED: {"bits": 8, "group_size": 32},
    HEAD: {"mode": "mxfp8", "bits": 8, "group_size": 32},
    **{f"model.layers.0.self_attn.{name}_proj": {"bits": 4} for name in "qkvo"},
}


def test_a_dense_model_without_a_block_is_as_before(tmp_path):
    write_checkpoint(tmp_path, quantised_llama(lambda path: None), llama_config())
    theirs, _ = load_model(tmp_path)
    assert mx.array_equal(answer(tmp_path, TOKENS, "checkpoint"), theirs(TOKENS))


def test_a_mixed_model_is_bit_identical_to_mlx_lm(tmp_path):
    write_checkpoint(tmp_path, quantised_llama(mixed), llama_config(quantization=BLOCK))
    theirs, _ = load_model(tmp_path)
    assert mx.array_equal(answer(tmp_path, TOKENS, "checkpoint"), theirs(TOKENS))


def test_every_naming_and_no_block_give_the_same_logits(tmp_path):
    answers = []
    for convention in SPELLINGS:
        for config in (llama_config(), llama_config(quantization=BLOCK)):
            folder = tmp_path / f"{convention}{len(answers)}"
            write_checkpoint(folder, quantised_llama(mixed, convention), config)
            answers.append(answer(folder, TOKENS, "checkpoint"))
    assert len(answers) == 6
    assert all(mx.array_equal(answers[0], other) for other in answers)


def test_a_tied_packed_embedding_is_the_output_projection_too(tmp_path):
    config = llama_config(quantization=BLOCK, tie_word_embeddings=True)
    tensors = quantised_llama(mixed)
    write_checkpoint(tmp_path / "left-overs", tensors, config)
    clean = {name: raw for name, raw in tensors.items() if not name.startswith(HEAD)}
    write_checkpoint(tmp_path / "clean", clean, config)
    theirs, _ = load_model(tmp_path / "clean")
    for folder in ("clean", "left-overs"):
        ours = answer(tmp_path / folder, TOKENS, "checkpoint")
        assert mx.array_equal(ours, theirs(TOKENS))
