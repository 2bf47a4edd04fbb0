"""The checkpoints whose declarations are mutated, and how a mutated one is put on disk.

The weights are never touched: a mutated checkpoint links to them and has declarations of its own.
"""

from __future__ import annotations

import atexit
import copy
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
from builders import (
    AFFINE_4_64,
    AFFINE_8_32,
    AFFINE_8_64,
    DATA,
    EMBED,
    GPTOSS,
    HEAD,
    QWEN,
    STORE,
    STORE_MODEL,
    Blob,
    Q,
    Tensors,
    llama_config,
    quantised_llama,
    read_safetensors,
    spec,
    write_checkpoint,
    write_safetensors,
    write_store,
)

from mlxpipe import load, make_plan
from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.source import open_source
from mlxpipe.plan.plan import Plan
from mlxpipe.quant.modes import Scheme
from mlxpipe.spec import LoadedSpec

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENS = mx.array([[1, 5, 9, 63, 0, 7]])


@dataclass(frozen=True, eq=False)
class Declarations:
    """All that a checkpoint says of itself, weights aside.

    Attributes:
        documents: File name -> JSON value.
        stamps: Layer of a store -> its blob's metadata; empty for a directory.
        shards: Stray shards: file name (or layer of a store) -> tensors.
    """

    documents: Mapping[str, Any]
    stamps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    shards: Mapping[str, Tensors] = field(default_factory=dict)

    def edited(self, name: str = CONFIG) -> tuple[Declarations, Any]:
        """A copy, and the document in it that may be changed."""
        documents = copy.deepcopy(dict(self.documents))
        return Declarations(documents, self.stamps, self.shards), documents[name]


@dataclass(frozen=True, eq=False)
class Base:
    """A checkpoint.

    Attributes:
        name: What the table calls it.
        folder: Where its weights are.
        declarations: What it says of itself before any mutation.
        plain: Modules that cannot be quantised.
        producer: Whose forms its declarations have.
    """

    name: str
    folder: Path
    declarations: Declarations
    plain: tuple[str, ...]
    producer: str = "mlx"

    def __repr__(self) -> str:
        return self.name

    @contextmanager
    def on_disk(self, declarations: Declarations) -> Iterator[LoadedSpec]:
        """A spec for the checkpoint with these declarations, while the context lasts."""
        with tempfile.TemporaryDirectory(prefix="mlxpipe-law-") as folder:
            root = Path(folder)
            yield (
                self._store(root, declarations)
                if declarations.stamps
                else self._directory(root, declarations)
            )

    def _directory(self, root: Path, declarations: Declarations) -> LoadedSpec:
        (root / WEIGHTS).symlink_to(self.folder / WEIGHTS)
        for name, data in declarations.documents.items():
            (root / name).write_text(json.dumps(data, indent=1), encoding="utf-8")
        for name, tensors in declarations.shards.items():
            write_safetensors(root / name, tensors)
        return spec(root)

    def _store(self, root: Path, declarations: Declarations) -> LoadedSpec:
        blobs = [
            Blob(layer, tensors, declarations.stamps[layer])
            for layer, tensors in store_tensors().items()
        ]
        blobs += [Blob(layer, tensors) for layer, tensors in declarations.shards.items()]
        write_store(root, blobs, declarations.documents[CONFIG])
        return spec(root, source={"ollama": "tiny", "store": "."})


@dataclass(frozen=True, eq=False)
class Reference:
    """What a base is before any mutation.

    Attributes:
        plan: Its plan.
        logits: Its answer to `TOKENS` in float32.
    """

    plan: Plan
    logits: mx.array

    @property
    def truth(self) -> Mapping[str, Scheme | None]:
        """Module path -> what it is."""
        return {path: module.scheme for path, module in self.plan.modules.items()}


@cache
def reference(base: Base) -> Reference:
    """A base's plan and logits, computed once."""
    with base.on_disk(base.declarations) as loaded:
        return Reference(make_plan(loaded).require_sound(), answer(loaded))


