"""config.json and what lies beside it."""

from __future__ import annotations

import json
import math

import pytest
from builders import (
    AFFINE_4_64,
    AFFINE_8_32,
    EMBED,
    HEAD,
    MXFP8,
    NVFP4,
    llama_config,
    quantised_llama,
    write_checkpoint,
)
from export_tools import DIRECTORIES, QUICKSTART, QWEN
from mlx_lm.utils import load_config

import mlxpipe
from mlxpipe.architecture.mlxlm import submodule

INDEX = "model.safetensors.index.json"


def mixed(path):
    schemes = {EMBED: AFFINE_8_32, HEAD: MXFP8, "model.layers.0.self_attn.o_proj": None}
    return schemes.get(path, NVFP4 if "mlp" in path else AFFINE_4_64)


def export(tmp_path, config, files=(), **options):
    source = write_checkpoint(tmp_path / "in", quantised_llama(mixed), config)
    for name, text in dict(files).items():
        (source / name).write_text(text)
    mlxpipe.export(source, tmp_path / "out", **options)
    return json.loads((tmp_path / "out/config.json").read_text())


def test_both_keys_with_a_complete_entry_for_every_module_that_differs(tmp_path):
    config = export(tmp_path, llama_config())
    assert config["quantization"] == config["quantization_config"]
    affine = {"group_size": 64, "bits": 4, "mode": "affine"}
    assert config["quantization"] == {
        "group_size": 16,
        "bits": 4,
        "mode": "nvfp4",
        "lm_head": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
        "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"},
        "model.layers.0.self_attn.k_proj": affine,
        "model.layers.0.self_attn.o_proj": False,
        "model.layers.0.self_attn.q_proj": affine,
        "model.layers.0.self_attn.v_proj": affine,
    }


def test_a_plan_of_the_export_needs_no_arithmetic(tmp_path):
    """Every module is decided by a claim of config.json, none by shapes."""
    export(tmp_path, llama_config())
    plan = mlxpipe.make_plan(tmp_path / "out").require_sound()
    assert {module.verdict.source for module in plan.modules.values()} == {"config"}
    assert (plan.conflicts, plan.stale, plan.unmatched, plan.notes) == ((), (), (), ())


@pytest.mark.parametrize("folder", DIRECTORIES, ids=lambda folder: folder.name)
def test_no_trace_of_the_source_s_packing(shared, folder):
    path = shared(folder, ("mlx", "dense")).folder
    config = json.loads((path / "config.json").read_text())
    for section in (config, config.get("text_config", {})):
        assert "quant_method" not in section.get("quantization_config", {})
        assert "compression_config" not in section
    assert "quantization_config" not in config.get("text_config", {})
    names = {each.name for each in path.iterdir()}
    assert names <= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        INDEX,
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_keys_of_transformers_5_come_with_those_that_mlx_lm_reads(tmp_path):
    folder = QWEN.parent / "mo-nvfp4-qwen3moe"
    source = json.loads((folder / "config.json").read_text())
    assert "num_experts" not in source and "rope_theta" not in source
    mlxpipe.export(folder, tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["num_experts"] == config["num_local_experts"] == source["num_local_experts"]
    assert config["rope_theta"] == source["rope_parameters"]["rope_theta"]
    classes = submodule("models.qwen3_moe")
    assert classes.ModelArgs.from_dict(config).num_experts == source["num_local_experts"]


def test_numbers_that_json_does_not_have_stay_json(tmp_path):
    tag = {"__float__": "-Infinity"}
    config = export(tmp_path, llama_config(limits=[1.5, tag]))
    assert config["limits"] == [1.5, tag]
    assert load_config(tmp_path / "out")["limits"] == [1.5, -math.inf]


def test_documents_go_along_and_code_does_not(tmp_path):
    files = {
        "tokenizer.json": "{}",
        "chat_template.jinja": "{{ messages }}",
        "merges.txt": "a b",
        "preprocessor_config.json": "{}",
        "LICENSE.md": "mine",
        "modeling_llama.py": "raise SystemExit",
        "README.md": "load it with vllm",
        ".gitattributes": "",
    }
    config = llama_config(model_file="modeling_llama.py")
    assert "model_file" not in export(tmp_path, config, files)
    kept = {path.name for path in (tmp_path / "out").iterdir()}
    assert kept == {
        "LICENSE.md",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model.safetensors",
        INDEX,
        "preprocessor_config.json",
        "tokenizer.json",
    }
    assert (tmp_path / "out/chat_template.jinja").read_text() == "{{ messages }}"


def test_the_tokenizer_and_the_generation_s_settings_are_as_they_were(tmp_path):
    mlxpipe.export(QUICKSTART, tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (QUICKSTART / name).read_bytes()


def test_the_index_lists_every_tensor(tmp_path):
    done = mlxpipe.export(QWEN, tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    checkpoint = mlxpipe.open_source(mlxpipe.open_spec(tmp_path / "out"))
    assert index["weight_map"] == dict.fromkeys(checkpoint.tensors, "model.safetensors")
    assert index["metadata"]["total_size"] == done.nbytes == checkpoint.total_bytes
    assert checkpoint.shards[0].metadata == {"format": "mlx"}


def test_permissions_are_those_of_new_files(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/file").touch()
    mlxpipe.export(QUICKSTART, tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode
    for path in (tmp_path / "out").iterdir():
        assert path.stat().st_mode == (tmp_path / "plain/file").stat().st_mode
