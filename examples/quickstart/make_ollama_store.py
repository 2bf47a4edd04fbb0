"""Makes an Ollama model store of the quickstart model, with the metadata that started it all.

    python make_ollama_store.py [--model DIR] [--store DIR] [--name MODEL[:TAG]]

One blob per tensor group (W, W.scale, W.bias). Every quantised blob is stamped with the global
scheme, as Ollama's importer did, so the blobs of overridden paths lie. Files appear whole or not
at all; running it again changes nothing; a manifest or blob with other content is never replaced.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REGISTRY = "registry.ollama.ai"
NAME = re.compile(r"(?:([\w-]+)/)?([a-z0-9][\w.-]*)(?::([\w][\w.-]*))?", re.ASCII)
COMPANIONS = {".scales": ".weight.scale", ".biases": ".weight.bias"}
JSON_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
LAYER = "application/vnd.ollama.image."
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
IMAGE = "application/vnd.docker.container.image.v1+json"
PARAMETERS = {"temperature": 0.7}


class StoreError(Exception):
    """Something that the user can put right."""


@dataclass(frozen=True)
class Tensor:
    """One tensor as its header describes it, and its bytes."""

    dtype: str
    shape: list[int]
    data: bytes


@dataclass
class Store:
    """Writes blobs and manifests under a root; counts what was new."""

    root: Path
    written: int = 0
    layers: list[dict[str, object]] = field(default_factory=list)

    def put(self, path: Path, data: bytes) -> None:
        """Writes a file whole; refuses to replace one that differs."""
        if path.exists():
            if path.read_bytes() != data:
                raise StoreError(f"{path} exists with other content; remove it first")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.write_bytes(data)
        temporary.replace(path)
        self.written += 1

    def add_blob(self, media_type: str, data: bytes, **name: str) -> dict[str, object]:
        """Stores a blob under its digest; returns its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        self.put(self.root / "blobs" / f"sha256-{digest}", data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **name}

    def add_layer(self, kind: str, data: bytes, **name: str) -> None:
        """Stores a blob as the next layer of the model."""
        self.layers.append(self.add_blob(LAYER + kind, data, **name))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by name."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__", None)
    body = memoryview(content)[8 + length :]
    return {
        name: Tensor(entry["dtype"], entry["shape"], bytes(body[slice(*entry["data_offsets"])]))
        for name, entry in header.items()
    }


def write_safetensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file; its header padded with spaces to a multiple of 8 bytes."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(t.data for t in tensors.values())


def tensor_groups(tensors: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each base tensor, sorted by name, with its companions under Ollama's names."""
    for name in sorted(tensors):
        path, dot, leaf = name.rpartition(".")
        if dot + leaf in COMPANIONS and f"{path}.weight" in tensors:
            continue
        group = {name: tensors[name]}
        if leaf == "weight":
            for suffix, ollama in COMPANIONS.items():
                if path + suffix in tensors:
                    group[path + ollama] = tensors[path + suffix]
        yield name, group


def global_stamp(config: dict[str, dict[str, object]]) -> dict[str, str]:
    """The metadata of the global scheme."""
    scheme = config.get("quantization")
    if not scheme:
        raise StoreError("config.json declares no quantization")
    return {"quant_type": str(scheme["mode"]), "group_size": str(scheme["group_size"])}


def image_config(model_type: str, file_type: str) -> dict[str, object]:
    """Ollama's own description of a model."""
    return {
        "model_format": "safetensors",
        "model_family": model_type,
        "model_families": [model_type],
        "model_type": "",
        "file_type": file_type,
        "architecture": "amd64",
        "os": "linux",
        "requires": "0.19.0",
    }


def manifest_path(root: Path, name: str) -> Path:
    """Where a model's manifest lies: namespace/model:tag, `library` and `latest` understood."""
    match = NAME.fullmatch(name)
    if match is None:
        raise StoreError(f"'{name}' is not a model name; write [namespace/]model[:tag]")
    namespace, model, tag = match.groups()
    return root / "manifests" / REGISTRY / (namespace or "library") / model / (tag or "latest")


def make_store(model: Path, root: Path, name: str) -> Store:
    """Writes the blobs, then the manifest that names them."""
    manifest_file = manifest_path(root, name)
    config = json.loads((model / "config.json").read_bytes())
    stamp = global_stamp(config)
    store = Store(root)
    for base, group in tensor_groups(read_safetensors(model / "model.safetensors")):
        blob = write_safetensors(group, stamp if len(group) > 1 else {})
        store.add_layer("tensor", blob, name=base)
    for file in JSON_FILES:
        store.add_layer("json", (model / file).read_bytes(), name=file)
    store.add_layer("params", json.dumps(PARAMETERS).encode())
    image = json.dumps(image_config(config["model_type"], stamp["quant_type"])).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": store.add_blob(IMAGE, image),
        "layers": store.layers,
    }
    store.put(manifest_file, json.dumps(manifest).encode())
    return store


def main() -> None:
    """The command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=here / "model", help="default: %(default)s")
    parser.add_argument(
        "--store", type=Path, default=here / "ollama-store", help="default: %(default)s"
    )
    parser.add_argument("--name", default="tiny-austen:nvfp4-mixed", help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        store = make_store(arguments.model, arguments.store, arguments.name)
    except (OSError, KeyError, ValueError, StoreError) as error:
        parser.exit(1, f"error: {error}\n")
    print(
        f"{arguments.name} in {arguments.store}: {len(store.layers)} layers, "
        f"{store.written} files written"
    )


if __name__ == "__main__":
    main()
