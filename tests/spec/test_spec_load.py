"""From a file to a frozen spec, and back to YAML and JSON Schema."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mlxpipe.errors import UsageError
from mlxpipe.spec import (
    LoadedSpec,
    Override,
    json_schema,
    load_spec,
    parse_spec,
    resolved,
    resolved_yaml,
    spec_for_source,
)
from mlxpipe.spec.dump import _CoreDumper
from mlxpipe.spec.reader import read_yaml

SHORT = """\
version: 1
source: {path: ../models/qwen3.6-35b-a3b-nvfp4}
tasks:
  - {type: generate, prompt: "The capital of France is"}
"""

LONG = r"""
# yaml-language-server: $schema=../mlxpipe.schema.json
version: 1
name: qwen3.6-moe-precedence
source: {ollama: "qwen3.6:35b-a3b-nvfp4", store: ~/.ollama/models}
naming:
  conventions: [mlx, ollama]
  rules:
    - {match: '^model\.language_model\.(.*)$', replace: 'language_model.model.\1'}
  drop: ["vision_tower.*", "mtp.*"]
quantization:
  sources:
    tuned: {type: file, path: overrides.json}
  overrides:
    - {match: "*.mlp.gate", mode: affine, bits: 8, group_size: 64}
    - {match: "re:layers\\.[0-3]\\.", bits: 8}
    - {match: "lm_head", dense: true}
  precedence: config > tuned
  on_conflict: error
  on_unmatched: ignore
  allow_unmatched: ["mtp.*"]
model: {dtype: float32, device: cpu}
run: {seed: 7}
tasks:
  - {id: gen, type: generate, prompt_file: prompts.txt, max_tokens: 64, temperature: 0}
  - {type: generate, prompt: [a, "yes"], chat: false, stop: ["\n", "0o17"], top_p: 1}
  - {type: generate, prompt: x, chat: auto, system: be short, repetition_penalty: 1.1}
  - {type: perplexity, data: text.txt, context: 512, stride: 256, windows: null, bos: false}
  - {type: logits, tokens: [1, 2, 3]}
  - {type: logits, prompt: x}
