"""An entry of an Ollama store: a blob for each tensor, and last of all the manifest.

Each blob's metadata describes its own tensor, never the model's global scheme. Ollama has a
`quant_type` for five schemes; for others `mode`, `bits` and `group_size` alone say what the tensor
is, which mlxpipe reads. Layout and names: see `mlxpipe.checkpoint.ollama`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.ollama import CONFIG_TYPE, IMAGE, MANIFEST_TYPE, TEXTS, ModelName
from mlxpipe.errors import SourceError, UsageError
from mlxpipe.exports.config import CONFIG, documents, exported_config, is_legal
from mlxpipe.exports.draft import (
    PRODUCER,
    check_outside,
    check_space,
    draft,
    staging,
    sync,
    write_file,
)
from mlxpipe.exports.files import File, entries_of, fill_all, judge
from mlxpipe.exports.forms import FACTOR, ORDER, Arrays, Contents, Form
from mlxpipe.exports.request import Exported, Progress, Request
from mlxpipe.graph.arrays import AMAX
from mlxpipe.plan.plan import Plan, PlannedModule
from mlxpipe.quant.modes import Scheme
from mlxpipe.quant.ollama_dialect import QUANT_TYPES

#: Leaf of a packed module -> what a blob calls it, after the weight's whole name.
COMPANIONS = {"scales": "scale", "biases": "bias", FACTOR: "global_scale"}

#: (mode, bits) -> Ollama's name.
TYPES = {
    (scheme.mode, scheme.bits): name.lower() for name, scheme in reversed([*QUANT_TYPES.items()])
}


def check(request: Request, checkpoint: Checkpoint) -> None:
    """Refuse a target that is no store, and a name that is taken.

    Raises:
        UsageError: `bad-model-name`, `not-a-store`, `entry-exists`, `target-in-source`.
    """
    name, store = parse(request), request.target
    manifest = store / "manifests" / name.path
    is_store = (store / "manifests").is_dir()
    if store.exists() and not is_store and not (store.is_dir() and not any(store.iterdir())):
        raise UsageError(
            "not-a-store",
            f"{store} exists and is no Ollama store",
            origin=request.origin,
            expected="a directory with 'manifests', an empty one, or none",
            help="choose the store that ollama uses, or a new path",
        )
    if checkpoint.kind != "ollama":
        check_outside(store, checkpoint.root, request.origin)
    itself = store.resolve() == checkpoint.root.resolve() and str(name) == checkpoint.label
    if manifest.exists() and (itself or not (request.overwrite and _is_ours(manifest, store))):
        raise UsageError(
            "entry-exists",
            f"the store has an entry '{name}' already",
            origin=request.origin,
            found="the model that is exported" if itself else "",
            help="choose another name; overwrite: true replaces earlier exports of mlxpipe only",
        )


def parse(request: Request) -> ModelName:
    """The entry's name.

    Raises:
        UsageError: `bad-model-name`.
    """
    try:
        return ModelName.parse(request.name)
    except SourceError as error:
        first = error.diagnostics[0]
        raise UsageError(
            first.code,
            first.message,
            origin=request.origin,
            found=first.found,
            expected=first.expected,
        ) from error


def _is_ours(manifest: Path, store: Path) -> bool:
    try:
        digest = json.loads(manifest.read_bytes())["config"]["digest"]
        image = store / "blobs" / digest.replace(":", "-").rpartition("/")[2]
        return json.loads(image.read_bytes()).get("producer") == PRODUCER  # type: ignore[no-any-return]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def hold(module: PlannedModule, own: Arrays) -> Arrays | None:
    """What a blob holds: no permutation, and a factor per tensor or expert in nvfp4 alone."""
    plain = {leaf: array for leaf, array in own.items() if leaf != AMAX}
    if ORDER in own:
        return None
    if FACTOR not in own:
        return plain
    per_row = own[FACTOR].ndim > own["weight"].ndim - 2
    if per_row or module.landing is None or module.landing.mode != "nvfp4":
        return None
    # As float32, which every factor of 16 bits is exactly.
    return {**plain, FACTOR: own[FACTOR].astype(mx.float32)}


def stamp(scheme: Scheme) -> dict[str, str]:
    """A blob's metadata: what its tensor is."""
    known = TYPES.get((scheme.mode, scheme.bits))
    fields = {"mode": scheme.mode, "bits": scheme.bits, "group_size": scheme.group_size}
    named = {"quant_type": known} if known else {}
    return {**named, **{key: str(value) for key, value in fields.items()}}


def write(
    plan: Plan, checkpoint: Checkpoint, contents: Contents, request: Request, progress: Progress
) -> Exported:
    """Add the entry, whole or not at all; other entries stay as they are.

    Raises:
        ExecutionError: `no-space`, `cannot-write`, `unfaithful-export`, `export-failed`.
    """
    name, store = parse(request), request.target
    forms = {path: _remarked(form) for path, form in contents.forms.items()}
    total = sum(array.nbytes for array in contents.arrays.values())
    check_space(store, total, request.origin)
    config = exported_config(checkpoint.config.data, plan, forms)
    stage = staging(store, name.model, origin=request.origin)
    with stage if store.exists() else draft(store, origin=request.origin) as folder:
        (folder / "blobs").mkdir()
        documents = list(_documents(folder, checkpoint, config))
        files, arrays = _blobs(folder, contents)
        placed = {each.name: _blob(folder, each.digest) for each in documents if each.name}
        judge(files, "ollama", folder, placed, plan, forms)
        digests = {file: hashlib.sha256() for file in files}
        fill_all(files, arrays, progress, {file: digests[file].update for file in files})
        tensors = [_keep(folder, file, digests[file].hexdigest()) for file in files]
        image = _add(folder, CONFIG_TYPE, _json(_image(config)))
        _write_manifest(folder, name, image, [*tensors, *documents])
        if folder.parent == store:
            _merge(folder, store, name)
    return Exported(store, total, sum(len(file.entries) for file in files), len(files), forms)


