"""Tiny checkpoints and stores, every byte of every header written here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from mlxpipe.quant.modes import MODES, Scheme
from mlxpipe.quant.verify import Array, Evidence
from mlxpipe.spec import LoadedSpec, parse_spec

DATA = Path(__file__).parent / "data"
QWEN = DATA / "mlx-nvfp4-mixed-qwen35moe"
GPTOSS = DATA / "mlx-mxfp4-q8-gptoss"
STORE = DATA / "ollama-store"
STORE_MODEL = "tiny-qwen35moe:nvfp4-mixed"

ITEM_BYTES = {"U8": 1, "BF16": 2, "F16": 2, "F32": 4, "U32": 4, "I32": 4, "F64": 8}

AFFINE_4_64 = Scheme("affine", 4, 64)
AFFINE_8_32 = Scheme("affine", 8, 32)
AFFINE_8_64 = Scheme("affine", 8, 64)
NVFP4 = Scheme("nvfp4", 4, 16)
MXFP4 = Scheme("mxfp4", 4, 32)
MXFP8 = Scheme("mxfp8", 8, 32)


# --- tensors as bytes ------------------------------------------------------------------------


class Raw(NamedTuple):
    """A tensor as a file has it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


Tensors = dict[str, Raw]


def zeros(dtype: str, *shape: int) -> Raw:
    """A tensor of zero bytes: enough wherever nothing is computed."""
    return Raw(dtype, shape, bytes(ITEM_BYTES[dtype] * prod(shape)))


def raw(array: Any) -> Raw:
    """An MLX array (no bfloat16) as bytes."""
    names = {"uint8": "U8", "uint32": "U32", "float16": "F16", "float32": "F32"}
    return Raw(names[str(array.dtype).rpartition(".")[2]], tuple(array.shape), bytes(array))


def read_safetensors(path: Path) -> tuple[Tensors, dict[str, str]]:
    """Every tensor of a file as bytes, and its metadata."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in sorted(header.items()):
        first, last = entry["data_offsets"]
        data = content[start + first : start + last]
        tensors[name] = Raw(entry["dtype"], tuple(entry["shape"]), data)
    return tensors, metadata


def write_safetensors(
    path: Path, tensors: Mapping[str, Raw], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a file: the header's length, the header as JSON, the data back to back."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        stop = offset + len(tensor.data)
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.writelines(tensor.data for tensor in tensors.values())
    return path


# --- checkpoints -----------------------------------------------------------------------------


def write_checkpoint(
    directory: Path,
    tensors: Mapping[str, Raw],
    config: Any | str | None,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write a directory; `config` as a value, as the literal text, or None for no config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", tensors, metadata)
    if config is not None:
        text = config if isinstance(config, str) else json.dumps(config, indent=1)
        (directory / "config.json").write_text(text, encoding="utf-8")
    return directory


class Blob(NamedTuple):
    """A tensor layer of a store."""

    name: str
    tensors: Mapping[str, Raw]
    metadata: Mapping[str, str] = {}


def write_store(
    root: Path,
    blobs: Iterable[Blob],
    config: Mapping[str, Any],
    documents: Mapping[str, Any] | None = None,
) -> Path:
    """Write an Ollama store that holds one model, `tiny:latest`; documents are JSON layers."""
    folder = root / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    layers = []

    def add(path: Path, kind: str, name: str) -> None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        layers.append(
            {
                "mediaType": f"application/vnd.ollama.image.{kind}",
                "digest": f"sha256:{digest}",
                "size": path.stat().st_size,
                "name": name,
            }
        )
        path.rename(folder / f"sha256-{digest}")

    for blob in blobs:
        add(write_safetensors(root / "new", blob.tensors, blob.metadata), "tensor", blob.name)
    for name, document in {**(documents or {}), "config.json": config}.items():
        (root / "new").write_text(json.dumps(document), encoding="utf-8")
        add(root / "new", "json", name)
    manifest = root / "manifests/registry.ollama.ai/library/tiny/latest"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    body = {"schemaVersion": 2, "mediaType": kind, "config": layers[-1], "layers": layers}
    manifest.write_text(json.dumps(body), encoding="utf-8")
    return root


def spec(directory: Path, **sections: Any) -> LoadedSpec:
    """A spec beside or above checkpoints; `source` defaults to the directory itself."""
    data = {"version": 1, "source": {"path": "."}, **sections}
    return parse_spec(json.dumps(data, indent=1), "spec.yaml", directory)


def zoo_store_spec(**sections: Any) -> LoadedSpec:
    """A spec for the zoo's Ollama model."""
    source = {"ollama": STORE_MODEL, "store": "ollama-store"}
    return spec(DATA, source=source, **sections)


