"""How the producers of each mixture of experts name what mlx-lm stacks, splits and renames.

A row inverts an architecture's `sanitize` for checkpoints with one packed linear per expert, which
is what llm-compressor, ModelOpt, GPTQ and AWQ write whatever the original stores. A new family is a
row; one that stores `{b}.experts.{e}.{p}` and nothing else unusual needs none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import mlx.core as mx

#: Name -> tensor, as a checkpoint has them.
Weights = dict[str, mx.array]

#: A change of dense tensors from mlx-lm's form to the original's.
Step = Callable[[Weights, Mapping[str, Any]], Weights]

#: Mixtral's names of the projections.
W123 = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture's names.

    Attributes:
        experts: The path of the projection `{p}` of expert `{e}` of the block at `{b}`.
        names: mlx-lm's projection -> the family's.
        renames: Regexes over whole names and their replacements, in order.
        steps: Changes of dense tensors, in order.
        fused: Path of a fused layer, `{}` being what precedes the parts -> its parts, in the order
            of their rows.
        folded: As `fused`, for expert layers that the family itself stores stacked and fused: used
            where MLX's own layout is written, for other producers unfold them.
        woven: As `fused`, the rows of each part taken by turns, one head of keys at a time.
        stacked: The path of the projection `{p}` where the family itself stores experts stacked.
        always_stacked: Whether every producer keeps it so.
        architecture: mlx-lm's module, where a row is a second one of it.
        fields: Fields of its config that differ from the tiny configuration's.
        latent: Whether `kv_b_proj` is packed too. mlx-lm has its rows for values as they are and
            those for keys transposed, so it is dequantised.
    """

    experts: str = "{b}.experts.{e}.{p}"
    names: Mapping[str, str] = field(default_factory=dict)
    renames: tuple[tuple[str, str], ...] = ()
    steps: tuple[Step, ...] = ()
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    woven: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stacked: str = ""
    always_stacked: bool = False
    architecture: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    latent: bool = False


# --- steps -----------------------------------------------------------------------------------


def whole_kv_b(weights: Weights, config: Mapping[str, Any]) -> Weights:
    """Latent attention's `embed_q` [H, r, n] and `unembed_out` [H, v, r] as one `kv_b_proj`."""
    done = dict(weights)
    for name in weights:
        stem, found, _ = name.partition(".embed_q.weight")
        if found:
            keys = done.pop(name).swapaxes(-1, -2)
            values = done.pop(f"{stem}.unembed_out.weight")
            both = mx.concatenate([keys, values], axis=1)
            done[f"{stem}.kv_b_proj.weight"] = both.reshape(-1, both.shape[-1])
    return done


def original_convolutions(weights: Weights, config: Mapping[str, Any]) -> Weights:
    """Depthwise convolutions [C, K, 1] as PyTorch's [C, 1, K]."""
    return {
        name: array.moveaxis(1, 2) if _is_convolution(name) and array.ndim == 3 else array
        for name, array in weights.items()
    }


def _is_convolution(name: str) -> bool:
    return name.split(".")[-2] in CONVOLUTIONS


CONVOLUTIONS = frozenset({"conv1d", "conv", "q_conv1d", "k_conv1d", "v_conv1d"})


def unshifted(*endings: str) -> Step:
    """Norms around 0, as they are trained: the tensors with these endings, less 1."""

    def step(weights: Weights, config: Mapping[str, Any]) -> Weights:
        return {
            name: array - 1 if array.ndim == 1 and name.endswith(endings) else array
            for name, array in weights.items()
        }

    return step


def split_qkv(weights: Weights, config: Mapping[str, Any]) -> Weights:
    """Delta attention's fused convolution as three."""
    done = dict(weights)
    for name, array in weights.items():
        stem, found, _ = name.partition(".qkv_conv.conv.weight")
        if found:
            del done[name]
            for part, rows in zip("qkv", mx.split(array, 3), strict=True):
                done[f"{stem}.{part}_conv1d.weight"] = rows
    return done


QWEN_NORMS = (
    ".input_layernorm.weight",
    ".post_attention_layernorm.weight",
    "model.norm.weight",
    ".q_norm.weight",
    ".k_norm.weight",
)

# --- rows ------------------------------------------------------------------------------------

ROUTER = (r"\.mlp\.gate\.gate_proj\.", ".mlp.gate.")
GATE_UP = ("gate_proj", "up_proj")
LATENT = Family(steps=(whole_kv_b,))
MIXTRAL = Family(names=W123)
GRANITE = Family(
    stacked="{b}.{p}",
    folded={"{}.input_linear": GATE_UP, "{}.output_linear": ("down_proj",)},
    always_stacked=True,
)
KIMI = (
    (r"\.mlp\.experts\.", ".block_sparse_moe.experts."),
    (r"\.mlp\.shared_experts\.", ".block_sparse_moe.shared_experts."),
)

