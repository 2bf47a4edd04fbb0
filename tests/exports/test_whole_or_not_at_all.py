"""Whatever goes wrong, a target is complete or absent, and nothing else is touched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import STORE, llama_config, quantised_llama, write_checkpoint
from export_tools import ENTRY, QUICKSTART, QWEN, contents

import mlxpipe
from mlxpipe.errors import ExecutionError, UsageError
from mlxpipe.exports import draft, files

ROOT = Path(mlxpipe.__file__).parents[1]

WAYS = {"mlx": {}, "ollama": {"format": "ollama", "name": ENTRY}}
EITHER = pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "in"
    return write_checkpoint(folder, quantised_llama(lambda path: None), llama_config())


def everything(folder):
    """Every name below a folder, hidden ones and directories included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- targets that are refused ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "directory", "empty directory", "dangling link"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_export_is_never_replaced(tmp_path, source, kind, overwrite):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    elif kind == "dangling link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
    if kind == "directory":
        (target / "model.safetensors").write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(UsageError) as caught:
        mlxpipe.export(source, target, overwrite=overwrite)
    assert caught.value.code == "target-exists"
    assert everything(tmp_path) == before


def test_an_earlier_export_is_replaced_if_that_is_asked_for(tmp_path, source):
    mlxpipe.export(QUICKSTART, tmp_path / "out", max_shard_bytes=200_000)
    with pytest.raises(UsageError, match="exists already"):
        mlxpipe.export(source, tmp_path / "out")
    mlxpipe.export(source, tmp_path / "out", overwrite=True)
    mlxpipe.export(source, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "in", "out"]


@pytest.mark.parametrize("change", ["my file", "my directory", "another index", "link"])
def test_an_export_that_is_no_longer_ours_alone_stays(tmp_path, source, change):
    out = tmp_path / "out"
    mlxpipe.export(source, out)
    if change == "my file":
        (out / "notes.txt").write_text("mine")
    elif change == "my directory":
        (out / "eval").mkdir()
    elif change == "another index":
        index = out / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": {}}))
    else:
        out.rename(tmp_path / "elsewhere")
        out.symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path)
    with pytest.raises(UsageError) as caught:
        mlxpipe.export(source, out, overwrite=True)
    assert caught.value.code == "target-exists"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("target", ["in/out", "in", "in/../in/deep/out", "link/out"])
def test_nothing_is_written_into_the_source(tmp_path, target):
    source = tmp_path / "in"
    mlxpipe.export(QUICKSTART, source)  # an export of ours, which overwrite could replace
    (tmp_path / "link").symlink_to(source)
    before = contents(source)
    with pytest.raises(UsageError) as caught:
        mlxpipe.export(source, tmp_path / target, overwrite=True)
    assert caught.value.code == "target-in-source"
    assert contents(source) == before


@EITHER
def test_inputs_are_the_same_afterwards(tmp_path, options):
    source = shutil.copytree(QUICKSTART, tmp_path / "in")
    for path in source.iterdir():
        path.chmod(0o444)
    mlxpipe.export(source, tmp_path / "out", **options)
    assert contents(source) == contents(QUICKSTART)


# --- what goes wrong on the way --------------------------------------------------------------


@EITHER
def test_too_little_room_is_known_before_anything_is_written(
    tmp_path, source, monkeypatch, options
):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(draft.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ExecutionError) as caught:
        mlxpipe.export(source, tmp_path / "far/out", **options)
    error = caught.value.diagnostics[0]
    assert error.code == "no-space"
    assert error.found == "100,000 bytes available"
    needed = int(error.expected.removesuffix(" bytes").replace(",", ""))
    assert needed >= (source / "model.safetensors").stat().st_size - 10_000
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


LIMITED = """
import resource, sys
import mlxpipe
from mlxpipe.errors import ExecutionError
import mlxpipe.exports.export, mlx_lm.models.llama
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    mlxpipe.export(sys.argv[1], sys.argv[2], **eval(sys.argv[3]))
except ExecutionError as error:
    print(error)
    sys.exit(error.code)
"""


@EITHER
def test_a_full_disk_leaves_nothing(tmp_path, source, options):
    """A limit on the size of files is what a process can do to itself."""
    command = [sys.executable, "-c", LIMITED, source, tmp_path / "a/b/out", repr(options)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "cannot-write" in result.stderr, result
    assert "File too large" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("a bad read"), MemoryError])
@pytest.mark.parametrize("calls", [0, 5])
@EITHER
def test_an_interruption_half_way_leaves_nothing(
    tmp_path, source, monkeypatch, options, error, calls
):
    count = iter(range(100))

    def progress(done, total):
        assert done <= total
        if next(count) == calls:
            partial = next(tmp_path.glob("deep/.*.partial"))
            assert list(partial.rglob("*"))
            raise error

    expected = ExecutionError if isinstance(error, RuntimeError) else error
    with pytest.raises(expected):
        mlxpipe.export(source, tmp_path / "deep/out", progress=progress, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_interrupted_replacement_leaves_the_earlier_export(tmp_path, source):
    mlxpipe.export(QUICKSTART, tmp_path / "out")
    before = contents(tmp_path / "out")

    def progress(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mlxpipe.export(source, tmp_path / "out", overwrite=True, progress=progress)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_failure_at_the_last_step_of_a_replacement_brings_the_earlier_export_back(
    tmp_path, source, monkeypatch
):
    mlxpipe.export(QUICKSTART, tmp_path / "out")
    before = contents(tmp_path / "out")
    rename = Path.rename

    def failing(self, target):
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ExecutionError, match="cannot be written"):
        mlxpipe.export(source, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("step", ["fill_all", "judge"])
def test_an_interrupted_entry_leaves_its_store_as_it_was(tmp_path, monkeypatch, step):
    store = shutil.copytree(STORE, tmp_path / "store")
    before = everything(store)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"mlxpipe.exports.store.{step}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mlxpipe.export(QWEN, store, **WAYS["ollama"])
    assert everything(store) == before


def test_an_entry_whose_manifest_cannot_be_written_takes_its_blobs_away(tmp_path, monkeypatch):
    store = shutil.copytree(STORE, tmp_path / "store")
    before = contents(store)
    replace = Path.replace

    def failing(self, target):
        if "manifests" in self.parts:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(ExecutionError, match="No space left"):
        mlxpipe.export(QWEN, store, **WAYS["ollama"])
    assert contents(store) == before


@EITHER
def test_a_place_that_cannot_be_written(tmp_path, source, options):
    (tmp_path / "file").touch()
    with pytest.raises(ExecutionError) as caught:
        mlxpipe.export(source, tmp_path / "file/out", **options)
    assert caught.value.code == "cannot-write"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in"]


def test_the_memory_limit_of_mlx_s_cache_is_given_back(tmp_path, source):
    import mlx.core as mx

    before = mx.set_cache_limit(12_345_678)
    try:
        mlxpipe.export(source, tmp_path / "out")
        assert mx.set_cache_limit(before) == 12_345_678
    finally:
        mx.set_cache_limit(before)


def test_a_source_that_is_cut_while_it_is_read(tmp_path, source, monkeypatch):
    """The headers were sound, and then the file was not."""
    original = files.fill

    def cut(*arguments):
        weights = source / "model.safetensors"
        os.truncate(weights, weights.stat().st_size // 2)
        original(*arguments)

    monkeypatch.setattr(files, "fill", cut)
    with pytest.raises(ExecutionError):
        mlxpipe.export(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