def answer(loaded: LoadedSpec) -> mx.array:
    """The logits of `TOKENS` in float32, evaluated."""
    model, _ = load(loaded, tokenizer=False, dtype="float32")
    logits = model(TOKENS)
    mx.eval(logits)
    return logits


# --- the bases -------------------------------------------------------------------------------


def documents(folder: Path, *names: str) -> dict[str, Any]:
    """JSON documents of a directory by name."""
    return {name: json.loads((folder / name).read_text(encoding="utf-8")) for name in names}


def declared_once(config: dict[str, Any], **entries: Any) -> dict[str, Any]:
    """An mlx-lm config with its one block in `quantization`, and some entries more."""
    once = {key: value for key, value in config.items() if key != "quantization_config"}
    return {**once, "quantization": {**config["quantization"], **entries}}


@cache
def store_tensors() -> Mapping[str, Tensors]:
    """The zoo's Ollama model: layer -> tensors."""
    return {shard.layer: read_safetensors(shard.path)[0] for shard in _store_checkpoint().shards}


def _store_checkpoint() -> Checkpoint:
    return open_source(spec(DATA, source={"ollama": STORE_MODEL, "store": STORE.name}))


@cache
def qwen() -> Base:
    """Global nvfp4, gates in 8 bits whose mode is omitted, a linear that is `false`."""
    dense = {"language_model.model.layers.0.linear_attn.in_proj_a": False}
    config = declared_once(documents(QWEN, CONFIG)[CONFIG], **dense)
    norms = ("language_model.model.norm", "language_model.model.layers.1.input_layernorm")
    return Base("qwen3.5-moe", QWEN, Declarations({CONFIG: config}), norms)


@cache
def gptoss() -> Base:
    """Global mxfp4, attention in mxfp8, the rest in 8 bits whose mode is omitted."""
    config = declared_once(documents(GPTOSS, CONFIG)[CONFIG])
    return Base("gpt-oss", GPTOSS, Declarations({CONFIG: config}), ("model.norm",))


LLAMA_SCHEMES: Mapping[str, Scheme | None] = {EMBED: AFFINE_8_32, HEAD: AFFINE_8_64, Q: None}


@cache
def llama() -> Base:
    """Dense but for its layers' 4 bits, with 8 bits at both ends."""
    folder = Path(tempfile.mkdtemp(prefix="mlxpipe-llama-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tensors = quantised_llama(lambda path: LLAMA_SCHEMES.get(path, AFFINE_4_64))
    block = {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        EMBED: {"bits": 8, "group_size": 32},
        HEAD: {"bits": 8, "group_size": 64},
        Q: False,
    }
    config = llama_config(quantization=block)
    write_checkpoint(folder, tensors, config)
    norms = ("model.norm", "model.layers.0.input_layernorm")
    return Base("llama", folder, Declarations({CONFIG: config}), norms)


@cache
def store() -> Base:
    """The same mixture as `qwen` in an Ollama store, every blob stamped with the global."""
    checkpoint = _store_checkpoint()
    config = declared_once(copy.deepcopy(checkpoint.config.data))
    stamps = {shard.layer: dict(shard.metadata) for shard in checkpoint.shards}
    return Base("ollama", STORE, Declarations({CONFIG: config}, stamps), qwen().plain, "ollama")


def _foreign(name: str, producer: str, *files: str) -> Base:
    folder = DATA / name
    declared = Declarations(documents(folder, CONFIG, *files))
    return Base(name, folder, declared, ("model.norm",), producer)


@cache
def bases() -> tuple[Base, ...]:
    """Every base, by the producer of its declarations."""
    return (
        qwen(),
        gptoss(),
        llama(),
        store(),
        _foreign("ct-mixed-llama", "compressed-tensors"),
        _foreign("mo-mixed-qwen3", "modelopt", "hf_quant_config.json"),
        _foreign("ar-gptq-mixed-qwen3", "gptq", "quantization_config.json"),
        _foreign("ar-autoround-mixed-qwen3", "autoround", "quantization_config.json"),
        _foreign("ar-awq-llama", "other", "quantization_config.json"),
        _foreign("ct-w4a16asym-qwen3", "other"),
        _foreign("fp8-block-qwen3", "other"),
    )
