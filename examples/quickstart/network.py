"""The quickstart model in PyTorch: Qwen3.5-MoE's text architecture, made quick on a CPU.

Parameter names and maths are those of transformers' `Qwen3_5MoeForCausalLM`; two things are
computed in another order, for speed: the experts run one after the other over their sorted
tokens, and the gated delta rule runs over whole chunks.

Letters in shapes: B batch, T tokens, D hidden, H heads, K key width, V value width,
E experts, F expert width, N = B·T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

CHUNK = 64


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model; every quantised input width is a multiple of 64."""

    vocab_size: int = 3072
    hidden_size: int = 192
    num_hidden_layers: int = 4
    full_attention_interval: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    linear_num_key_heads: int = 2
    linear_num_value_heads: int = 4
    linear_key_head_dim: int = 64
    linear_value_head_dim: int = 64
    linear_conv_kernel_dim: int = 4
    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 128
    shared_expert_intermediate_size: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    partial_rotary_factor: float = 0.25
    max_position_embeddings: int = 2048

    @property
    def key_dim(self) -> int:
        return self.linear_num_key_heads * self.linear_key_head_dim

    @property
    def value_dim(self) -> int:
        return self.linear_num_value_heads * self.linear_value_head_dim

    def is_linear(self, layer: int) -> bool:
        """Whether layer `layer` (from 0) is a gated delta layer."""
        return (layer + 1) % self.full_attention_interval != 0


