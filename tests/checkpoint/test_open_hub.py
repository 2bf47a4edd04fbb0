"""The hub, without a network: a cache made by hand, and every answer the hub library can give."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from checkpoint_files import Refused, weights, write
from huggingface_hub import constants, errors

from mlxpipe.checkpoint import hub, open_hub
from mlxpipe.checkpoint.hub import _hub_fault

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A hub cache that holds org/tiny, its main branch at COMMIT."""
    repo = tmp_path / "models--org--tiny"
    write(
        repo,
        {"refs/main": COMMIT.encode(), "blobs/1": weights("a"), "blobs/2": {"model_type": "x"}},
    )
    snapshot = repo / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/1")
    (snapshot / "config.json").symlink_to("../../blobs/2")
    return tmp_path


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_what_is_cached_opens_without_a_network(cache: Path, revision: str | None):
    checkpoint = open_hub("org/tiny", revision, cache_dir=cache)
    assert checkpoint.kind == "hub"
    assert checkpoint.revision == COMMIT
    assert checkpoint.label == "org/tiny"
    assert list(checkpoint.tensors) == ["a"]
    assert checkpoint.config.data == {"model_type": "x"}


def test_a_cached_commit_asks_nobody(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "_reach", None)
    assert open_hub("org/tiny", COMMIT, cache_dir=cache).revision == COMMIT


def test_not_cached_and_no_network_says_what_to_run(tmp_path: Path):
    with Refused("hub-offline") as refused:
        open_hub("org/tiny", "v1.0", cache_dir=tmp_path)
    assert "hf download org/tiny --revision v1.0" in refused.text
    assert "HF_HUB_OFFLINE" in refused.text


def test_another_revision_than_the_cached_one(cache: Path):
    with Refused("hub-offline"):
        open_hub("org/tiny", "f" * 40, cache_dir=cache)


def test_a_snapshot_without_its_weights_counts_as_not_cached(cache: Path):
    (cache / "models--org--tiny" / "snapshots" / COMMIT / "model.safetensors").unlink()
    with Refused("hub-offline"):
        open_hub("org/tiny", COMMIT, cache_dir=cache)


def test_a_damaged_snapshot_is_an_error_of_its_own(cache: Path):
    (cache / "models--org--tiny" / "blobs" / "1").write_bytes(b"short")
    with Refused("header-too-small"):
        open_hub("org/tiny", COMMIT, cache_dir=cache)


# ---------------------------------------------------------------------- downloading


class FakeHub:
    """`snapshot_download` from a directory; notes what it was asked for."""

    def __init__(self, files: dict, root: Path) -> None:
        self.files, self.root, self.asked = files, root / COMMIT, []

    def __call__(self, repo: str, **options: object) -> str:
        from huggingface_hub.utils import filter_repo_objects

        if options.get("local_files_only"):
            raise errors.LocalEntryNotFoundError("not cached")
        self.asked.append(options)
        wanted = filter_repo_objects(
            self.files,
            allow_patterns=options["allow_patterns"],
            ignore_patterns=options["ignore_patterns"],
        )
        self.root.mkdir(exist_ok=True)
        write(self.root, {name: self.files[name] for name in wanted})
        return str(self.root)


def _download(files: dict, root: Path, monkeypatch: pytest.MonkeyPatch, **options: object):
    fake = FakeHub(files, root)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    monkeypatch.setattr(hub, "_reach", lambda repo, revision: None)
    return open_hub("org/tiny", **options), fake


def test_only_the_shards_of_the_index_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {
        "config.json": {},
        "modeling_tiny.py": b"import os",
        "tokenizer.model": b"x",
        "onnx/model.safetensors": weights("a"),
        "consolidated.safetensors": weights("a"),
        INDEX: {"weight_map": {"a": ONE, "b": TWO}},
        ONE: weights("a"),
        TWO: weights("b"),
    }
    checkpoint, fake = _download(files, tmp_path, monkeypatch)
    assert sorted(path.name for path in fake.root.iterdir()) == sorted(
        ["config.json", "tokenizer.model", INDEX, ONE, TWO]
    )
    assert checkpoint.revision == COMMIT
    assert fake.asked[0]["revision"] is None
    assert fake.asked[-1]["revision"] == COMMIT


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_without_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    files = {"config.json": {}, name: weights("a"), "sub/x.safetensors": weights("b")}
    checkpoint, fake = _download(files, tmp_path, monkeypatch, revision="main", progress=False)
    assert list(checkpoint.tensors) == ["a"]
    assert not (fake.root / "sub").exists()
    assert fake.asked[0]["tqdm_class"](total=1).disable


def test_an_index_that_leads_out_of_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    files = {INDEX: {"weight_map": {"a": "../x.safetensors"}}}
    with Refused("bad-shard-name"):
        _download(files, tmp_path, monkeypatch)


# ---------------------------------------------------------------------- names and answers


@pytest.mark.parametrize(
    "repo",
    [
        "",
        "a/b/c",
        "../x",
        "org/",
        "/name",
        "org/na me",
        "org/a--b",
        "a..b/c",
        "org/x.git",
        "x" * 97,
        "-a/b",
        "a\n",
    ],
)
def test_bad_repository_names(repo: str):
    with Refused("bad-repo-id"):
        open_hub(repo)


@pytest.mark.parametrize("revision", ["", "../main", "a b", "a//b", "-x", "a\0", "x" * 300])
def test_bad_revisions(revision: str):
    with Refused("bad-revision"):
        open_hub("org/tiny", revision)


TransportError = type("TransportError", (Exception,), {})


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.GatedRepoError, "hub-gated"),
        (errors.RepositoryNotFoundError, "hub-not-found"),
        (errors.RevisionNotFoundError, "hub-revision-not-found"),
        (errors.LocalEntryNotFoundError, "hub-offline"),
        (errors.OfflineModeIsEnabled, "hub-offline"),
        (errors.HFValidationError, "bad-repo-id"),
        (errors.HfHubHTTPError, "hub-failed"),
        (type("ConnectTimeout", (TransportError,), {}), "hub-offline"),
        (OSError, "hub-failed"),
    ],
)
def test_every_answer_has_its_own_error(kind: type[Exception], code: str):
    fault = _hub_fault(kind.__new__(kind), "org/tiny", "v1")
    assert fault.code == code
    assert fault.diagnostics[0].help