def _remarked(form: Form) -> Form:
    """A form that Ollama has no name for, with that said."""
    if form.scheme is None or "quant_type" in stamp(form.scheme):
        return form
    return replace(form, reason=f"{form.scheme}, for which Ollama has no quant_type")


# --- blobs -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob as a manifest names it; `name` is "" where it has none."""

    media_type: str
    digest: str
    size: int
    name: str = ""

    def as_json(self) -> dict[str, Any]:
        """The manifest's form."""
        fields = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return {**fields, "name": self.name} if self.name else fields


def _blob(folder: Path, digest: str) -> Path:
    return folder / "blobs" / digest.replace(":", "-")


def _add(folder: Path, media_type: str, data: bytes, name: str = "") -> Layer:
    """Write a small blob; one that is there already is the same."""
    layer = Layer(media_type, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data), name)
    path = _blob(folder, layer.digest)
    if not path.exists():
        write_file(path, data)
    return layer


def _keep(folder: Path, file: File, digest: str) -> Layer:
    """Give a finished blob its name."""
    layer = Layer(IMAGE + "tensor", f"sha256:{digest}", file.path.stat().st_size, file.name)
    file.path.rename(_blob(folder, layer.digest))
    return layer


def _blobs(folder: Path, contents: Contents) -> tuple[tuple[File, ...], Arrays]:
    """A file for each tensor with its companions, and the arrays under Ollama's names."""
    arrays = dict(contents.arrays)
    files: list[File] = []
    renamed: Arrays = {}
    for number, (base, names) in enumerate(_groups(contents)):
        own = {new: arrays.pop(name) for name, new in sorted(names.items())}
        path, _, leaf = base.rpartition(".")
        form = contents.forms.get(path) if leaf == "weight" else None
        metadata = stamp(form.scheme) if form is not None and form.scheme is not None else {}
        place = folder / "blobs" / f"pending-{number:06d}"
        files.append(File(place, entries_of(own), metadata, base))
        renamed |= own
    contents.arrays.clear()
    return tuple(files), renamed


def _groups(contents: Contents) -> Iterator[tuple[str, dict[str, str]]]:
    """Name of each blob's main tensor -> its tensors' names and what Ollama calls them."""
    companions = {
        f"{path}.{leaf}"
        for path, form in contents.forms.items()
        if form.scheme is not None
        for leaf in COMPANIONS
    }
    for name in contents.arrays:
        if name in companions:
            continue
        path, _, leaf = name.rpartition(".")
        hanging = {f"{path}.{each}": f"{name}.{new}" for each, new in COMPANIONS.items()}
        if leaf != "weight":
            hanging = {}
        present = companions & contents.arrays.keys() & hanging.keys()
        yield name, {name: name, **{each: hanging[each] for each in present}}


# --- documents and the manifest --------------------------------------------------------------


def _documents(folder: Path, checkpoint: Checkpoint, config: dict[str, Any]) -> Iterator[Layer]:
    """config.json, the tokenizer's files, and a store's texts or a directory's licences."""
    yield _add(folder, IMAGE + "json", _json(config), CONFIG)
    for name, path in documents(checkpoint).items():
        if not is_legal(name):
            yield _add(folder, IMAGE + "json", path.read_bytes(), name)
    for name, path in sorted(checkpoint.files.items()):
        kind = name.partition(".")[0] if checkpoint.kind == "ollama" else ""
        if kind in TEXTS or is_legal(name):
            yield _add(folder, IMAGE + (kind or "license"), path.read_bytes())


def _image(config: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's own description of a model."""
    family = config["model_type"]
    block = config.get("quantization") or {}
    return {
        "model_format": "safetensors",
        "model_family": family,
        "model_families": [family],
        "model_type": "",
        "file_type": block.get("mode") or config.get("dtype") or config.get("torch_dtype") or "",
        "architecture": "amd64",
        "os": "linux",
        "producer": PRODUCER,
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=4, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _write_manifest(folder: Path, name: ModelName, image: Layer, layers: list[Layer]) -> None:
    path = folder / "manifests" / name.path
    path.parent.mkdir(parents=True)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": image.as_json(),
        "layers": [layer.as_json() for layer in layers],
    }
    write_file(path, _json(manifest))


def _merge(folder: Path, store: Path, name: ModelName) -> None:
    """Move a staged entry into its store: blobs that are not there yet, then the manifest."""
    moved: list[Path] = []
    (store / "blobs").mkdir(exist_ok=True)
    try:
        for blob in sorted((folder / "blobs").iterdir()):
            place = store / "blobs" / blob.name
            if not place.exists():
                moved.append(place)
                blob.rename(place)
        sync(store / "blobs")
        manifest = store / "manifests" / name.path
        manifest.parent.mkdir(parents=True, exist_ok=True)
        (folder / "manifests" / name.path).replace(manifest)
        sync(manifest.parent)
    except BaseException:
        for place in moved:
            place.unlink(missing_ok=True)
        raise
