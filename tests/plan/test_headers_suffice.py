"""A plan reads headers and JSON: no weight byte, and no library that it does not need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import DATA, GPTOSS, QWEN, spec, zoo_store_spec

import mlxpipe
from mlxpipe import make_plan


def header_end(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def norms(path: Path) -> dict[int, bytes]:
    """Offset -> bytes of every norm, which are the one kind of weight that a plan may sample."""
    content, start = path.read_bytes(), header_end(path)
    header = json.loads(content[8:start])
    places = [
        entry["data_offsets"]
        for name, entry in header.items()
        if name.endswith("norm.weight") and len(entry["shape"]) == 1
    ]
    return {start + first: content[start + first : start + last] for first, last in places}


def blank(path: Path, fill: bytes | None) -> None:
    """Replace the data region, but for norms: by a hole, or by other bytes."""
    start, size, kept = header_end(path), path.stat().st_size, norms(path)
    with path.open("r+b") as file:
        if fill is None:
            file.truncate(start)
            file.truncate(size)
        else:
            file.seek(start)
            file.write(fill * (size - start))
        for offset, data in kept.items():
            file.seek(offset)
            file.write(data)


@pytest.mark.parametrize("fill", [None, b"\xff"], ids=["a hole", "other bytes"])
@pytest.mark.parametrize("folder", [QWEN, GPTOSS], ids=lambda folder: folder.name)
@pytest.mark.parametrize("architecture", [True, False], ids=["architecture", "names"])
def test_the_plan_of_a_directory_reads_no_weight_byte(tmp_path, folder, fill, architecture):
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    blank(copy / "model.safetensors", fill)
    source = {"path": folder.name}
    plans = [
        make_plan(spec(parent, source=source), architecture=architecture).as_json()
        for parent in (DATA, tmp_path)
    ]
    assert plans[0] == plans[1]


def test_the_plan_of_a_store_reads_no_weight_byte(tmp_path):
    store = tmp_path / "ollama-store"
    shutil.copytree(DATA / "ollama-store", store)
    for blob in (store / "blobs").iterdir():
        if int.from_bytes(blob.read_bytes()[:8], "little") < blob.stat().st_size:
            blank(blob, None)
    source = {"ollama": "tiny-qwen35moe:nvfp4-mixed", "store": "ollama-store"}
    assert make_plan(spec(tmp_path, source=source)).as_json() == (
        make_plan(zoo_store_spec()).as_json()
    )


def test_a_plan_is_json():
    plan = make_plan(QWEN).as_json()
    assert json.loads(json.dumps(plan)) == plan


SCRIPT = """
import json, sys
from mlxpipe import make_plan
plan = make_plan(sys.argv[1], architecture=sys.argv[2] == "architecture").require_sound()
print(json.dumps([len(plan.modules), sorted({name.partition(".")[0] for name in sys.modules})]))
"""


@pytest.mark.parametrize(
    ("how", "unwanted"),
    [
        ("architecture", {"transformers", "torch", "huggingface_hub", "tokenizers"}),
        ("names", {"transformers", "mlx", "mlx_lm", "numpy", "huggingface_hub"}),
    ],
)
def test_a_plan_imports_only_what_it_needs(how, unwanted):
    environment = {**os.environ, "PYTHONPATH": str(Path(mlxpipe.__file__).parents[1])}
    output = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(QWEN), how],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    count, modules = json.loads(output)
    assert count == len(make_plan(QWEN, architecture=how == "architecture").modules)
    assert unwanted.isdisjoint(modules)
    assert "mlxpipe" in modules
