"""Entries of an Ollama store: true to each tensor, and no harm to the others."""

from __future__ import annotations

import json
import shutil

import pytest
from builders import DATA, STORE, STORE_MODEL, Scheme, llama_config, quantised_llama
from builders import write_checkpoint as write
from export_tools import ENTRY, QWEN, answer, contents, entry_spec, same, zoo_tokens

import mlxpipe
from mlxpipe.checkpoint import open_ollama
from mlxpipe.errors import UsageError
from mlxpipe.quant.ollama_dialect import QUANT_TYPES

NAME = {"affine": "int", "nvfp4": "nvfp", "mxfp4": "mxfp", "mxfp8": "mxfp"}


def export(source, store, name=ENTRY, **options):
    return mlxpipe.export(source, store, format="ollama", name=name, **options)


@pytest.fixture
def store(tmp_path):
    return shutil.copytree(STORE, tmp_path / "store")


def own_scheme(shard, checkpoint, widths):
    """(mode, bits, group size) of a blob by its own arrays, None where it is dense."""
    tensors = {name: t for name, t in checkpoint.tensors.items() if t.shard == shard}
    base = min(tensors, key=len)
    if f"{base}.scale" not in tensors:
        return None
    width = widths[base.removesuffix(".weight")]
    bits = 32 * tensors[base].shape[-1] // width
    size = width // tensors[f"{base}.scale"].shape[-1]
    if f"{base}.bias" in tensors:
        return "affine", bits, size
    return {(4, 16): "nvfp4", (4, 32): "mxfp4", (8, 32): "mxfp8"}[bits, size], bits, size


@pytest.mark.parametrize("source", ["mlx-nvfp4-mixed-qwen35moe", "mlx-mxfp4-q8-gptoss"])
def test_the_metadata_of_each_blob_is_true_of_its_own_tensor(tmp_path, source):
    """The arithmetic is done here again, from shapes and the architecture's widths."""
    plan = mlxpipe.make_plan(DATA / source)
    widths = {path: m.verdict.evidence.in_features for path, m in plan.modules.items()}
    export(DATA / source, tmp_path / "store")
    checkpoint = open_ollama(ENTRY, tmp_path / "store", verify=True)
    seen = set()
    for number, shard in enumerate(checkpoint.shards):
        scheme = own_scheme(number, checkpoint, widths)
        if scheme is None:
            assert shard.metadata == {}
            continue
        mode, bits, size = scheme
        stamp = dict(shard.metadata)
        named = QUANT_TYPES.get(stamp.pop("quant_type", "").upper())
        assert stamp == {"mode": mode, "bits": str(bits), "group_size": str(size)}
        assert named is None or (named.mode, named.bits) == (mode, bits)
        assert (named is None) == (mode == "affine" and bits not in (4, 8))
        seen.add(scheme)
    assert len(seen) >= 3


def test_metadata_and_config_agree_everywhere(tmp_path):
    export(QWEN, tmp_path / "store")
    for order in ("config > metadata", "metadata > config"):
        loaded = entry_spec(tmp_path / "store", quantization={"precedence": order})
        plan = mlxpipe.make_plan(loaded).require_sound()
        assert (plan.conflicts, plan.stale, plan.notes) == ((), (), ())


def test_metadata_alone_is_enough(tmp_path):
    """A reader that looks at blobs only finds every scheme, also those Ollama has no name for."""
    schemes = [Scheme("affine", bits, 32) for bits in (2, 3, 5, 6)]
    paths = iter(schemes * 3)
    tensors = quantised_llama(lambda path: next(paths))
    write(tmp_path / "in", tensors, llama_config())
    done = export(tmp_path / "in", tmp_path / "store")
    plan = mlxpipe.make_plan(
        entry_spec(
            tmp_path / "store", quantization={"precedence": "metadata > spec > config > shapes"}
        )
    ).require_sound()
    assert {m.verdict.source for m in plan.modules.values()} == {"metadata"}
    assert {str(m.scheme) for m in plan.modules.values()} == set(map(str, schemes))
    assert all("no quant_type" in form.reason for form in done.modules.values())


def test_a_factor_is_the_blob_s_global_scale(tmp_path):
    source = DATA / "ct-nvfp4a16-llama"
    done = export(source, tmp_path / "store")
    assert done.count("identical") == len(done.modules)
    checkpoint = open_ollama(ENTRY, tmp_path / "store")
    scale = checkpoint.tensors["model.layers.0.mlp.up_proj.weight.global_scale"]
    assert (scale.dtype, scale.shape) == ("F32", ())
    for kernels in ("packed", "dense"):
        tokens = zoo_tokens(source)
        found = answer(lambda **m: entry_spec(tmp_path / "store", **m), tokens, kernels)
        assert same(found, answer(source, tokens, kernels))