FAMILIES: Mapping[str, Family] = {
    "bailing_hybrid": Family(renames=(ROUTER,), steps=(whole_kv_b,)),
    "bailing_moe": Family(renames=(ROUTER,)),
    "bailing_moe_linear": Family(renames=(ROUTER,)),
    "bailing_moe_v3": Family(steps=(whole_kv_b, original_convolutions)),
    "deepseek_v3": LATENT,
    "deepseek_v32": LATENT,
    "deepseek_v3, kv_b packed": Family(
        steps=(whole_kv_b,), architecture="deepseek_v3", latent=True
    ),
    "exaone_moe": Family(
        renames=((r"\.mlp\.gate\.e_score_correction_bias$", ".mlp.e_score_correction_bias"),)
    ),
    "gemma4_text": Family(stacked="{b}.experts.{p}", folded={"{}.gate_up_proj": GATE_UP}),
    "glm4_moe_lite": LATENT,
    "glm_moe_dsa": LATENT,
    "granitemoe": GRANITE,
    "granitemoehybrid, dense": Family(
        renames=((r"\.mlp\.(in|out)put_linear\.", r".shared_mlp.\1put_linear."),),
        steps=(original_convolutions,),
        fused={"{}.input_linear": GATE_UP, "{}.output_linear": ("down_proj",)},
        architecture="granitemoehybrid",
        fields={"num_local_experts": 0},
    ),
    "granitemoehybrid": replace(GRANITE, steps=(original_convolutions,)),
    "hunyuan, dense and fused": Family(
        fused={"{}.gate_and_up_proj": ("up_proj", "gate_proj")},
        woven={"{}.qkv_proj": ("q_proj", "k_proj", "v_proj")},
        architecture="hunyuan",
        fields={"num_experts": 1, "use_mixed_mlp_moe": False},
    ),
    "jamba": Family(steps=(original_convolutions,)),
    "kimi_k25": LATENT,
    "kimi_k3": Family(
        names=W123,
        renames=(
            *KIMI,
            (r"\.mlp\.(routed_expert\w+|gate)\.", r".block_sparse_moe.\1."),
            (
                r"\.mlp\.e_score_correction_bias$",
                ".block_sparse_moe.gate.e_score_correction_bias",
            ),
        ),
        steps=(whole_kv_b, split_qkv, original_convolutions),
    ),
    "kimi_linear": Family(
        names=W123,
        renames=(
            *KIMI,
            (r"\.mlp\.gate\.", ".block_sparse_moe.gate."),
            (
                r"\.mlp\.e_score_correction_bias$",
                ".block_sparse_moe.gate.e_score_correction_bias",
            ),
            (r"\.([qkv])_conv\.conv\.", r".\1_conv1d."),
        ),
        steps=(whole_kv_b, original_convolutions),
    ),
    "laguna": Family(
        renames=(
            (r"\.mlp\.gate\.proj\.", ".mlp.gate."),
            (
                r"\.mlp\.gate\.e_score_correction_bias$",
                ".mlp.experts.e_score_correction_bias",
            ),
        )
    ),
    "lfm2_moe": Family(
        names=W123,
        renames=(
            (r"\.feed_forward\.gate_proj\.", ".feed_forward.w1."),
            (r"\.feed_forward\.down_proj\.", ".feed_forward.w2."),
            (r"\.feed_forward\.up_proj\.", ".feed_forward.w3."),
        ),
        steps=(original_convolutions,),
    ),
    "longcat_flash": LATENT,
    "longcat_flash_ngram": Family(
        steps=(whole_kv_b,),
        renames=((r"^model\.ngram_embeddings\.word_embeddings\.", "model.embed_tokens."),),
    ),
    "minimax": MIXTRAL,
    "minimax_m3_vl": MIXTRAL,
    "mistral4": Family(
        steps=(whole_kv_b,), stacked="{b}.experts.{p}", folded={"{}.gate_up_proj": GATE_UP}
    ),
    "mixtral": MIXTRAL,
    "nemotron_h": Family(
        names={"fc1": "up_proj", "fc2": "down_proj"}, steps=(original_convolutions,)
    ),
    "phimoe": MIXTRAL,
    "phixtral": Family("{b}.mlp.{e}.{p}"),
    "qwen3_5_moe": Family(
        renames=((r"^language_model\.model\.", "model.language_model."),
                 (r"^language_model\.lm_head\.", "lm_head.")),
        steps=(original_convolutions, unshifted(*QWEN_NORMS)),
        stacked="{b}.experts.{p}",
        folded={"{}.gate_up_proj": GATE_UP},
    ),
    "qwen3_next": Family(steps=(original_convolutions, unshifted(*QWEN_NORMS))),
    "qwen3_vl_moe": Family(
        renames=((r"^language_model\.model\.", "model.language_model."),
                 (r"^language_model\.lm_head\.", "lm_head.")),
    ),
    "step3p5": Family(
        renames=(
            (r"\.mlp\.moe\.", ".moe."),
            (r"\.mlp\.gate\.gate\.", ".moe.gate."),
            (r"\.mlp\.gate\.router_bias$", ".moe.router_bias"),
            (r"\.mlp\.share_expert\.", ".share_expert."),
        ),
        steps=(unshifted("norm.weight"),),
        stacked="{b}.moe.{p}",
        always_stacked=True,
    ),
}  # fmt: skip


#: Forms that no row writes -> why. Each ends in an error of its own, or is the architecture's.
UNWRITTEN: Mapping[str, str] = {
    "dbrx": "its own fused w1, v1 and w2 of all experts are packed by nobody: tools unfold them",
    "deepseek_v41": "its published FP8 and FP4 are repacked by its own sanitize; here it has MLX's "
    "names, one linear per expert",
    "llama4": "its own stacks [E, in, out] are packed along the outputs, which MLX has no form for",
    "qwen3_vl_moe": "as llama4",
}

#: What cannot be tested -> why. Whatever else fails is a finding.
FAMILY_LIMITS: Mapping[str, str] = {
    "muse_spark": "its attention is a Metal kernel, without a form for a CPU",
}


def rename(name: str, family: Family) -> str:
    for pattern, replacement in family.renames:
        name = re.sub(pattern, replacement, name)
    return name
