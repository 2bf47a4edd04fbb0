"""How producers pack the weights of the conformance tests' models.

Each is written here from its published layout, for W[o, i]; `finish` gives a packed weight the axes
that the producer stores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

#: Role -> array, [E, …] for experts.
Parts = dict[str, mx.array]


@dataclass(frozen=True, slots=True)
class Producer:
    """Who packs the weights, and how.

    Attributes:
        name: What reports call it.
        pack: [o, i] and the number of a site -> role -> array.
        dequantise: Parts -> [o, i] in float32.
        leaves: Role -> leaf.
        config: What config.json declares.
        scheme: What MLX computes with the same codes, None where the reference is dense.
        own_stacks: Whether it keeps stacks that the family itself stores.
        finish: What becomes of MLX's orientation [..., o, i] when it is written.
    """

    name: str
    pack: Callable[[mx.array, int], Parts]
    dequantise: Callable[[Parts], mx.array]
    leaves: Mapping[str, str]
    config: Mapping[str, Any]
    scheme: Mapping[str, Any] | None
    own_stacks: bool = False
    finish: Callable[[Parts], Parts] = dict


AFFINE = {"mode": "affine", "bits": 4, "group_size": 64}
INTEGERS = {"mode": "affine", "bits": 4, "group_size": 32}


def _affine(weight: mx.array, site: int) -> Parts:
    codes, scales, biases = mx.quantize(weight, bits=4, group_size=64)
    return {"weight": codes, "scales": scales, "biases": biases}


def _symmetric(weight: mx.array, site: int) -> Parts:
    """compressed-tensors' symmetric 4-bit integers in groups of 32, stored as u = q + 8."""
    grouped = weight.astype(mx.float32).reshape(*weight.shape[:-1], -1, 32)
    scales = (mx.abs(grouped).max(-1) / 7.5).astype(mx.bfloat16)
    steps = grouped / scales.astype(mx.float32)[..., None]
    codes = mx.clip(mx.round(steps), -8, 7) + 8
    words = codes.astype(mx.uint32).reshape(*weight.shape[:-1], -1, 8)
    packed = (words << (4 * mx.arange(8, dtype=mx.uint32))).sum(-1).astype(mx.uint32)
    return {"weight": packed.view(mx.int32), "scales": scales}


def _symmetric_as_affine(parts: Parts) -> Parts:
    return {
        "weight": parts["weight"].view(mx.uint32),
        "scales": parts["scales"],
        "biases": -8 * parts["scales"],
    }


def as_affine(parts: Parts) -> Parts:
    return parts if "biases" in parts else _symmetric_as_affine(parts)


def _values(parts: Parts, group_size: int) -> mx.array:
    parts = as_affine(parts)
    # MLX computes in the dtype of the scales, and 16 bits would round twice.
    numbers = (parts[role].astype(mx.float32) for role in ("scales", "biases"))
    return mx.dequantize(parts["weight"], *numbers, bits=4, group_size=group_size)


def _gptq(parts: Parts) -> Parts:
    """GPTQ's first format: [i/8, o], zero points of 8 stored as 7, every eight in a word."""
    scales = parts["scales"].swapaxes(-1, -2)
    points = mx.full((*scales.shape[:-1], scales.shape[-1] // 8), 0x77777777, dtype=mx.int32)
    return {"weight": parts["weight"].swapaxes(-1, -2), "scales": scales, "zero_points": points}


def _with_shape(parts: Parts) -> Parts:
    shape = [parts["weight"].shape[-2], parts["weight"].shape[-1] * 8]
    return {**parts, "shape": mx.array(shape, mx.int64)}


def _nvfp4(weight: mx.array, site: int) -> Parts:
    """ModelOpt's NVFP4; the tensor scale differs from one tensor to the next."""
    factor = mx.array(0.25 * (1 + site % 5), mx.float32)
    codes, scales = mx.quantize(
        weight.astype(mx.float32) / factor, mode="nvfp4", group_size=16, bits=4
    )
    return {"weight": codes.view(mx.uint8), "scales": scales, "multiplier": factor}


def _nvfp4_values(parts: Parts) -> mx.array:
    codes = parts["weight"].view(mx.uint32)
    values = mx.dequantize(codes, parts["scales"], mode="nvfp4", group_size=16, bits=4)
    factor = parts["multiplier"]
    return values.astype(mx.float32) * factor.reshape(
        *factor.shape, *[1] * (values.ndim - factor.ndim)
    )


PRODUCERS: tuple[Producer, ...] = (
    Producer(
        "mlx-affine",
        _affine,
        lambda parts: _values(parts, 64),
        {"weight": "weight", "scales": "scales", "biases": "biases"},
        {"quantization": AFFINE},
        AFFINE,
        own_stacks=True,
    ),
    Producer(
        "ct-int4",
        _symmetric,
        lambda parts: _values(parts, 32),
        {"weight": "weight_packed", "scales": "weight_scale", "shape": "weight_shape"},
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "quantization_status": "compressed",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {
                            "num_bits": 4,
                            "type": "int",
                            "symmetric": True,
                            "strategy": "group",
                            "group_size": 32,
                        },
                    }
                },
                "ignore": ["lm_head"],
            }
        },
        INTEGERS,
        finish=_with_shape,
    ),
    Producer(
        "gptq-int4",
        _symmetric,
        lambda parts: _values(parts, 32),
        {"weight": "qweight", "scales": "scales", "zero_points": "qzeros"},
        {
            "quantization_config": {
                "quant_method": "gptq",
                "checkpoint_format": "gptq",
                "bits": 4,
                "group_size": 32,
                "desc_act": False,
                "sym": True,
            }
        },
        INTEGERS,
        finish=_gptq,
    ),
    Producer(
        "modelopt-nvfp4",
        _nvfp4,
        _nvfp4_values,
        {
            "weight": "weight",
            "scales": "weight_scale",
            "multiplier": "weight_scale_2",
            "inputs": "input_scale",
        },
        {
            "quantization_config": {
                "quant_method": "modelopt",
                "quant_algo": "NVFP4",
                "group_size": 16,
                "ignore": ["lm_head"],
            }
        },
        None,
        finish=lambda parts: {**parts, "inputs": mx.array(1.0)},
    ),
)  # fmt: skip
