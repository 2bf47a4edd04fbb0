"""Open a model in an Ollama store.

A store is `manifests/<host>/<namespace>/<model>/<tag>` (JSON) and `blobs/sha256-<64 hex>`. The
manifest's layers are tensors (one safetensors file each), JSON documents and texts. Layer names say
nothing about the tensors: the keys in the blobs' headers do. The manifest's own `config` blob is
Ollama's, not the model's config.json.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mlxpipe.checkpoint.files import collector_paused, open_regular, unreadable
from mlxpipe.checkpoint.header import read_header
from mlxpipe.checkpoint.inventory import Checkpoint, Shard, gather
from mlxpipe.checkpoint.json_positions import json_pointer
from mlxpipe.checkpoint.json_reader import read_json
from mlxpipe.errors import Origin, SourceError, nearest

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
IMAGE = "application/vnd.ollama.image."

TEXTS = frozenset({"template", "system", "params", "license"})

_REFUSED: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "model": (
            "gguf-model",
            "is a GGUF model: it has no safetensors tensors",
            "use a safetensors model, or the original one from the Hugging Face hub",
        ),
        "projector": (
            "gguf-model",
            "has a GGUF projector",
            "use a safetensors model, or the original one from the Hugging Face hub",
        ),
        "adapter": (
            "ollama-adapter",
            "has an adapter, which changes the weights and is not applied here",
            "fuse the adapter into the model, or use the base model",
        ),
    }
)
"""Layers that make the model another one than its tensors alone: code, what it is, what to do."""

_KNOWN = frozenset({"tensor", "json", *TEXTS, *_REFUSED})

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LAYER_NAME = re.compile(r"(?!.*(?:^|/)\.{0,2}(?:/|$))[^\\:\x00-\x1f\x7f]{1,255}", re.ASCII)

_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_PARTS: Mapping[str, re.Pattern[str]] = MappingProxyType(
    {
        "host": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}"),
        "namespace": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}"),
        "model": re.compile(_PART),
        "tag": re.compile(_PART),
    }
)
"""Ollama's own rules for the parts of a name; none of them lets a path out of the store."""


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model's full name; its parts are valid as path segments."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, name: str) -> ModelName:
        """Read `[host/][namespace/]model[:tag]` with Ollama's defaults.

        Raises:
            SourceError: `bad-model-name`.
        """
        path, tag = name, "latest"
        if ":" in name.rpartition("/")[2]:
            path, _, tag = name.rpartition(":")
        segments = path.split("/")
        defaults = ["registry.ollama.ai", "library"]
        parts = dict(zip(_PARTS, [*defaults[: 3 - len(segments)], *segments, tag], strict=False))
        wrong = [part for part, rule in _PARTS.items() if not rule.fullmatch(parts.get(part, ""))]
        if len(segments) > 3 or wrong:
            raise SourceError(
                "bad-model-name",
                f"{name[:200]!r} is not the name of an Ollama model",
                found=f"the {wrong[0]} {parts.get(wrong[0], '')[:100]!r}" if wrong else "",
                expected="[host/][namespace/]model[:tag], of letters, digits, '_', '-' and '.'",
                help="ollama list shows the names",
            )
        return cls(**parts)

    @property
    def path(self) -> Path:
        """The manifest's path below `manifests`."""
        return Path(self.host, self.namespace, self.model, self.tag)

    def __str__(self) -> str:
        shown = [self.host, self.namespace, f"{self.model}:{self.tag}"]
        while len(shown) > 1 and shown[0] in ("registry.ollama.ai", "library"):
            shown.pop(0)
        return "/".join(shown)


class Layer(NamedTuple):
    """One layer of a manifest, its digest and size checked."""

    kind: str
    """The media type's end, such as `tensor` or `json`; the whole media type if it is not known."""
    digest: str
    size: int
    name: str
    pointer: str

    @property
    def is_ignored(self) -> bool:
        """Whether its media type is not known here."""
        return self.kind not in _KNOWN

    @property
    def label(self) -> str:
        """The blob with the layer's name."""
        short = self.digest.replace(":", "-")[:19]
        return f"{short}… ({self.name})" if self.name else f"{short}…"


