"""What a lock binds, and what it leaves open."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from builders import DATA, QWEN, STORE_MODEL

import mlxpipe
from mlxpipe import LockError, UsageError
from mlxpipe.locking import lock_path, read_lock

SPEC = {
    "version": 1,
    "source": {"path": "model"},
    "quantization": {"overrides": [{"match": "*.mlp.gate", "bits": 8, "group_size": 64}]},
    "tasks": [
        {"id": "raw", "type": "logits", "tokens": [1, 2, 3]},
        {"id": "ppl", "type": "perplexity", "data": "text.txt", "context": 16},
        {"id": "gen", "type": "generate", "prompt_file": "prompts.txt", "max_tokens": 4},
    ],
}

Codes = list[tuple[str, str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A spec, its model and its data, locked."""
    folder = tmp_path / "project"
    shutil.copytree(QWEN, folder / "model")
    (folder / "model/reference.safetensors").unlink()
    (folder / "text.txt").write_text("It is a truth universally acknowledged.\n" * 60)
    (folder / "prompts.txt").write_text("one\ntwo\n")
    write(folder, SPEC)
    mlxpipe.lock(folder / "spec.yaml")
    return folder


def write(folder: Path, spec: object) -> Path:
    path = folder / "spec.yaml"
    path.write_text(json.dumps(spec, indent=1), encoding="utf-8")
    return path


