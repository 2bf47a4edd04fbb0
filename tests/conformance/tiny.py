"""Tiny configurations of mlx-lm's architectures, generated from the fields of their own args.

A field's value comes from the first of: the architecture's row in `ROWS`, the table of usual names
`VALUES`, the class's own default, and the field's type. So an architecture that a newer mlx-lm adds
needs a row only where its fields must agree with one another in a way of its own.
"""

from __future__ import annotations

import dataclasses
import importlib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rows import ROWS, Row

PACKAGE = "mlx_lm.models"

LAYERS = 4
HIDDEN = 128
VOCABULARY = 256

TIED = "tie_word_embeddings"

#: Usual field names -> small values. Widths are multiples of 64, so that every group size fits.
VALUES: Mapping[str, Any] = {
    # sizes of the whole
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "n_embd": HIDDEN,
    "hidden_dim": HIDDEN,
    "d_model": HIDDEN,
    "model_dim": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "intermediate_size": 256,
    "ffn_hidden_size": 256,
    "n_inner": 256,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "model_max_length": 512,
    # attention
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "n_kv_heads": 2,
    "head_dim": 32,
    "rotary_dim": 16,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window_size": 4,
    "sliding_window_pattern": 2,
    "window_size": 4,
    "attention_window_size": 4,
    "rope_scaling": None,
    "query_pre_attn_scalar": 32.0,
    # multi-head latent attention and its sparse index
    "kv_lora_rank": 64,
    "q_lora_rank": 64,
    "o_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "qk_head_dim": 128,
    "v_head_dim": 64,
    "index_head_dim": 128,
    "index_n_heads": 4,
    "index_topk": 4,
    # experts
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "num_shared_experts": 1,
    "n_shared_experts": 1,
    "num_shared_expert": 1,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": 128,
    "expert_ffn_hidden_size": 128,
    "shared_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "moe_shared_expert_intermediate_size": 128,
    "share_expert_dim": 128,
    "n_group": 1,
    "topk_group": 1,
    "num_expert_group": 1,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "moe_layer_freq": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    # recurrent layers
    "state_size": 16,
    "ssm_state_size": 16,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_ssm": 256,
    "mamba_n_heads": 4,
    "mamba_n_groups": 1,
    "mamba_num_heads": 4,
    "mamba_head_dim": 64,
    "n_groups": 1,
    "conv_kernel": 4,
    "conv_L_cache": 3,
    "conv_bias": True,
    "use_conv_bias": True,
    "time_step_rank": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_conv_kernel_dim": 4,
    "layer_group_size": 2,
    "group_norm_size": 2,
    "full_attention_interval": 2,
    # scales
    "rms_norm_eps": 1e-6,
    "layer_norm_eps": 1e-6,
    "layer_norm_epsilon": 1e-6,
    "layernorm_epsilon": 1e-6,
    "norm_eps": 1e-6,
}

#: What a required field of an unknown name gets, by its type.
BY_TYPE: Mapping[Any, Any] = {bool: False, int: 2, float: 1.0, str: "", list: [], dict: {}}


def architectures() -> tuple[str, ...]:
    """Every module of mlx-lm that defines `ModelArgs`, by name; none of them is imported."""
    (folder,) = importlib.import_module(PACKAGE).__path__
    paths = sorted(Path(folder).glob("*.py"))
    return tuple(
        path.stem for path in paths if "class ModelArgs" in path.read_text(encoding="utf-8")
    )


def tiny_config(name: str, *, tied: bool = False) -> dict[str, Any]:
    """A config.json for an architecture, small enough for any machine.

    Args:
        name: mlx-lm's module.
        tied: Make the output projection the embedding, where the args can say so.

    Raises:
        ImportError, SystemExit: mlx-lm's module cannot be imported.
    """
    module = importlib.import_module(f"{PACKAGE}.{name}")
    row = ROWS.get(name, Row(""))
    text = _text_args(module, row)
    if text is None:
        return {**_values(module.ModelArgs, tied), **row.fields, "model_type": name}
    family = text.__module__.rpartition(".")[2]
    section = {**_values(text, tied), "model_type": family, **row.fields}
    return {
        **_values(module.ModelArgs, tied),
        "model_type": name,
        **row.around,
        "text_config": section,
    }


def _values(args: type[Any], tied: bool) -> dict[str, Any]:
    """Field -> value; a field of an unknown name keeps its default and is left out."""
    usual = {**VALUES, TIED: tied}
    kinds = typing.get_type_hints(args)
    return {
        each.name: usual[each.name] if each.name in usual else _by_type(kinds[each.name])
        for each in dataclasses.fields(args)
        if each.name in usual or _required(each)
    }


def _required(each: Any) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING


def _by_type(kind: Any) -> Any:
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    if type(None) in options:
        return None
    origin = typing.get_origin(options[0]) or options[0]
    return BY_TYPE.get(origin)


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


# --- text sections ---------------------------------------------------------------------------


def _text_args(module: types.ModuleType, row: Row) -> type[Any] | None:
    """The class of an architecture's `text_config`, None where it has none."""
    if row.text:
        owner, _, name = row.text.rpartition(".")
        return typing.cast(type, getattr(importlib.import_module(f"{PACKAGE}.{owner}"), name))
    fields = {each.name for each in dataclasses.fields(module.ModelArgs)}
    if "text_config" not in fields:
        return None
    return next(_candidates(module))


def _candidates(module: types.ModuleType) -> Iterator[type[Any]]:
    """What a text section may be: the annotation, a class of the module's, a sibling's args."""
    yield from _dataclasses(typing.get_args(module.ModelArgs.__annotations__["text_config"]))
    own = [value for name, value in vars(module).items() if name.startswith("Text")]
    yield from _dataclasses(own)
    siblings = [value for value in vars(module).values() if isinstance(value, types.ModuleType)]
    yield from _dataclasses(getattr(each, "ModelArgs", None) for each in siblings)


def _dataclasses(values: Any) -> Iterator[type[Any]]:
    yield from (
        each for each in values if isinstance(each, type) and dataclasses.is_dataclass(each)
    )
