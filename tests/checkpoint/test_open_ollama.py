"""Ollama stores: names, manifests and blobs, each wrong in every way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import DATA, Refused, digest, weights, write

from mlxpipe.checkpoint import Checkpoint, open_ollama
from mlxpipe.checkpoint.ollama import MANIFEST_TYPE, ModelName

IMAGE = "application/vnd.ollama.image."


class Store:
    """A store with one model, `tiny`; tests bend its manifest or its blobs."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest: Any = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": "x", "digest": "sha256:" + "0" * 64, "size": 1},
            "layers": [],
        }

    def add(self, kind: str, content: bytes, name: str | None = None, **fields: Any) -> dict:
        write(self.root, {"blobs/" + digest(content).replace(":", "-"): content})
        layer = {"mediaType": IMAGE + kind, "digest": digest(content), "size": len(content)}
        layer |= ({} if name is None else {"name": name}) | fields
        self.manifest["layers"].append(layer)
        return layer

    def open(self, name: str = "tiny", **options: Any) -> Checkpoint:
        path = "manifests/registry.ollama.ai/library/tiny/latest"
        write(self.root, {path: self.manifest})
        return open_ollama(name, self.root, **options)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.add("tensor", weights("b", "b.scale", metadata={"quant_type": "nvfp4"}), "group.b")
    store.add("tensor", weights("a"), "a")
    store.add("json", b'{"model_type": "x"}', "config.json")
    return store


# ---------------------------------------------------------------------- what is right


def test_the_zoo_opens_and_its_digests_hold():
    checkpoint = open_ollama("tiny-qwen35moe:nvfp4-mixed", DATA / "ollama-store", verify=True)
    assert checkpoint.kind == "ollama"
    assert checkpoint.label == "tiny-qwen35moe:nvfp4-mixed"
    assert "config.json" in checkpoint.files
    assert "architectures" in checkpoint.config.data or "model_type" in checkpoint.config.data
    assert len(checkpoint.tensors) > len(checkpoint.shards) > 1
    assert any(shard.metadata.get("quant_type") for shard in checkpoint.shards)


def test_header_keys_and_not_layer_names_are_the_tensors(store: Store):
    checkpoint = store.open()
    assert list(checkpoint.tensors) == ["a", "b", "b.scale"]
    shard = checkpoint.shards[checkpoint.tensors["b"].shard]
    assert shard.layer == "group.b"
    assert shard.label.startswith("sha256-")
    assert shard.label.endswith("(group.b)")
    assert shard.metadata == {"quant_type": "nvfp4"}


def test_texts_are_files_and_unknown_layers_are_listed(store: Store):
    store.add("template", b"{{ .Prompt }}")
    store.add("params", b"{}")
    store.add("license", b"one")
    store.add("license", b"two")
    store.add("surprise", b"?")
    checkpoint = store.open()
    assert set(checkpoint.files) == {"config.json", "template", "params", "license", "license.2"}
    assert checkpoint.files["license.2"].read_bytes() == b"two"
    assert checkpoint.ignored == (IMAGE + "surprise",)


def test_the_store_is_found_by_the_environment(store: Store, monkeypatch: pytest.MonkeyPatch):
    store.open()
    monkeypatch.setenv("OLLAMA_MODELS", str(store.root))
    assert open_ollama("library/tiny:latest").label == "tiny:latest"


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("name", "path", "shown"),
    [
        ("a", "registry.ollama.ai/library/a/latest", "a:latest"),
        ("a:b", "registry.ollama.ai/library/a/b", "a:b"),
        ("n/a:b", "registry.ollama.ai/n/a/b", "n/a:b"),
        ("h.io:5000/n/a", "h.io:5000/n/a/latest", "h.io:5000/n/a:latest"),
        ("h.io/library/a", "h.io/library/a/latest", "h.io/library/a:latest"),
        ("qwen3.6:35b-a3b", "registry.ollama.ai/library/qwen3.6/35b-a3b", "qwen3.6:35b-a3b"),
    ],
)
def test_names_have_defaults(name: str, path: str, shown: str):
    assert ModelName.parse(name).path == Path(path)
    assert str(ModelName.parse(name)) == shown


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        "a:",
        ":b",
        "..",
        "../a",
        "a/..",
        "a:..",
        "../../a:b",
        "/a",
        "a//b",
        "a/b/c/d",
        "a b",
        "a\0",
        "a\n",
        "a\\b",
        "n.s/a",
        "x" * 81,
        "a:" + "x" * 81,
        "ä",
    ],
)
def test_names_that_would_leave_the_store(store: Store, name: str):
    with Refused("bad-model-name"):
        store.open(name)


def test_model_not_found_names_what_is_there(store: Store):
    store.open()
    with Refused("model-not-found") as refused:
        store.open("tyni")
    assert "did you mean 'tiny:latest'?" in refused.text