def open_ollama(name: str, store: str | Path | None = None, verify: bool = False) -> Checkpoint:
    """Open a model of an Ollama store.

    Args:
        name: `[host/][namespace/]model[:tag]`.
        store: The store's root; by default `$OLLAMA_MODELS`, else `~/.ollama/models`.
        verify: Read every blob and compare its sha256 with its digest.

    Raises:
        SourceError: The name (`bad-model-name`, `model-not-found`, `missing-store`), the manifest
            (`bad-manifest`, `bad-digest`, `bad-layer-name`, `duplicate-layer`), what it holds
            (`gguf-model`, `ollama-adapter`, `no-weights`), a blob (`missing-blob`, `blob-size`,
            `digest-mismatch`), a header (see `mlxpipe.checkpoint.header.read_header`), or two
            blobs with one tensor (`duplicate-tensor`).
    """
    model = ModelName.parse(name)
    root = _store_root(store)
    manifest = _find_manifest(model, root)
    label = str(model)
    layers = list(_layers(read_json(manifest, f"the manifest of {label}"), label))
    tensors = _tensor_layers(layers, label)
    files = _files(layers, root, label)
    for layer in layers:
        if not layer.is_ignored:
            _check_blob(layer, _blob(root, layer), label, verify)
    labels = [f"{label}/{layer.label}" for layer in tensors]
    with collector_paused():
        headers = [read_header(_blob(root, t), labels[i], i) for i, t in enumerate(tensors)]
        found = gather(labels, (header.tensors for header in headers))
    return Checkpoint(
        kind="ollama",
        label=label,
        root=root,
        shards=tuple(
            Shard(_blob(root, layer), layer.label, header.metadata, header.size, layer.name)
            for layer, header in zip(tensors, headers, strict=True)
        ),
        tensors=found,
        files=files,
        ignored=tuple(sorted({layer.kind for layer in layers if layer.is_ignored})),
    )


# ------------------------------------------------------------------ the store


def _store_root(store: str | Path | None) -> Path:
    shown = str(store or os.environ.get("OLLAMA_MODELS") or "~/.ollama/models")
    root = Path(shown).expanduser()
    if (root / "manifests").is_dir():
        return root
    raise SourceError(
        "missing-store",
        f"{shown} is not an Ollama store",
        origin=Origin(shown),
        found="no directory 'manifests' in it" if root.is_dir() else "no such directory",
        expected="a directory with 'manifests' and 'blobs'",
        help="set source.store or OLLAMA_MODELS to the store",
    )


def _find_manifest(model: ModelName, root: Path) -> Path:
    path = root / "manifests" / model.path
    if path.is_file():
        return path
    known = sorted(_models(root))
    near = nearest(str(model), known)
    raise SourceError(
        "model-not-found",
        f"the Ollama store has no model '{model}'",
        found=", ".join(known[:12]) + (f" and {len(known) - 12} more" if len(known) > 12 else "")
        if known
        else "an empty store",
        help=f"did you mean '{near[0]}'?" if near else f"fetch it: ollama pull {model}",
    )


def _models(root: Path) -> Iterator[str]:
    for path in (root / "manifests").glob("*/*/*/*"):
        if path.is_file() and not path.name.startswith("."):
            yield str(ModelName(*path.parts[-4:]))


def _blob(root: Path, layer: Layer) -> Path:
    return root / "blobs" / layer.digest.replace(":", "-")


def _check_blob(layer: Layer, path: Path, label: str, verify: bool) -> None:
    try:
        file, size = open_regular(path, f"{label}/{layer.label}")
    except SourceError as error:
        if error.code != "missing-file":
            raise
        raise _blob_fault("missing-blob", "is not in the store", layer, label) from error
    with file:
        if size != layer.size:
            found, expected = f"{size:,} bytes", f"{layer.size:,} bytes, as the manifest says"
            raise _blob_fault("blob-size", "has another size", layer, label, found, expected)
        if verify:
            _check_digest(layer, file, label)


def _check_digest(layer: Layer, file: Any, label: str) -> None:
    try:
        found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(f"{label}/{layer.label}", error) from error
    if found != layer.digest:
        what = "is not what its digest says"
        raise _blob_fault("digest-mismatch", what, layer, label, found, layer.digest)