def flip(path: Path, offset: int) -> None:
    """Change one bit, as a bad disk would."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def differences(folder: Path, **options: bool) -> Codes:
    found = mlxpipe.check_lock(folder / "spec.yaml", **options)
    return [(each.code, each.message) for each in found]


# --- what does not bind ----------------------------------------------------------------------


def test_nothing_changed(folder: Path) -> None:
    assert differences(folder) == []


def test_locking_twice_writes_the_same_bytes(folder: Path) -> None:
    before = (folder / "spec.lock.yaml").read_bytes()

    mlxpipe.lock(folder / "spec.yaml", cache=False)

    assert (folder / "spec.lock.yaml").read_bytes() == before


def test_a_lock_has_no_absolute_path_and_no_date(folder: Path) -> None:
    text = (folder / "spec.lock.yaml").read_text()

    assert str(folder) not in text
    assert str(folder.parent) not in text
    mlxpipe.lock(folder / "spec.yaml")
    assert (folder / "spec.lock.yaml").read_text() == text


def test_a_moved_directory_is_as_locked(folder: Path) -> None:
    moved = folder.rename(folder.parent / "elsewhere")

    assert differences(moved) == []


def test_files_that_moved_within_the_project_are_as_locked(folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "text.txt").rename(folder / "data/austen.txt")
    (folder / "model").rename(folder / "data/weights")
    tasks = [SPEC["tasks"][0], {**SPEC["tasks"][1], "data": "data/austen.txt"}, SPEC["tasks"][2]]
    write(folder, {**SPEC, "source": {"path": "data/weights"}, "tasks": tasks})

    assert differences(folder) == []


def _reordered(spec: dict) -> dict:
    tasks = [dict(reversed(task.items())) for task in reversed(spec["tasks"])]
    return dict(reversed({**spec, "tasks": tasks}.items()))


def _with_regex(spec: dict) -> dict:
    rule = {"match": r"re:.*\.mlp\.gate", "mode": "affine", "bits": 8, "group_size": 64}
    return {**spec, "quantization": {"overrides": [rule]}}


def _decided_by_config(spec: dict) -> dict:
    return {key: value for key, value in spec.items() if key != "quantization"}


def _defaults_written_out(spec: dict) -> dict:
    rest = {"run": {"seed": 0}, "model": {"dtype": "auto"}, "outputs": {"dir": "results"}}
    return {**spec, **rest, "name": "another-name"}


@pytest.mark.parametrize(
    "refactored",
    [_reordered, _with_regex, _decided_by_config, _defaults_written_out],
    ids=lambda each: each.__name__,
)
def test_a_refactored_spec_that_means_the_same_locks_the_same(
    folder: Path, refactored: Callable[[dict], dict]
) -> None:
    before = read_lock(folder / "spec.lock.yaml")[0].sha256
    write(folder, refactored(SPEC))

    assert differences(folder) == []
    assert mlxpipe.lock(folder / "spec.yaml").sha256 == before


def test_a_text_for_people_does_not_bind(folder: Path) -> None:
    (folder / "model/README.md").write_text("hello")
    (folder / "model/LICENSE.txt").write_text("do as you like")

    assert differences(folder) == []


# --- what binds ------------------------------------------------------------------------------


def test_a_flipped_bit_in_the_weights_is_named_with_its_tensor(folder: Path) -> None:
    shard = folder / "model/model.safetensors"
    size = shard.stat().st_size
    flip(shard, size - 5)

    (found,) = mlxpipe.check_lock(folder / "spec.yaml")

    tensors = mlxpipe.open_source(mlxpipe.open_spec(folder / "spec.yaml")).tensors.values()
    last = max(tensors, key=lambda each: each.stop).name
    assert (found.code, found.message) == ("file-changed", "model.safetensors is not as locked")
    assert f"to {size - 1:,}" in found.notes[0]
    assert last in found.notes[0]
    assert found.origin is not None
    assert "model.safetensors" in found.origin.text


def test_a_flipped_bit_in_the_header_is_named_before_what_it_breaks(folder: Path) -> None:
    flip(folder / "model/model.safetensors", 8)  # the brace that opens the header

    codes = [code for code, _ in differences(folder)]

    assert codes == ["file-changed", "header-not-json"]


def test_bits_flipped_in_several_places_are_each_named(folder: Path) -> None:
    shard = folder / "model/model.safetensors"
    size = shard.stat().st_size
    for offset in (size - 5, size // 2):
        flip(shard, offset)

    (found,) = mlxpipe.check_lock(folder / "spec.yaml")

    assert len(found.notes) == 2


def test_a_change_that_keeps_the_times_of_a_file_is_seen(folder: Path) -> None:
    shard = folder / "model/model.safetensors"
    times = shard.stat()
    flip(shard, times.st_size - 5)
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))

    assert differences(folder) == [("file-changed", "model.safetensors is not as locked")]


def test_a_changed_tokenizer_is_named_with_its_lines(folder: Path) -> None:
    path = folder / "model/tokenizer.json"
    content = path.read_text()
    place = content.index('"vocab"') + 1
    path.write_text(content[:place] + "w" + content[place + 1 :])

    (found,) = mlxpipe.check_lock(folder / "spec.yaml")

    assert found.code == "tokenizer-changed"
    line = content.count("\n", 0, place) + 1
    first, last = (int(word) for word in found.notes[0].split() if word.isdigit())
    assert first <= line <= last


def test_a_changed_chat_template_is_told_apart_from_its_file(folder: Path) -> None:
    path = folder / "model/tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))

    codes = [code for code, _ in differences(folder)]

    assert codes == ["tokenizer-changed", "chat-template-changed"]


def test_changed_data_are_named_with_the_task(folder: Path) -> None:
    flip(folder / "text.txt", 1500)

    (found,) = mlxpipe.check_lock(folder / "spec.yaml")

    assert found.code == "data-changed"
    assert found.message == "text.txt (ppl.data) is not as locked"
    assert "bytes 1,024 to 2,047" in found.notes[0]


def test_a_suffix_that_reads_the_same_bytes_otherwise_is_a_change(folder: Path) -> None:
    (folder / "prompts.txt").rename(folder / "prompts.jsonl")
    tasks = [*SPEC["tasks"][:2], {**SPEC["tasks"][2], "prompt_file": "prompts.jsonl"}]
    write(folder, {**SPEC, "tasks": tasks})

    message = "prompts.jsonl (gen.prompt_file) is not as locked"
    assert differences(folder) == [("data-changed", message)]


def test_missing_and_added_files_are_named(folder: Path) -> None:
    (folder / "text.txt").unlink()
    (folder / "model/added_tokens.json").write_text("{}")

    assert differences(folder) == [
        ("tokenizer-added", "the tokenizer's added_tokens.json is not in the lock"),
        ("data-missing", "text.txt (ppl.data) is not there, and the lock has it"),
    ]


def test_a_changed_setting_is_named_by_its_key(folder: Path) -> None:
    tasks = [*SPEC["tasks"][:2], {**SPEC["tasks"][2], "temperature": 0.7}]
    write(folder, {**SPEC, "tasks": tasks, "run": {"seed": 1}})

    found = mlxpipe.check_lock(folder / "spec.yaml")

    assert [(each.message, each.expected, each.found) for each in found] == [
        ("the spec's run.seed is not as locked", "0", "1"),
        ("the spec's tasks.gen.temperature is not as locked", "0.0", "0.7"),
    ]


def test_a_task_that_went_and_one_that_came_are_named(folder: Path) -> None:
    write(folder, {**SPEC, "tasks": [*SPEC["tasks"][1:], {**SPEC["tasks"][0], "id": "new"}]})

    told = {message for _, message in differences(folder)}

    assert "the spec's tasks.raw.tokens is not as locked" in told
    assert "the spec's tasks.new.tokens is not as locked" in told


def test_a_changed_table_is_named_by_module(folder: Path) -> None:
    # Two norms change places: every file is the same, and the model is another.
    one, other = (f"language_model.model.layers.{n}.input_layernorm" for n in (0, 1))
    rules = [
        {"match": f"^{one}", "replace": "x"},
        {"match": f"^{other}", "replace": one},
        {"match": "^x", "replace": other},
    ]
    write(folder, {**SPEC, "naming": {"rules": rules}})

    found = mlxpipe.check_lock(folder / "spec.yaml")

    assert {(each.code, each.module) for each in found} == {
        ("table-changed", one),
        ("table-changed", other),
    }


def test_recipes_that_make_the_same_lock_the_same(folder: Path) -> None:
    gates = {"match": "*.mlp.gate", "keep": True}
    rule = {"bits": 8, "group_size": 64, "mode": "affine"}
    write(folder, {**SPEC, "quantize": [{"match": "*.shared_expert.*", **rule}, gates]})
    mlxpipe.lock(folder / "spec.yaml")
    write(folder, {**SPEC, "quantize": [{"match": r"re:.*\.shared_expert\..*", **rule}]})

    assert differences(folder) == []


def test_another_recipe_is_a_difference_of_the_modules(folder: Path) -> None:
    write(folder, {**SPEC, "quantize": [{"match": "lm_head", "bits": 4, "group_size": 32}]})

    found = mlxpipe.check_lock(folder / "spec.yaml")

    assert {(each.code, each.module.rpartition(".")[2]) for each in found} == {
        ("table-changed", "lm_head")
    }
    assert "affine 4-bit g32" in found[0].found


def test_another_version_is_a_difference_unless_it_is_allowed(folder: Path) -> None:
    path = folder / "spec.lock.yaml"
    lines = path.read_text().splitlines(keepends=True)
    edited = ["  mlx: 0.1.0\n" if line.startswith("  mlx: ") else line for line in lines]
    path.write_text("".join(edited))

    assert differences(folder) == [("version-changed", "mlx is not the locked version")]
    assert differences(folder, allow_versions=True) == []


def test_what_keeps_a_plan_from_being_made_comes_after_what_changed(folder: Path) -> None:
    path = folder / "model/config.json"
    config = json.loads(path.read_text())
    config["model_type"] = "no-such-architecture"
    path.write_text(json.dumps(config))

    codes = [code for code, _ in differences(folder)]

    assert codes[0] == "file-changed"
    assert len(codes) == 2


def test_a_blob_of_a_store_is_named_by_its_layer(tmp_path: Path) -> None:
    shutil.copytree(DATA / "ollama-store", tmp_path / "store")
    write(tmp_path, {"version": 1, "source": {"ollama": STORE_MODEL, "store": "store"}})
    mlxpipe.lock(tmp_path / "spec.yaml")
    checkpoint = mlxpipe.open_source(mlxpipe.open_spec(tmp_path / "spec.yaml"))
    shard = checkpoint.shards[0]
    flip(shard.path, shard.size - 1)

    assert differences(tmp_path) == [("file-changed", f"{shard.layer} is not as locked")]


def test_a_model_that_is_compared_with_is_locked_too(folder: Path) -> None:
    shutil.copytree(folder / "model", folder / "other")
    drift = {"id": "drift", "type": "compare", "reference": {"path": "other"}, "data": "text.txt"}
    write(folder, {**SPEC, "tasks": [drift]})
    mlxpipe.lock(folder / "spec.yaml")
    (folder / "other").rename(folder / "moved")
    write(folder, {**SPEC, "tasks": [{**drift, "reference": {"path": "moved"}}]})
    assert differences(folder) == []
    flip(folder / "moved/model.safetensors", -1)

    (found,) = mlxpipe.check_lock(folder / "spec.yaml")

    assert "drift.reference/model.safetensors" in found.message


def test_a_spec_that_is_compared_with_is_locked_by_what_it_means(folder: Path) -> None:
    other = folder / "other.yaml"
    other.write_text(json.dumps({"version": 1, "source": {"path": "model"}}))
    drift = {"type": "compare", "reference": {"spec": "other.yaml"}, "data": "text.txt"}
    write(folder, {**SPEC, "tasks": [drift]})
    mlxpipe.lock(folder / "spec.yaml")
    rule = {"match": "lm_head", "bits": 4, "group_size": 32}
    other.write_text(json.dumps({"version": 1, "name": "x", "source": {"path": "model"}}))
    assert differences(folder) == []
    other.write_text(json.dumps({"version": 1, "source": {"path": "model"}, "quantize": [rule]}))

    assert differences(folder) == [
        ("data-changed", "table (compare.reference/table) is not as locked")
    ]


# --- locks themselves ------------------------------------------------------------------------


def test_without_a_lock(tmp_path: Path) -> None:
    write(tmp_path, {"version": 1, "source": {"path": str(QWEN)}})

    with pytest.raises(LockError, match="there is no lock") as caught:
        mlxpipe.check_lock(tmp_path / "spec.yaml")
    assert caught.value.exit_code == 3


def test_missing_data_cannot_be_locked(folder: Path) -> None:
    (folder / "text.txt").unlink()
    before = (folder / "spec.lock.yaml").read_bytes()

    with pytest.raises(UsageError, match=r"text\.txt does not exist"):
        mlxpipe.lock(folder / "spec.yaml")
    assert (folder / "spec.lock.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "empty-document"),
        ("lock: 2\n", "lock-format"),
        ("version: 1\nsource: {path: x}\n", "lock-format"),
        ("lock: 1\n", "bad-lock"),
        ("lock: 1\nlock: 1\n", "duplicate-key"),
    ],
)
def test_what_is_no_lock(folder: Path, text: str, code: str) -> None:
    lock_path(mlxpipe.open_spec(folder / "spec.yaml")).write_text(text)

    with pytest.raises(LockError) as caught:
        mlxpipe.check_lock(folder / "spec.yaml")
    assert caught.value.code == code
    assert "spec.lock.yaml" in str(caught.value)


def test_an_edited_digest_is_refused_at_its_line(folder: Path) -> None:
    path = folder / "spec.lock.yaml"
    path.write_text(path.read_text().replace("table:\n  sha256: ", "table:\n  sha256: x"))

    with pytest.raises(LockError, match=r"table\.sha256") as caught:
        mlxpipe.check_lock(folder / "spec.yaml")
    origin = caught.value.diagnostics[0].origin
    assert origin is not None
    assert "sha256: x" in origin.text


def test_a_lock_that_cannot_be_written(folder: Path) -> None:
    with pytest.raises(LockError, match="cannot be written"):
        mlxpipe.lock(folder / "spec.yaml", path=folder / "no-such-folder/spec.lock.yaml")


# --- the hub ---------------------------------------------------------------------------------


def test_a_repository_that_moved_on_says_how_to_pin_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's answers as `open_hub` gives them: the same branch, at another commit."""
    from dataclasses import replace

    from mlxpipe.checkpoint import hub, open_directory

    def snapshot(commit: str) -> None:
        checkpoint = open_directory(folder / "model", label="org/tiny")
        answer = replace(checkpoint, kind="hub", revision=commit)
        monkeypatch.setattr(hub, "open_hub", lambda *arguments, **options: answer)

    write(folder, {**SPEC, "source": {"hub": "org/tiny"}})
    snapshot("a" * 40)
    mlxpipe.lock(folder / "spec.yaml")
    snapshot("b" * 40)
    assert differences(folder) == [], "the same files are the same model"

    flip(folder / "model/model.safetensors", -1)
    found = mlxpipe.check_lock(folder / "spec.yaml")

    assert [each.code for each in found] == ["file-changed", "revision-changed"]
    assert found[1].help == f"pin it: source.revision: {'a' * 40}"


def test_what_reads_pictures_binds_only_where_pictures_are_read(monkeypatch):
    from mlxpipe.locking import versions

    monkeypatch.setattr(versions, "version", lambda package: "1.0")
    plain, vision = versions.locked_versions(), versions.locked_versions(vision=True)
    assert set(vision) - set(plain) == {"mlx-vlm", "pillow"}
    assert plain.items() <= vision.items()
