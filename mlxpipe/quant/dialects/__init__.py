"""What producers other than mlx-lm declare, as claims: a table, one small module per producer.

A block is `quantization_config` of a config.json, or a side file of the checkpoint. Its
`quant_method` says whose it is. Nothing here looks at tensors, and nothing raises: what cannot be
read becomes a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlxpipe.errors import Diagnostic, did_you_mean
from mlxpipe.quant.claims import Block, Reading
from mlxpipe.quant.dialects import autoround, awq, compressed_tensors, fp8, gptq, modelopt, mxfp4
from mlxpipe.quant.dialects.fields import MALFORMED, spell

__all__ = ["DIALECTS", "REFUSED", "SIDECARS", "Dialect", "Sidecar", "read_block", "read_sidecar"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """One producer.

    Attributes:
        name: The module here.
        title: What people call it.
        methods: The values of `quant_method` that it owns, in lower case.
        read: A block and the claims' source -> what it says.
    """

    name: str
    title: str
    methods: frozenset[str]
    read: Callable[[Block, str], Reading]


DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        "compressed_tensors",
        "compressed-tensors (llm-compressor)",
        frozenset({"compressed-tensors"}),
        compressed_tensors.read,
    ),
    Dialect(
        "modelopt",
        "NVIDIA ModelOpt",
        # vLLM's names for single algorithms, which some checkpoints carry.
        frozenset({"modelopt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed"}),
        modelopt.read,
    ),
    Dialect("gptq", "GPTQ", frozenset({"gptq"}), gptq.read),
    Dialect("awq", "AWQ", frozenset({"awq"}), awq.read),
    Dialect(
        "autoround", "AutoRound", frozenset({"auto-round", "intel/auto-round"}), autoround.read
    ),
    Dialect("fp8", "FP8", frozenset({"fp8", "mxfp8", "fbgemm_fp8"}), fp8.read),
    Dialect("mxfp4", "gpt-oss MXFP4", frozenset({"mxfp4"}), mxfp4.read),
)

BY_METHOD: Mapping[str, Dialect] = {
    method: dialect for dialect in DIALECTS for method in dialect.methods
}

_CONVERT = "convert the unquantised checkpoint of the same model with mlx_lm.convert"
_KERNEL = f"its packing belongs to one GPU kernel; take a plain GPTQ or AWQ export, or {_CONVERT}"

#: quant_method -> what to do instead.
REFUSED: Mapping[str, str] = {
    "bitsandbytes": f"its code books have no counterpart in MLX; {_CONVERT}",
    "hqq": f"its checkpoints pack weights per backend; {_CONVERT}",
    "quanto": f"its tensors are serialised Python objects; {_CONVERT}",
    "torchao": f"its tensors are serialised Python objects; {_CONVERT}",
    "aqlm": f"its code books have no counterpart in MLX; {_CONVERT}",
    "vptq": f"its code books have no counterpart in MLX; {_CONVERT}",
    "higgs": f"its code books need a Hadamard rotation; {_CONVERT}",
    "spqr": f"it keeps outliers apart in a sparse format; {_CONVERT}",
    "eetq": _KERNEL,
    "bitnet": f"its ternary layers are an architecture of their own; {_CONVERT}",
    "quark": "take a compressed-tensors or ModelOpt export of the model instead of AMD Quark's",
    "gguf": f"GGUF files are not read; {_CONVERT}",
    "marlin": _KERNEL,
    "gptq_marlin": _KERNEL,
    "awq_marlin": _KERNEL,
    "bitblas": _KERNEL,
    "qqq": _KERNEL,
    "exl2": _KERNEL,
    "exl3": _KERNEL,
    "fp_quant": f"it rotates the inputs; {_CONVERT}",
    "fouroversix": f"its scales are chosen by a rule of its own; {_CONVERT}",
    "sinq": f"it scales rows and columns at once; {_CONVERT}",
    "metal": f"its kernels have a layout of their own; {_CONVERT}",
}


@dataclass(frozen=True, slots=True)
class Sidecar:
    """How a side file is read.

    Attributes:
        method: The `quant_method` where the file has none, "" where it must have one.
        title: Who writes it.
    """

    method: str
    title: str


SIDECARS: Mapping[str, Sidecar] = {
    "hf_quant_config.json": Sidecar("modelopt", "ModelOpt"),
    "quantize_config.json": Sidecar("gptq", "AutoGPTQ and gptqmodel"),
    "quant_config.json": Sidecar("awq", "AutoAWQ"),
    "quantization_config.json": Sidecar("", "AutoRound's copy of config.json's block"),
}


def read_block(block: Block, source: str) -> Reading:
    """The claims of a `quantization_config`, by its `quant_method`."""
    return _read(block, source, "")


def read_sidecar(name: str, block: Block, source: str = "sidecar") -> Reading:
    """The claims of a side file, by its name."""
    if name not in SIDECARS:
        return _finding(
            "unknown-sidecar",
            f"no producer writes '{name:.60}'",
            block,
            expected=", ".join(SIDECARS),
            help=did_you_mean(name, SIDECARS),
        )
    return _read(block, source, SIDECARS[name].method)


def _read(block: Block, source: str, default: str) -> Reading:
    if not isinstance(block.data, Mapping):
        return _finding(
            MALFORMED,
            "the quantisation is not declared by a mapping",
            block,
            found=spell(block.data),
            expected="a mapping",
        )
    # gptqmodel 7 calls it `method`.
    keys = [key for key in ("quant_method", "method") if block.data.get(key) is not None]
    key = keys[0] if keys else "quant_method"
    method = block.data[key] if keys else default or _legacy_method(block)
    if not isinstance(method, str):
        return _finding(
            MALFORMED,
            f"'{key}' is no name",
            block,
            key,
            found=spell(method),
            expected="a string",
        )
    dialect = BY_METHOD.get(method.lower())
    return dialect.read(block, source) if dialect else _stranger(method, block, key)


def _legacy_method(block: Block) -> str:
    """bitsandbytes declared itself by flags alone, before `quant_method`."""
    flags = (block.data.get("load_in_4bit"), block.data.get("load_in_8bit"))
    return "bitsandbytes" if True in flags else ""


def _stranger(method: str, block: Block, key: str) -> Reading:
    name = method.lower()
    known = sorted((*BY_METHOD, *REFUSED))
    if name in REFUSED:
        return _finding(
            "refused-format",
            f"checkpoints quantised with {method} cannot be read",
            block,
            key,
            found=method,
            help=REFUSED[name],
        )
    return _finding(
        "unknown-quant-method",
        f"unknown quant_method '{method:.60}'" if method else "no quant_method",
        block,
        *((key,) if method else ()),
        found=method[:60],
        expected=", ".join(sorted(BY_METHOD)),
        help=did_you_mean(name, known) or _CONVERT,
    )


def _finding(code: str, message: str, block: Block, *below: str, **details: Any) -> Reading:
    return Reading(findings=(Diagnostic(code, message, origin=block.locate(below), **details),))