def test_missing_store(tmp_path: Path):
    with Refused("missing-store"):
        open_ollama("tiny", tmp_path)
    with Refused("missing-store"):
        open_ollama("tiny", tmp_path / "nowhere")


# ---------------------------------------------------------------------- manifests


def test_manifest_is_not_json(store: Store):
    store.manifest = b"{"
    with Refused("malformed-json"):
        store.open()


@pytest.mark.parametrize(
    "change",
    [
        {"schemaVersion": 1},
        {"schemaVersion": "2"},
        {"mediaType": "application/vnd.oci.image.index.v1+json"},
        {"mediaType": None},
        {"layers": None},
        {"layers": {}},
        {"layers": [1]},
        {"layers": [{}]},
        {"layers": [{"mediaType": 1, "digest": "x", "size": 1}]},
        {"layers": [{"mediaType": "x", "digest": "x", "size": "1"}]},
        {"layers": [{"mediaType": "x", "digest": "x", "size": True}]},
    ],
)
def test_manifest_is_malformed(store: Store, change: dict):
    store.manifest |= change
    with Refused("bad-manifest"):
        store.open()


def test_manifest_is_a_list(store: Store):
    store.manifest = []
    with Refused("bad-manifest"):
        store.open()


@pytest.mark.parametrize(
    "value",
    [
        "",
        "sha256:",
        "sha256:../../../../etc/passwd",
        "sha256:" + "A" * 64,
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 64 + "\n",
        "sha512:" + "0" * 64,
        "sha256-" + "0" * 64,
    ],
)
def test_digest_that_is_a_path(store: Store, value: str):
    store.manifest["layers"][0]["digest"] = value
    with Refused("bad-digest"):
        store.open()


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../config.json", "/config.json", "a/../b", "a//b", "a/", "a\\b", "a\nb"],
)
def test_json_layer_whose_name_leads_elsewhere(store: Store, name: str):
    store.add("json", b"{}", name)
    with Refused("bad-layer-name"):
        store.open()


def test_json_layer_without_a_name(store: Store):
    store.add("json", b"{}")
    with Refused("bad-layer-name"):
        store.open()


def test_two_json_layers_of_one_name(store: Store):
    store.add("json", b"{}", "config.json")
    with Refused("duplicate-layer"):
        store.open()


def test_json_layers_may_stand_in_folders(store: Store):
    store.add("json", b"{}", "vision/config.json")
    assert "vision/config.json" in store.open().files


@pytest.mark.parametrize(
    ("kind", "code"),
    [("model", "gguf-model"), ("projector", "gguf-model"), ("adapter", "ollama-adapter")],
)
def test_layers_that_make_it_another_model(store: Store, kind: str, code: str):
    store.add(kind, b"GGUF")
    with Refused(code) as refused:
        store.open()
    assert "'tiny:latest'" in refused.text


def test_no_tensors(store: Store):
    store.manifest["layers"] = store.manifest["layers"][2:]
    with Refused("no-weights"):
        store.open()


# ---------------------------------------------------------------------- blobs


def _path(store: Store, layer: int) -> Path:
    return store.root / "blobs" / store.manifest["layers"][layer]["digest"].replace(":", "-")


@pytest.mark.parametrize("layer", [0, 2])
def test_blob_missing(store: Store, layer: int):
    _path(store, layer).unlink()
    with Refused("missing-blob") as refused:
        store.open()
    assert "ollama pull tiny:latest" in refused.text


def test_blob_of_another_size(store: Store):
    store.manifest["layers"][0]["size"] += 1
    with Refused("blob-size"):
        store.open()


def test_blob_of_other_bytes_is_noticed_when_asked(store: Store):
    path = _path(store, 0)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert len(store.open().tensors) == 3
    with Refused("digest-mismatch"):
        store.open(verify=True)


def test_blob_is_a_directory(store: Store):
    _path(store, 0).unlink()
    _path(store, 0).mkdir()
    with Refused("unreadable-file"):
        store.open()


def test_blob_has_a_damaged_header(store: Store):
    store.add("tensor", weights("c") + b"\0", "c")
    with Refused("trailing-bytes") as refused:
        store.open()
    assert "(c)" in refused.text


def test_one_tensor_in_two_blobs(store: Store):
    store.add("tensor", weights("a", "c"), "again")
    with Refused("duplicate-tensor") as refused:
        store.open()
    assert "(again)" in refused.text


def test_the_manifests_config_is_not_the_models(store: Store):
    store.manifest["layers"] = store.manifest["layers"][:2]
    with Refused("missing-config"):
        _ = store.open().config


def test_a_manifest_in_bytes_is_what_ollama_writes(store: Store):
    raw = json.dumps(store.manifest).encode()
    store.manifest = raw
    assert len(store.open().shards) == 2