# --- layers ----------------------------------------------------------------------------------

#: Convention -> role -> a companion's name, for the layer `{}`.
SPELLINGS: Mapping[str, Mapping[str, str]] = {
    "mlx": {"scales": "{}.scales", "biases": "{}.biases"},
    "ollama": {"scales": "{}.weight.scale", "biases": "{}.weight.bias"},
    "ollama-runtime": {"scales": "{}.weight_scale", "biases": "{}.weight_qbias"},
}


def shapes(scheme: Scheme | None, *dense: int) -> dict[str, Array]:
    """Role -> dtype and shape of a layer whose dense weight has the shape `dense`."""
    if scheme is None:
        return {"weight": Array("F16", dense)}
    mode, lead, width = MODES[scheme.mode], dense[:-1], dense[-1]
    groups = Array("U8" if mode.byte_scales else "F16", (*lead, width // scheme.group_size))
    packed = Array("U32", (*lead, width * scheme.bits // 32))
    return {"weight": packed, "scales": groups} | ({"biases": groups} if mode.has_biases else {})


def evidence(scheme: Scheme | None, *dense: int, known: bool = True) -> Evidence:
    """What the judge would see of such a layer, with or without `in_features`."""
    return Evidence(**shapes(scheme, *dense), in_features=dense[-1] if known else None)


def spelled(path: str, role: str, convention: str = "mlx") -> str:
    """A tensor's name under a convention."""
    return SPELLINGS[convention].get(role, f"{{}}.{role}").format(path)


def layer(path: str, scheme: Scheme | None, *dense: int, convention: str = "mlx") -> Tensors:
    """A layer's tensors, of zeros."""
    return {
        spelled(path, role, convention): zeros(array.dtype, *array.shape)
        for role, array in shapes(scheme, *dense).items()
    }


# --- a llama ---------------------------------------------------------------------------------

LLAMA_CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

#: Module -> shape of its dense weight.
LLAMA: Mapping[str, tuple[int, int]] = {
    "model.embed_tokens": (64, 128),
    "model.layers.0.self_attn.q_proj": (128, 128),
    "model.layers.0.self_attn.k_proj": (64, 128),
    "model.layers.0.self_attn.v_proj": (64, 128),
    "model.layers.0.self_attn.o_proj": (128, 128),
    "model.layers.0.mlp.gate_proj": (256, 128),
    "model.layers.0.mlp.up_proj": (256, 128),
    "model.layers.0.mlp.down_proj": (128, 256),
    "lm_head": (64, 128),
}
LLAMA_NORMS = (
    "model.norm",
    "model.layers.0.input_layernorm",
    "model.layers.0.post_attention_layernorm",
)

EMBED, Q, GATE, DOWN, HEAD = (
    "model.embed_tokens",
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.gate_proj",
    "model.layers.0.mlp.down_proj",
    "lm_head",
)


def llama_config(**changes: Any) -> dict[str, Any]:
    """The llama's config.json with some keys changed or added."""
    return {**LLAMA_CONFIG, **changes}


def llama(
    default: Scheme | None = None,
    convention: str = "mlx",
    **schemes: Scheme | None,
) -> Tensors:
    """The llama's tensors, of zeros.

    Args:
        default: The scheme of every layer that `schemes` does not name.
        convention: How companions are spelled.
        schemes: Last segment of a module path -> its scheme.
    """
    tensors: Tensors = {}
    for path, dense in LLAMA.items():
        chosen = schemes.get(path.rpartition(".")[2], default)
        tensors |= layer(path, chosen, *dense, convention=convention)
    return dict(sorted((tensors | _norms()).items()))


def quantised_llama(scheme: Callable[[str], Scheme | None], convention: str = "mlx") -> Tensors:
    """The same llama with random weights that `mx.quantize` packed."""
    import mlx.core as mx

    tensors: Tensors = {}
    for number, (path, dense) in enumerate(LLAMA.items()):
        weight = mx.random.normal(dense, scale=0.05, key=mx.random.key(number))
        chosen = scheme(path)
        if chosen is None:
            tensors[f"{path}.weight"] = raw(weight)
            continue
        parts = mx.quantize(
            weight, group_size=chosen.group_size, bits=chosen.bits, mode=chosen.mode
        )
        for role, array in zip(("weight", "scales", "biases"), parts, strict=False):
            tensors[spelled(path, role, convention)] = raw(array)
    return dict(sorted((tensors | _norms()).items()))


def _norms() -> Tensors:
    one = b"\x00\x00\x80\x3f"
    return {f"{path}.weight": Raw("F32", (128,), one * 128) for path in LLAMA_NORMS}