class RMSNorm(nn.Module):
    """Root-mean-square norm whose stored weight is the multiplier less one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), 1.0 + self.weight, self.eps)


class GatedRMSNorm(nn.Module):
    """Root-mean-square norm with an ordinary weight, times silu of a gate."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), self.weight, self.eps) * functional.silu(gate)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map without an additive bias."""
    return nn.Linear(inputs, outputs, bias=False)


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """S ← e^g S + k (β (v − e^g Sᵀk))ᵀ, output Sᵀq, over chunks of 64 tokens.

    q, k [B, H, T, K] (normalised; q scaled), v [B, H, T, V], log_decay and beta [B, H, T];
    returns [B, H, T, V]. T is padded to whole chunks; padding changes no earlier output.
    """
    batch, heads, length, _ = q.shape
    pad = -length % CHUNK
    q, k, v = (functional.pad(x, (0, 0, 0, pad)) for x in (q, k, v))
    log_decay, beta = (functional.pad(x, (0, pad)) for x in (log_decay, beta))
    q, k, v, log_decay, beta = (
        x.unflatten(2, (-1, CHUNK)) for x in (q, k, v, log_decay, beta)
    )  # [B, H, chunks, CHUNK, …]
    total = log_decay.cumsum(-1)
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool).tril()
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(~lower, -torch.inf).exp()
    k_beta = k * beta[..., None]
    system = (k_beta @ k.mT) * decay.tril(-1)  # what each token rewrites of its elders
    right = torch.cat([v * beta[..., None], k_beta * total.exp()[..., None]], dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    within = (q @ k.mT) * decay
    q_decayed = q * total.exp()[..., None]
    k_left = k * (total[..., -1:] - total).exp()[..., None]
    state = q.new_zeros(batch, heads, k.shape[-1], v.shape[-1])
    outputs = []
    for c in range(q.shape[2]):
        new = values[:, :, c] - keys[:, :, c] @ state
        outputs.append(q_decayed[:, :, c] @ state + within[:, :, c] @ new)
        state = state * total[:, :, c, -1, None, None].exp() + k_left[:, :, c].mT @ new
    return torch.cat(outputs, dim=2)[:, :, :length]


class GatedDeltaNet(nn.Module):
    """Linear attention: short convolution, gated delta rule, gated norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        channels = 2 * config.key_dim + config.value_dim
        heads, width = config.linear_num_value_heads, config.hidden_size
        kernel = config.linear_conv_kernel_dim
        self.conv1d = nn.Conv1d(channels, channels, kernel, groups=channels, bias=False)
        self.in_proj_qkv = linear(width, channels)
        self.in_proj_z = linear(width, config.value_dim)
        self.in_proj_b = linear(width, heads)
        self.in_proj_a = linear(width, heads)
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        step = torch.empty(heads).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus⁻¹
        self.norm = GatedRMSNorm(config.linear_value_head_dim, config.rms_norm_eps)
        self.out_proj = linear(config.value_dim, width)

    def convolve(self, x: Tensor) -> Tensor:
        """Causal depthwise convolution as shifted products: [B, T, C] → [B, T, C]."""
        taps = self.conv1d.weight[:, 0].unbind(-1)
        padded = functional.pad(x, (0, 0, len(taps) - 1, 0))
        return sum(padded[:, i : i + x.shape[1]] * tap for i, tap in enumerate(taps))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]"""
        config = self.config
        key_dim, value_dim = config.key_dim, config.value_dim
        qkv = functional.silu(self.convolve(self.in_proj_qkv(x)))
        q, k, v = (
            part.unflatten(-1, (-1, width)).transpose(1, 2).float()
            for part, width in zip(
                qkv.split([key_dim, key_dim, value_dim], dim=-1),
                [config.linear_key_head_dim] * 2 + [config.linear_value_head_dim],
                strict=True,
            )
        )
        unit = 1e-6  # epsilon of the sum of squares, as in the reference
        q = q * torch.rsqrt(q.square().sum(-1, keepdim=True) + unit) * q.shape[-1] ** -0.5
        k = k * torch.rsqrt(k.square().sum(-1, keepdim=True) + unit)
        share = config.linear_num_value_heads // config.linear_num_key_heads
        q, k = (part.repeat_interleave(share, dim=1) for part in (q, k))
        step = functional.softplus(self.in_proj_a(x).float() + self.dt_bias)
        log_decay = (-self.A_log.exp() * step).transpose(1, 2)
        beta = self.in_proj_b(x).float().sigmoid().transpose(1, 2)
        mixed = gated_delta_rule(q, k, v, log_decay, beta).transpose(1, 2)
        gate = self.in_proj_z(x).unflatten(-1, (-1, config.linear_value_head_dim))
        return self.out_proj(self.norm(mixed, gate).flatten(-2))


class Attention(nn.Module):
    """Grouped-query attention with query/key norms and a sigmoid output gate."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        width, head = config.hidden_size, config.head_dim
        self.q_proj = linear(width, config.num_attention_heads * head * 2)
        self.k_proj = linear(width, config.num_key_value_heads * head)
        self.v_proj = linear(width, config.num_key_value_heads * head)
        self.o_proj = linear(config.num_attention_heads * head, width)
        self.q_norm = RMSNorm(head, config.rms_norm_eps)
        self.k_norm = RMSNorm(head, config.rms_norm_eps)

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary positions on the first part of each head: [B, H, T, head] → the same."""
        width = int(self.config.head_dim * self.config.partial_rotary_factor)
        frequency = self.config.rope_theta ** (-torch.arange(0, width, 2) / width)
        angle = torch.arange(x.shape[2])[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        first, second, rest = x.split([width // 2, width // 2, x.shape[-1] - width], dim=-1)
        turned = [first * cos - second * sin, second * cos + first * sin]
        return torch.cat([*turned, rest], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] → [B, T, D]"""
        heads, head = self.config.num_attention_heads, self.config.head_dim
        q, gate = self.q_proj(x).unflatten(-1, (heads, 2 * head)).chunk(2, dim=-1)
        k, v = (proj(x).unflatten(-1, (-1, head)) for proj in (self.k_proj, self.v_proj))
        q = self.rotate(self.q_norm(q).transpose(1, 2))
        k = self.rotate(self.k_norm(k).transpose(1, 2))
        share = heads // self.config.num_key_value_heads
        k, v = (part.repeat_interleave(share, dim=1) for part in (k, v.transpose(1, 2)))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).flatten(-2) * gate.flatten(-2).sigmoid())


class SwiGLU(nn.Module):
    """The expert every token shares."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = linear(width, inner)
        self.up_proj = linear(width, inner)
        self.down_proj = linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    """The routed experts, stacked: gate and up in one tensor [E, 2F, D], down [E, D, F]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, inner = config.num_experts, config.moe_intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * inner, config.hidden_size))
        self.down_proj = nn.Parameter(torch.empty(count, config.hidden_size, inner))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """x [N, D], chosen and weights [N, k] → [N, D]"""
        order = chosen.flatten().argsort()
        token = order // chosen.shape[1]
        counts = chosen.flatten().bincount(minlength=len(self.down_proj)).tolist()
        outputs = []
        for expert, rows in enumerate(x[token].split(counts)):
            gate, up = functional.linear(rows, self.gate_up_proj[expert]).chunk(2, dim=-1)
            outputs.append(functional.linear(functional.silu(gate) * up, self.down_proj[expert]))
        scaled = torch.cat(outputs) * weights.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, token, scaled.to(x.dtype))


class SparseMoe(nn.Module):
    """Top-k routed experts plus a gated shared one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = linear(config.hidden_size, config.num_experts)
        self.experts = Experts(config)
        self.shared_expert = SwiGLU(config.hidden_size, config.shared_expert_intermediate_size)
        self.shared_expert_gate = linear(config.hidden_size, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] → [B, T, D] and the scalar load-balancing loss (1 when even)."""
        flat = x.flatten(0, 1)
        probabilities = self.gate(flat).float().softmax(-1)
        weights, chosen = probabilities.topk(self.top_k)
        weights = weights / weights.sum(-1, keepdim=True)
        routed = self.experts(flat, chosen, weights)
        shared = self.shared_expert_gate(flat).sigmoid() * self.shared_expert(flat)
        count = probabilities.shape[-1]
        load = chosen.flatten().bincount(minlength=count) / chosen.numel()
        balance = count * (load * probabilities.mean(0)).sum()
        return (routed + shared).view_as(x), balance


class DecoderLayer(nn.Module):
    """Norm, mixer, norm, experts; two residuals, with dropout on what is added."""

    def __init__(self, config: ModelConfig, layer: int, dropout: float) -> None:
        super().__init__()
        if config.is_linear(layer):
            self.linear_attn = GatedDeltaNet(config)
        else:
            self.self_attn = Attention(config)
        self.mlp = SparseMoe(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] → [B, T, D] and the balance loss of its experts"""
        mixer = self.linear_attn if hasattr(self, "linear_attn") else self.self_attn
        x = x + self.dropout(mixer(self.input_layernorm(x)))
        mixed, balance = self.mlp(self.post_attention_layernorm(x))
        return x + self.dropout(mixed), balance


class Decoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, dropout) for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)


class LanguageModel(nn.Module):
    """The whole model; `state_dict()` has the names of a Hugging Face checkpoint."""

    def __init__(self, config: ModelConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config, dropout)
        self.lm_head = linear(config.hidden_size, config.vocab_size)
        residual = 0.02 / math.sqrt(2 * config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim >= 2 and "conv1d" not in name:
                narrow = name.endswith(("out_proj.weight", "o_proj.weight")) or "down_proj" in name
                nn.init.normal_(parameter, std=residual if narrow else 0.02)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B, T] → logits [B, T, vocabulary] and the mean balance loss."""
        x = self.model.dropout(self.model.embed_tokens(tokens))
        balances = []
        for layer in self.model.layers:
            x, balance = layer(x)
            balances.append(balance)
        return self.lm_head(self.model.norm(x)), torch.stack(balances).mean()