def _blob_fault(
    code: str, what: str, layer: Layer, label: str, found: str = "", expected: str = ""
) -> SourceError:
    return SourceError(
        code,
        f"blob {layer.label} of '{label}' {what}",
        origin=_origin(label, layer.pointer),
        found=found,
        expected=expected or f"blobs/{layer.digest.replace(':', '-')}",
        help=f"fetch the model again: ollama pull {label}",
    )


# ------------------------------------------------------------------ the manifest


def _origin(label: str, pointer: str = "") -> Origin:
    return Origin(f"the manifest of {label}", pointer=pointer)


def _bad_manifest(
    label: str, pointer: str, found: Any, expected: str, code: str = "bad-manifest"
) -> SourceError:
    return SourceError(
        code,
        f"the manifest of '{label}' cannot be used",
        origin=_origin(label, pointer),
        found=repr(found)[:120],
        expected=expected,
        help=f"fetch the model again: ollama pull {label}",
    )


def _layers(manifest: Any, label: str) -> Iterator[Layer]:
    """The layers of a parsed manifest, each checked before it is used for a path."""
    if not isinstance(manifest, dict):
        raise _bad_manifest(label, "", type(manifest).__name__, "a JSON object")
    for key, expected in (("schemaVersion", 2), ("mediaType", MANIFEST_TYPE)):
        if manifest.get(key) != expected:
            raise _bad_manifest(label, json_pointer(key), manifest.get(key), repr(expected))
    layers = manifest.get("layers")
    if not isinstance(layers, list):
        raise _bad_manifest(label, "/layers", layers, "a list of layers")
    for number, layer in enumerate(layers):
        yield _layer(layer, json_pointer("layers", number), label)


def _layer(layer: Any, pointer: str, label: str) -> Layer:
    fields = {"mediaType": str, "digest": str, "size": int}
    if not isinstance(layer, dict):
        raise _bad_manifest(label, pointer, layer, "an object")
    for key, kind in fields.items():
        if type(layer.get(key)) is not kind:
            raise _bad_manifest(label, f"{pointer}/{key}", layer.get(key), kind.__name__)
    media, digest, size = (layer[key] for key in fields)
    if not _DIGEST.fullmatch(digest):
        expected = "sha256: and 64 hexadecimal digits"
        raise _bad_manifest(label, f"{pointer}/digest", digest, expected, "bad-digest")
    short = media.removeprefix(IMAGE)
    kind = short if media.startswith(IMAGE) and short in _KNOWN else media
    name = layer.get("name", "")
    if not isinstance(name, str) or (kind == "json" and not _LAYER_NAME.fullmatch(name)):
        expected = "a file name, without '..', '\\' or a leading '/'"
        raise _bad_manifest(label, f"{pointer}/name", name, expected, "bad-layer-name")
    return Layer(kind, digest, size, name, pointer)


def _tensor_layers(layers: list[Layer], label: str) -> list[Layer]:
    for layer in layers:
        if layer.kind in _REFUSED:
            code, what, advice = _REFUSED[layer.kind]
            origin = _origin(label, layer.pointer)
            raise SourceError(code, f"'{label}' {what}", origin=origin, help=advice)
    tensors = [layer for layer in layers if layer.kind == "tensor"]
    if not tensors:
        kinds = sorted({layer.kind for layer in layers})
        raise SourceError(
            "no-weights",
            f"'{label}' holds no safetensors weights",
            origin=_origin(label, "/layers"),
            found=", ".join(kinds) or "no layers",
            expected="layers of tensors",
            help="use a safetensors model",
        )
    return tensors


def _files(layers: list[Layer], root: Path, label: str) -> Mapping[str, Path]:
    """JSON layers by their names, texts by their kinds (a second licence is `license.2`)."""
    files: dict[str, Path] = {}
    for layer in layers:
        if layer.kind == "json":
            if layer.name in files:
                expected = "one JSON layer of each name"
                pointer = f"{layer.pointer}/name"
                raise _bad_manifest(label, pointer, layer.name, expected, "duplicate-layer")
            files[layer.name] = _blob(root, layer)
    for layer in layers:
        if layer.kind in TEXTS:
            taken = sum(name.partition(".")[0] == layer.kind for name in files)
            name = f"{layer.kind}.{taken + 1}" if taken else layer.kind
            files[name] = _blob(root, layer)
    return MappingProxyType(dict(sorted(files.items())))
