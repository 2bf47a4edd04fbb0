"""mlx-lm's architectures without its import, and its import without its effects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import GPTOSS, QWEN, llama_config

import mlxpipe
from mlxpipe.architecture import mlxlm
from mlxpipe.architecture.mlxlm import ModelClasses
from mlxpipe.architecture.skeleton import Kind, build_model, build_skeleton
from mlxpipe.errors import PlanError


def python(script: str, *arguments: str) -> dict:
    """Run a script in a fresh interpreter; it prints one JSON object."""
    environment = {**os.environ, "PYTHONPATH": str(Path(mlxpipe.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


AFTER_A_PLAN = """
import json, resource, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
limit = (1000, hard)  # not what mlx-lm sets, whatever the parent process has imported
resource.setrlimit(resource.RLIMIT_NOFILE, limit)
from mlxpipe import make_plan
make_plan(sys.argv[1])
deferred = "transformers" not in sys.modules
import mlx_lm
first = mlx_lm.generate
from mlx_lm import load, stream_generate
import mlx_lm.models.cache, mlx_lm.utils
from mlxpipe.architecture.mlxlm import _tables
real = {name: getattr(mlx_lm.utils, name) for name in _tables()}
print(json.dumps({
    "deferred": deferred,
    "limit_kept": resource.getrlimit(resource.RLIMIT_NOFILE) == limit,
    "generate": [first.__module__, first is mlx_lm.generate, callable(load)],
    "file": mlx_lm.__file__.endswith("mlx_lm/__init__.py"),
    "type": type(mlx_lm).__name__,
    "version": mlx_lm.__version__,
    "cache": mlx_lm.models.cache.KVCache.__name__,
    "same_module": mlx_lm.models.qwen3_5_moe is sys.modules["mlx_lm.models.qwen3_5_moe"],
    "missing": hasattr(mlx_lm, "no_such_name"),
    "tables": all(dict(table) == real[name] for name, table in _tables().items()),
    "entries": sum(len(table) for table in _tables().values()),
}))
"""


def test_after_a_plan_mlx_lm_becomes_the_real_one():
    """Our tables, read from its source, equal its own; the limit of open files is unchanged."""
    seen = python(AFTER_A_PLAN, str(QWEN))
    assert seen["deferred"]
    assert seen["limit_kept"]
    assert seen["generate"] == ["mlx_lm.generate", True, True]
    assert seen["file"]
    assert seen["type"] == "module"
    assert seen["version"]
    assert seen["cache"] == "KVCache"
    assert seen["same_module"]
    assert not seen["missing"]
    assert seen["tables"]
    assert seen["entries"] > 5


BEFORE_A_PLAN = """
import json, sys
import mlx_lm
from mlxpipe import make_plan
plan = make_plan(sys.argv[1]).require_sound()
print(json.dumps({"same": sys.modules["mlx_lm"] is mlx_lm, "modules": len(plan.modules)}))
"""


def test_a_plan_after_mlx_lm_was_imported_uses_what_is_there():
    seen = python(BEFORE_A_PLAN, str(GPTOSS))
    assert seen["same"]
    assert seen["modules"] > 10


@pytest.mark.parametrize(
    ("config", "module"),
    [
        ({"model_type": "llama"}, "llama"),
        ({"model_type": "mistral"}, "llama"),
        ({"model_type": "qwen3_5_moe", "architectures": ["Any"]}, "qwen3_5_moe"),
        ({"model_type": "llama", "architectures": "LlamaForCausalLM"}, "llama"),
    ],
)
def test_a_model_type_names_a_module(config, module):
    assert mlxlm.module_name(config) == module


def test_mlx_lms_aliases_are_known_architectures():
    known = mlxlm.known_architectures()
    assert {"llama", "mistral", "qwen3_5_moe", "gpt_oss"} <= known
    assert known.isdisjoint({"base", "cache", "switch_layers", "__init__"})


# --- the skeleton ----------------------------------------------------------------------------


def test_a_skeleton_is_a_table_of_kinds_and_shapes():
    skeleton = build_skeleton(json.loads((QWEN / "config.json").read_text()))
    prefix = "language_model.model.layers.0"
    kinds = {
        "language_model.model.embed_tokens": (Kind.EMBEDDING, (256, 128)),
        f"{prefix}.mlp.gate": (Kind.LINEAR, (8, 128)),
        f"{prefix}.mlp.switch_mlp.down_proj": (Kind.EXPERTS, (8, 128, 64)),
        f"{prefix}.input_layernorm": (Kind.PLAIN, (128,)),
        f"{prefix}.linear_attn.conv1d": (Kind.PLAIN, (256, 4, 1)),
    }
    table = skeleton.modules
    assert {path: (table[path].kind, table[path].weight) for path in kinds} == kinds
    assert table[f"{prefix}.mlp.switch_mlp.down_proj"].in_features == 64
    assert table[f"{prefix}.input_layernorm"].in_features is None
    assert skeleton.parameters[f"{prefix}.linear_attn.A_log"] == (4,)
    assert list(table) == sorted(table)


class Greedy:
    """Model arguments that take their config apart, as some of mlx-lm's do."""

    @classmethod
    def from_dict(cls, config):
        config["rope"].clear()
        return config.pop("hidden_size")


def test_building_a_model_leaves_the_config_as_it_was():
    config = {"hidden_size": 8, "rope": {"theta": 1.0}}
    assert build_model(ModelClasses("greedy", lambda size: size, Greedy), config) == 8
    assert config == {"hidden_size": 8, "rope": {"theta": 1.0}}


def test_a_skeleton_of_any_size_costs_no_memory():
    """Half a terabyte of weights, none of them evaluated."""
    config = llama_config(
        hidden_size=65536, intermediate_size=262144, num_attention_heads=512, vocab_size=256000
    )
    skeleton = build_skeleton(config)
    assert skeleton.modules["model.layers.0.mlp.up_proj"].weight == (262144, 65536)


def test_an_architecture_that_cannot_be_built_names_itself():
    with pytest.raises(PlanError, match="'llama' cannot be built") as caught:
        build_skeleton({"model_type": "llama", "hidden_size": 8})
    assert caught.value.code == "bad-config"
