"""Directories: which files are the weights, and every way an index can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoint_files import DATA, Refused, weights, write

from mlxpipe.checkpoint import open_directory

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def index(**table: object) -> dict:
    return {
        "metadata": {"total_size": 0},
        "weight_map": {k.replace("_", "."): v for k, v in table.items()},
    }


# ---------------------------------------------------------------------- what is right


@pytest.mark.parametrize(
    ("name", "dtype"), [("mlx-nvfp4-mixed-qwen35moe", "nvfp4"), ("mlx-mxfp4-q8-gptoss", "mxfp4")]
)
def test_the_zoo_opens(name: str, dtype: str):
    checkpoint = open_directory(DATA / name, label=name)
    assert checkpoint.kind == "directory"
    assert [shard.label for shard in checkpoint.shards] == ["model.safetensors"]
    assert checkpoint.ignored == ("reference.safetensors",)
    assert list(checkpoint.tensors) == sorted(checkpoint.tensors)
    assert set(checkpoint.files) == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert checkpoint.config.data["quantization"]["mode"] == dtype
    assert 0 < checkpoint.total_bytes < checkpoint.shards[0].size


def test_an_index_is_honoured(tmp_path: Path):
    write(
        tmp_path,
        {
            INDEX: index(a=ONE, b=TWO, c=ONE),
            ONE: weights("c", "a", metadata={"format": "mlx"}),
            TWO: weights("b"),
            "consolidated.safetensors": weights("tok"),
            "pytorch_model.bin": b"x",
            ".gitattributes": b"x",
            "chat_template.jinja": b"x",
        },
    )
    checkpoint = open_directory(tmp_path, "m")
    assert [(name, tensor.shard) for name, tensor in checkpoint.tensors.items()] == [
        ("a", 0),
        ("b", 1),
        ("c", 0),
    ]
    assert checkpoint.shards[0].metadata == {"format": "mlx"}
    assert checkpoint.ignored == ("consolidated.safetensors",)
    assert set(checkpoint.files) == {INDEX, "chat_template.jinja"}


def test_a_wrong_total_size_does_not_matter(tmp_path: Path):
    write(tmp_path, {INDEX: index(a="model.safetensors"), "model.safetensors": weights("a")})
    assert open_directory(tmp_path).total_bytes == 1


def test_an_index_may_name_shards_in_its_own_way(tmp_path: Path):
    write(tmp_path, {INDEX: index(a="part.safetensors"), "part.safetensors": weights("a")})
    assert list(open_directory(tmp_path).tensors) == ["a"]


@pytest.mark.parametrize(
    "names",
    [
        ["model.safetensors"],
        [ONE, TWO],
        ["model_part_a.safetensors", "model_part_b.safetensors"],
        ["weights.safetensors"],
    ],
)
def test_without_an_index(tmp_path: Path, names: list[str]):
    write(tmp_path, {name: weights(name) for name in names})
    assert [shard.label for shard in open_directory(tmp_path).shards] == names


def test_numbered_shards_are_in_the_order_of_their_numbers(tmp_path: Path):
    names = [f"model-{i}-of-10.safetensors" for i in range(1, 11)]
    write(tmp_path, {name: weights(name) for name in names})
    assert [shard.label for shard in open_directory(tmp_path).shards] == names


def test_links_are_followed(tmp_path: Path):
    write(tmp_path, {"blobs/1": weights("a"), "blobs/2": {"model_type": "x"}})
    (tmp_path / "m").mkdir()
    (tmp_path / "m/model.safetensors").symlink_to("../blobs/1")
    (tmp_path / "m/config.json").symlink_to("../blobs/2")
    assert open_directory(tmp_path / "m").config.data == {"model_type": "x"}


# ---------------------------------------------------------------------- the path


def test_missing_path_names_the_nearest_sibling(tmp_path: Path):
    (tmp_path / "qwen3-nvfp4").mkdir()
    with Refused("missing-path") as refused:
        open_directory(tmp_path / "qwen3-nvpf4", "../models/qwen3-nvpf4")
    assert "did you mean 'qwen3-nvfp4'?" in refused.text
    assert str(tmp_path) not in refused.text


def test_missing_parent(tmp_path: Path):
    with Refused("missing-path") as refused:
        open_directory(tmp_path / "a" / "b", "a/b")
    assert "'a'" in refused.text


def test_a_safetensors_file_as_the_path(tmp_path: Path):
    write(tmp_path, {"model.safetensors": weights("a")})
    with Refused("not-a-directory") as refused:
        open_directory(tmp_path / "model.safetensors", "models/tiny/model.safetensors")
    assert "models/tiny" in refused.text.splitlines()[-1]


def test_a_nul_in_the_path():
    with Refused("unreadable-file"):
        open_directory("a\0b")


# ---------------------------------------------------------------------- no weights, or too many


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, "no files"),
        ({"config.json": {}}, "config.json"),
        ({"pytorch_model.bin": b"x"}, "safe_serialization=True"),
        ({"model-q4.gguf": b"x"}, "safetensors version"),
        ({"adapters.safetensors": weights("a")}, "fuse it"),
    ],
)
def test_no_weights_says_what_is_there_instead(tmp_path: Path, files: dict, found: str):
    write(tmp_path, files)
    with Refused("no-weights") as refused:
        open_directory(tmp_path)
    assert found in refused.text


def test_several_files_and_no_model(tmp_path: Path):
    write(tmp_path, {"a.safetensors": weights("a"), "b.safetensors": weights("b")})
    with Refused("ambiguous-weights"):
        open_directory(tmp_path)


def test_one_file_beside_numbered_shards(tmp_path: Path):
    write(tmp_path, {"model.safetensors": weights("a"), ONE: weights("b"), TWO: weights("c")})
    with Refused("ambiguous-weights"):
        open_directory(tmp_path)


def test_two_numbered_sets(tmp_path: Path):
    write(
        tmp_path, {"model-1-of-1.safetensors": weights("a"), ONE: weights("b"), TWO: weights("c")}
    )
    with Refused("ambiguous-weights"):
        open_directory(tmp_path)


def test_numbered_shard_missing_without_an_index(tmp_path: Path):
    write(tmp_path, {TWO: weights("a")})
    with Refused("missing-shard") as refused:
        open_directory(tmp_path)
    assert "missing: 1" in refused.text


@pytest.mark.parametrize("total", ["0", "2", "999999999"])
def test_numbered_shards_that_count_wrongly(tmp_path: Path, total: str):
    write(tmp_path, {f"model-3-of-{total}.safetensors": weights("a")})
    with Refused("missing-shard"):
        open_directory(tmp_path)


def test_stray_shard_beside_numbered_shards(tmp_path: Path):
    write(tmp_path, {ONE: weights("a"), TWO: weights("b"), "model_old.safetensors": weights("c")})
    with Refused("stray-shard"):
        open_directory(tmp_path)


def test_one_tensor_in_two_files(tmp_path: Path):
    write(tmp_path, {"model.safetensors": weights("a", "b"), "model_old.safetensors": weights("a")})
    with Refused("duplicate-tensor") as refused:
        open_directory(tmp_path, "m")
    assert "'a' in m/model.safetensors and in m/model_old.safetensors" in refused.text


# ---------------------------------------------------------------------- the index


@pytest.mark.parametrize(
    "content", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": 1}}]
)
def test_index_without_a_weight_map(tmp_path: Path, content: object):
    write(tmp_path, {INDEX: content, "model.safetensors": weights("a")})
    with Refused("bad-index"):
        open_directory(tmp_path)


def test_index_is_malformed(tmp_path: Path):
    write(tmp_path, {INDEX: b'{"weight_map": {', "model.safetensors": weights("a")})
    with Refused("malformed-json"):
        open_directory(tmp_path)


def test_index_lists_a_tensor_twice(tmp_path: Path):
    raw = b'{"weight_map": {"a": "model.safetensors", "a": "x.safetensors"}}'
    write(tmp_path, {INDEX: raw, "model.safetensors": weights("a")})
    with Refused("duplicate-key"):
        open_directory(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/x.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "C:model.safetensors",
        "a\0.safetensors",
        "",
        "..",
        "model.bin",
        "x" * 300 + ".safetensors",
    ],
)
def test_index_leads_out_of_the_directory(tmp_path: Path, name: str):
    write(tmp_path, {"x.safetensors": weights("a"), "m/model.safetensors": weights("a")})
    write(tmp_path, {"m/" + INDEX: index(a=name)})
    with Refused("bad-shard-name"):
        open_directory(tmp_path / "m")


def test_shard_missing(tmp_path: Path):
    write(tmp_path, {INDEX: index(a=ONE, b=TWO), ONE: weights("a")})
    with Refused("missing-shard") as refused:
        open_directory(tmp_path)
    assert TWO in refused.text


def test_shard_is_a_broken_link(tmp_path: Path):
    write(tmp_path, {INDEX: index(a="model.safetensors")})
    (tmp_path / "model.safetensors").symlink_to("nowhere")
    with Refused("missing-shard"):
        open_directory(tmp_path)


def test_stale_index_of_replaced_weights(tmp_path: Path):
    write(tmp_path, {INDEX: index(a=ONE, b=TWO), "model.safetensors": weights("a", "b")})
    with Refused("missing-shard") as refused:
        open_directory(tmp_path)
    assert f"remove {INDEX}" in refused.text


def test_lying_index(tmp_path: Path):
    write(tmp_path, {INDEX: index(a=ONE, b=TWO, c=TWO), ONE: weights("a"), TWO: weights("b")})
    with Refused("lying-index") as refused:
        open_directory(tmp_path)
    assert f"'c' to {TWO}" in refused.text


def test_tensor_that_the_index_does_not_list(tmp_path: Path):
    write(tmp_path, {INDEX: index(a=ONE, b=TWO), ONE: weights("a"), TWO: weights("b", "c")})
    with Refused("unlisted-tensor"):
        open_directory(tmp_path)


def test_tensor_in_another_shard_than_the_index_says(tmp_path: Path):
    write(tmp_path, {INDEX: index(a=ONE, b=TWO), ONE: weights("b"), TWO: weights("a")})
    with Refused("misplaced-tensor"):
        open_directory(tmp_path)


def test_indexed_tensor_in_two_shards(tmp_path: Path):
    write(tmp_path, {INDEX: index(a=ONE, b=TWO), ONE: weights("a", "b"), TWO: weights("b")})
    with Refused("duplicate-tensor"):
        open_directory(tmp_path)


@pytest.mark.parametrize(
    "stray", ["model_old.safetensors", "model.safetensors", "model-mtp.safetensors"]
)
def test_stray_shard_beside_an_index(tmp_path: Path, stray: str):
    write(tmp_path, {INDEX: index(a=ONE, b=TWO), ONE: weights("a"), TWO: weights("b")})
    write(tmp_path, {stray: weights("a")})
    with Refused("stray-shard") as refused:
        open_directory(tmp_path)
    assert stray in refused.text


def test_a_damaged_shard_is_named_with_its_directory(tmp_path: Path):
    write(tmp_path, {"model.safetensors": weights("a") + b"\0"})
    with Refused("trailing-bytes") as refused:
        open_directory(tmp_path, "models/tiny")
    assert "models/tiny/model.safetensors" in refused.text