outputs: {dir: out}
"""


def test_a_short_spec_gets_its_defaults() -> None:
    loaded = parse_spec(SHORT, "moe.yaml")
    spec = loaded.spec
    assert (loaded.name, spec.name, spec.source.kind) == ("moe", None, "path")
    assert spec.naming.conventions == "auto"
    assert spec.quantization.precedence == ("spec", "config", "metadata", "sidecar", "shapes")
    assert (spec.quantization.on_conflict, spec.quantization.on_unmatched) == ("warn", "error")
    assert (spec.model.dtype, spec.run.seed, spec.outputs.dir) == ("auto", 0, "runs")
    (task,) = spec.tasks
    assert task.type == "generate"
    assert (task.id, task.prompt, task.chat) == ("generate", ("The capital of France is",), "auto")
    assert (task.max_tokens, task.temperature, task.seed) == (128, 0.0, None)


def test_a_long_spec() -> None:
    spec = parse_spec(LONG).spec
    order = ("spec", "config", "tuned", "metadata", "sidecar", "shapes")
    assert spec.quantization.precedence == order
    assert spec.quantization.overrides[1] == Override(
        match=r"re:layers\.[0-3]\.", mode="affine", bits=8
    )
    assert spec.quantization.overrides[2].mode is None
    ids = [task.id for task in spec.tasks]
    assert ids == ["gen", "generate", "generate-2", "perplexity", "logits", "logits-2"]


def test_default_ids_keep_clear_of_given_ones() -> None:
    tasks = "".join(
        f"  - {{type: logits, tokens: [1]{given}}}\n"
        for given in ("", ", id: Logits-2", ", id: logits", "")
    )
    spec = parse_spec(f"version: 1\nsource: {{path: x}}\ntasks:\n{tasks}").spec
    assert [task.id for task in spec.tasks] == ["logits-3", "Logits-2", "logits", "logits-4"]


SOURCES = ("spec", "tuned", "config", "metadata", "sidecar", "shapes")


def precedence_of(written: str) -> tuple[str, ...]:
    text = SHORT + (
        "quantization:\n"
        "  sources: {tuned: {type: file, path: t.json}}\n"
        f"  precedence: {written}\n"
    )
    return parse_spec(text).spec.quantization.precedence


@pytest.mark.parametrize("written", ["metadata > config", "metadata>config", "[metadata, config]"])
def test_a_precedence_is_a_text_or_a_list(written: str) -> None:
    order = ("spec", "tuned", "metadata", "config", "sidecar", "shapes")
    assert precedence_of(written) == order


@given(st.lists(st.sampled_from(SOURCES), unique=True, min_size=2))
def test_a_precedence_orders_what_it_lists_and_keeps_the_rest_in_default_order(
    names: list[str],
) -> None:
    order = precedence_of(" > ".join(names))
    assert sorted(order) == sorted(SOURCES)
    assert [name for name in order if name in names] == names
    others = [name for name in SOURCES if name not in names]
    assert [name for name in order if name not in names] == others


def test_a_spec_is_frozen_and_makes_no_guesses_in_python_either() -> None:
    spec = parse_spec(SHORT).spec
    with pytest.raises(ValidationError):
        spec.run.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="exclude each other"):
        Override(match="x", bits=4, dense=True)


def test_a_file_and_its_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = tmp_path / "my spec.yaml"
    file.write_text(SHORT)
    loaded = load_spec(file)
    assert (loaded.name, loaded.path, loaded.text) == ("my-spec", file, SHORT)
    assert loaded.resolve("../m") == tmp_path / ".." / "m"
    assert loaded.resolve("/m") == Path("/m")
    assert loaded.resolve("~/m") == tmp_path / "home" / "m"
    assert str(loaded.origin("source", "path")) == f"{file}:2:16"
    assert str(loaded.origin("tasks", 0, "type", key=True)) == f"{file}:4:6"
    assert parse_spec(SHORT, directory=tmp_path).resolve("x") == tmp_path / "x"
    with pytest.raises(UsageError, match="home directory"):
        loaded.resolve("~nobody-of-that-name/x")


def test_a_missing_spec(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_spec(tmp_path / "none.yaml")
    assert caught.value.code == "file-not-found"


@pytest.mark.parametrize(
    "name", ["model", "a: b", "#x", "- 'q\"", "yes", "ü\u2028", "~tilde", "a${b}"]
)
def test_a_bare_directory_whatever_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    for source in (name, Path(name), tmp_path / name):
        loaded = spec_for_source(source)
        assert loaded.spec.source.path is not None
        assert loaded.resolve(loaded.spec.source.path).samefile(tmp_path / name)
        assert loaded.origin("source", "path").line is None
        assert parse_spec(loaded.text).spec.source.path == loaded.spec.source.path


def test_the_current_directory_as_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "qwen").mkdir()
    monkeypatch.chdir(tmp_path / "qwen")
    assert spec_for_source(".").name == "qwen"
    with pytest.raises(UsageError, match="bad-name"):
        spec_for_source("a\0b")


# --- the resolved spec


def test_the_resolved_spec_in_the_spec_s_own_order() -> None:
    data = resolved(parse_spec(SHORT, "moe.yaml"))
    assert list(data) == [
        *("version", "name", "source", "naming", "quantization"),
        *("quantize", "model", "run", "tasks", "expect", "outputs"),
    ]
    assert data["name"] == "moe"
    assert data["source"] == {"path": "../models/qwen3.6-35b-a3b-nvfp4"}
    assert data["quantization"]["precedence"] == "spec > config > metadata > sidecar > shapes"


texts = st.text(min_size=1, max_size=20).filter(lambda text: "${" not in text)
awkward = st.sampled_from(
    [
        "yes",
        "0o17",
        "1e3",
        "08",
        "null",
        "~",
        "",
        " x ",
        "- a",
        "a: b",
        "#",
        "*",
        "é\u2028",
        "\x85\x07",
    ]
)
some_texts = texts | awkward.filter(bool)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
paths = some_texts.filter(lambda text: "\0" not in text)
globs = st.lists(some_texts.filter(lambda text: not text.startswith("re:")), max_size=3)
unit = st.floats(0, 1)
counts = st.integers(1, 2**31 - 1)


def mapping(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(required, optional=optional)


tasks = st.one_of(
    mapping(
        {"type": st.just("generate"), "prompt": some_texts | st.lists(some_texts, min_size=1)},
        {
            "chat": st.sampled_from(["auto", True]),
            "system": some_texts,
            "max_tokens": counts,
            "temperature": st.floats(0, 1e300),
            "top_p": st.floats(0, 1, exclude_min=True),
            "min_p": unit,
            "repetition_penalty": st.floats(0, 9, exclude_min=True) | st.none(),
            "stop": st.lists(some_texts, max_size=2),
            "seed": st.integers(0, 2**64 - 1),
        },
    ),
    mapping({"type": st.just("generate"), "prompt_file": paths}, {"chat": st.just(False)}),
    mapping(
        {"type": st.just("logits"), "tokens": st.lists(st.integers(0, 2**31 - 1), min_size=1)}, {}
    ),
    mapping(
        {"type": st.just("export"), "path": paths},
        {
            "unsupported": st.sampled_from(["dense", "keep", "error"]),
            "dtype": st.sampled_from(["exact", "checkpoint"]),
            "max_shard_bytes": st.integers(1, 2**63),
            "overwrite": st.booleans(),
        },
    ),
    mapping(
        {"type": st.just("export"), "path": paths},
        {},
    ).map(lambda task: {**task, "format": "ollama", "name": "model:tag"}),
    mapping(
        {"type": st.just("perplexity"), "data": paths},
        {"stride": st.integers(1, 2048), "bos": st.booleans() | st.none()},
    ),
)
overrides = st.one_of(
    mapping({"match": st.just("*.a"), "dense": st.just(True)}, {}),
    mapping(
        {"match": st.just(r"re:^a\.(b|c)$"), "bits": st.integers(1, 8)},
        {"mode": st.sampled_from(["affine", "nvfp4"]), "group_size": st.integers(1, 128)},
    ),
)
specs = mapping(
    {
        "version": st.just(1),
        "source": st.one_of(
            mapping({"path": paths}, {}),
            mapping({"hub": st.just("org/name")}, {"revision": some_texts}),
            mapping({"ollama": st.just("qwen:tag")}, {"store": paths}),
        ),
    },
    {
        "name": names,
        "naming": mapping(
            {},
            {
                "conventions": st.just("auto") | st.lists(some_texts, max_size=2),
                "rules": st.just([{"match": "^(a)", "replace": r"\1\n"}]),
                "drop": globs,
            },
        ),
        "quantization": mapping(
            {"sources": st.just({"null": {"type": "file", "path": "x"}})},
            {
                "overrides": st.lists(overrides, max_size=3),
                "precedence": st.permutations(["null", "spec", "shapes"]),
                "on_conflict": st.sampled_from(["error", "warn", "ignore"]),
                "allow_unmatched": globs,
            },
        ),
        "model": mapping({}, {"dtype": st.sampled_from(["auto", "float16"])}),
        "run": mapping({}, {"seed": st.integers(0, 2**64 - 1)}),
        "tasks": st.lists(tasks, max_size=4),
        "outputs": mapping({}, {"dir": paths}),
    },
)


def written(data: Any) -> str:
    return str(yaml.dump(data, Dumper=_CoreDumper, allow_unicode=True))


def agree(left: LoadedSpec, right: LoadedSpec) -> bool:
    name = {"name": "x"}
    return left.spec.model_copy(update=name) == right.spec.model_copy(update=name)


@settings(max_examples=150, deadline=None)
@given(specs)
def test_a_resolved_spec_resolves_to_itself(data: Any) -> None:
    loaded = parse_spec(written(data), "law.yaml")
    again = parse_spec(resolved_yaml(loaded), "other.yaml")
    assert agree(loaded, again)
    assert again.name == loaded.name
    assert resolved(again) == resolved(loaded)
    assert read_yaml(resolved_yaml(loaded)).data == resolved(loaded)
    validate(data)
    validate(resolved(loaded))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(texts, texts | awkward | st.integers(-99, 99) | unit | st.booleans()))
def test_what_is_written_is_what_is_read(data: dict[str, Any]) -> None:
    data = {"first": None, **data}
    assert read_yaml(written(data)).data == data


# --- the JSON Schema

SCHEMA = json_schema()


def validate(data: Any) -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(data)


def test_the_schema_is_itself_valid_and_documented() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["title"]
    sections = [SCHEMA, *SCHEMA["$defs"].values()]
    for section in sections:
        assert section["description"]
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            refers = any("$ref" in arm for arm in value.get("anyOf", [value]))
            assert key == "type" or refers or value["description"], key


@pytest.mark.parametrize("text", [SHORT, LONG])
def test_the_schema_accepts_what_we_accept(text: str) -> None:
    validate(read_yaml(text).data)
    validate(resolved(parse_spec(text)))


@pytest.mark.parametrize(
    "part",
    [
        "source: {}",
        "source: {path: a, hub: b/c}",
        "source: {path: a, revision: b}",
        "source: {path: a, pth: b}",
        "source: {path: 1}",
        "version: 2",
        "extends: 3",
        "extends: {path: x}",
        "matrix: [model.dtype]",
        "matrix: {model.dtype: float32}",
        "matrix: {model.dtype: []}",
        "vars: [x]",
        "name: a/b",
        "tasks: [{type: generate}]",
        "tasks: [{type: generate, prompt: a, prompt_file: b}]",
        "tasks: [{type: generate, prompt: a, chat: maybe}]",
        "tasks: [{type: export}]",
        "tasks: [{type: logits, tokens: []}]",
        "quantization: {precedence: 3}",
        "quantization: {overrides: [{match: x}]}",
        "quantization: {overrides: [{match: x, bits: 4, dense: true}]}",
        "run: {seed: -1}",
        "outputs: {reports: [pdf]}",
    ],
)
def test_the_schema_rejects_what_we_reject(part: str) -> None:
    data = {"version": 1, "source": {"path": "x"}} | read_yaml(part).data
    with pytest.raises(jsonschema.ValidationError):
        validate(data)
    with pytest.raises(UsageError):
        parse_spec(written(data))


@pytest.mark.parametrize(
    "text",
    [
        "extends: base.yaml",
        "extends: [a.yaml, b.yaml]\nmodel: '${vars.model}'\ntasks: '${vars.tasks}'",
        "version: 1\nvars: {a: 1}",
        "version: 1\nmatrix: {run.seed: [1, 2], model.dtype: null, name: {a: {x.y: 1}, b: 3}}",
        "version: 1\nrun: {seed: '${vars.seed}'}\nmodel: {dtype: '${env:DTYPE:-auto}'}",
        "version: 1\ntasks: ['${vars.task}', {type: logits, tokens: [1, '${vars.token}']}]",
        "version: 1\ntasks: [{type: perplexity, data: '${vars.x}/t', bos: '${vars.b}'}]",
        "version: 1\nsource: {hub: '${vars.hub}'}\nname: 'n-${vars.tag}'",
    ],
)
def test_the_schema_accepts_what_is_composed(text: str) -> None:
    validate(read_yaml(text).data)


@pytest.mark.parametrize(
    "part", ["source: {path: null, hub: a/b}", "source: {path: a, store: null}"]
)
def test_null_means_left_out(part: str) -> None:
    data = {"version": 1} | read_yaml(part).data
    validate(data)
    parse_spec(written(data))


def test_the_import_brings_nothing_heavy() -> None:
    heavy = {"mlx", "mlx_lm", "numpy", "transformers", "huggingface_hub", "safetensors", "rich"}
    code = "import sys, mlxpipe.spec; print(*{name.split('.')[0] for name in sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & set(found.stdout.split())