def test_other_entries_of_a_store_stay_as_they_are(store):
    before = contents(store)
    export(QWEN, store, "new:one")
    after = contents(store)
    assert {name: after[name] for name in before} == before
    assert "manifests/registry.ollama.ai/library/new/one" in after
    assert not [name for name in after if name.endswith(".partial") or "pending" in name]
    open_ollama(STORE_MODEL, store, verify=True)
    open_ollama("new:one", store, verify=True)


def test_a_second_entry_of_the_same_model_adds_a_manifest_alone(store):
    export(QWEN, store, "new:one")
    before = contents(store).keys()
    export(QWEN, store, "new:two")
    assert contents(store).keys() - before == {"manifests/registry.ollama.ai/library/new/two"}


def test_from_an_entry_into_its_own_store(store):
    source = entry_spec(store, STORE_MODEL)
    export(source, store, "truthful:tiny")
    made = entry_spec(store, "truthful:tiny", model={"kernels": "dense", "dtype": "float32"})
    logits = mlxpipe.load(made, tokenizer=False)[0](zoo_tokens())
    assert same(logits, answer(QWEN, zoo_tokens()))
    assert json.loads(open_ollama("truthful:tiny", store).files["params"].read_bytes()) == (
        json.loads(open_ollama(STORE_MODEL, store).files["params"].read_bytes())
    )


def test_names_as_ollama_has_them(tmp_path):
    export(QWEN, tmp_path / "store", "example.com/team/model:v1")
    assert (tmp_path / "store/manifests/example.com/team/model/v1").is_file()
    export(QWEN, tmp_path / "store", "plain")
    assert (tmp_path / "store/manifests/registry.ollama.ai/library/plain/latest").is_file()


def test_the_manifest_is_what_ollama_writes(tmp_path):
    export(QWEN, tmp_path / "store")
    manifest = json.loads(
        (tmp_path / "store/manifests/registry.ollama.ai/library/exported/tiny").read_text()
    )
    assert manifest["schemaVersion"] == 2
    kinds = [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]]
    assert set(kinds) == {"tensor", "json"}
    names = [layer["name"] for layer in manifest["layers"]]
    assert "model.safetensors.index.json" not in names
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(names)
    image = tmp_path / "store/blobs" / manifest["config"]["digest"].replace(":", "-")
    assert json.loads(image.read_text())["model_format"] == "safetensors"
    listed = {layer["digest"] for layer in manifest["layers"]} | {manifest["config"]["digest"]}
    blobs = {path.name for path in (tmp_path / "store/blobs").iterdir()}
    assert blobs == {digest.replace(":", "-") for digest in listed}


# --- what is refused -------------------------------------------------------------------------


def test_a_taken_name_is_refused_and_nothing_is_written(store):
    before = contents(store)
    for overwrite in (False, True):
        with pytest.raises(UsageError) as caught:
            export(QWEN, store, STORE_MODEL, overwrite=overwrite)
        assert caught.value.code == "entry-exists"
    assert contents(store) == before


def test_an_earlier_export_is_replaced_if_that_is_asked_for(tmp_path):
    export(DATA / "ct-w4a16-llama", tmp_path / "store")
    with pytest.raises(UsageError, match="already"):
        export(QWEN, tmp_path / "store")
    export(QWEN, tmp_path / "store", overwrite=True)
    made = open_ollama(ENTRY, tmp_path / "store", verify=True)
    assert made.config.data["model_type"] == "qwen3_5_moe"


def test_an_entry_is_not_exported_onto_itself(tmp_path):
    export(QWEN, tmp_path / "store")
    before = contents(tmp_path / "store")
    with pytest.raises(UsageError) as caught:
        export(entry_spec(tmp_path / "store"), tmp_path / "store", overwrite=True)
    assert caught.value.code == "entry-exists"
    assert contents(tmp_path / "store") == before


def test_a_directory_that_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("dear")
    with pytest.raises(UsageError) as caught:
        export(QWEN, tmp_path / "home")
    assert caught.value.code == "not-a-store"
    assert contents(tmp_path / "home") == {"letter.txt": b"dear"}
    (tmp_path / "empty").mkdir()
    export(QWEN, tmp_path / "empty")
    open_ollama(ENTRY, tmp_path / "empty", verify=True)


def test_a_store_inside_the_source_is_refused(tmp_path):
    source = shutil.copytree(QWEN, tmp_path / "in")
    with pytest.raises(UsageError) as caught:
        export(source, source / "store")
    assert caught.value.code == "target-in-source"
    assert contents(source) == contents(QWEN)
