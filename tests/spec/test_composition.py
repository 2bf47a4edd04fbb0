"""Specs made of several files, variables and settings; every value knows where it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.errors import Diagnostic, UsageError
from mlxpipe.spec import (
    GenerateTask,
    LoadedSpec,
    PerplexityTask,
    load_spec,
    origins,
    parse_setting,
    parse_spec,
    read_yaml,
    resolved,
    resolved_yaml,
    resolved_yaml_with_origins,
    spec_for_source,
)
from mlxpipe.spec.interpolation import escape

HEAD = "version: 1\nsource: {path: x}\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def errors_of(text: str, **options: Any) -> tuple[Diagnostic, ...]:
    with pytest.raises(UsageError) as caught:
        parse_spec(text, "spec.yaml", **options)
    return caught.value.diagnostics


def error_of(text: str, **options: Any) -> Diagnostic:
    (error,) = errors_of(text, **options)
    return error


def place(error: Diagnostic) -> str:
    return str(error.origin)


def marked(error: Diagnostic) -> str:
    """The characters above the carets."""
    assert error.origin is not None and error.origin.column is not None
    start = error.origin.column - 1
    return error.origin.text[start : start + error.origin.width]


# --- extends


def test_mappings_merge_deeply_and_lists_replace(folder: Path) -> None:
    write(
        "base.yaml",
        "version: 1\nsource: {path: m}\nmodel: {dtype: float32, device: cpu}\n"
        "naming: {drop: [a, b]}\nrun: {seed: 3}\n",
    )
    spec = parse_spec("extends: base.yaml\nmodel: {dtype: float16}\nnaming: {drop: [c]}\n").spec
    assert (spec.model.dtype, spec.model.device) == ("float16", "cpu")
    assert (spec.naming.drop, spec.run.seed, spec.source.path) == (("c",), 3, "m")


def test_of_several_bases_the_later_wins_and_the_spec_over_all(folder: Path) -> None:
    write("a.yaml", HEAD + "run: {seed: 1}\nmodel: {dtype: float32}\noutputs: {dir: a}")
    write("b.yaml", "run: {seed: 2}\nmodel: {dtype: float16}")
    spec = parse_spec("extends: [a.yaml, b.yaml]\nmodel: {dtype: bfloat16}").spec
    assert (spec.run.seed, spec.model.dtype, spec.outputs.dir) == (2, "bfloat16", "a")


def test_a_base_may_be_reached_twice(folder: Path) -> None:
    write("root.yaml", HEAD + "run: {seed: 9}")
    write("a.yaml", "extends: root.yaml\nmodel: {device: cpu}")
    write("b.yaml", "extends: root.yaml\nmodel: {dtype: float32}")
    spec = parse_spec("extends: [a.yaml, b.yaml]").spec
    assert (spec.run.seed, spec.model.device, spec.model.dtype) == (9, "cpu", "float32")


def test_null_goes_back_to_the_default(folder: Path) -> None:
    write("base.yaml", HEAD + "tasks: [{type: perplexity, data: x, windows: 3}]\nname: base")
    assert parse_spec("extends: base.yaml\nname: null", "own.yaml").name == "own"


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        ("{ollama: 'a:b', store: s}", "{path: m}", {"path": "m"}),
        ("{path: m}", "{hub: a/b}", {"hub": "a/b"}),
        ("{ollama: 'a:b', store: s}", "{ollama: 'c:d'}", {"ollama": "c:d", "store": "s"}),
    ],
)
def test_keys_that_exclude_each_other_replace_each_other(
    folder: Path, base: str, own: str, expected: dict[str, str]
) -> None:
    write("base.yaml", f"version: 1\nsource: {base}")
    spec = parse_spec(f"extends: base.yaml\nsource: {own}").spec
    assert spec.source.model_dump(exclude_none=True) == expected


def test_both_in_one_file_is_still_an_error(folder: Path) -> None:
    write("base.yaml", HEAD)
    error = error_of("extends: base.yaml\nsource: {path: y, hub: a/b}")
    assert (error.code, place(error)) == ("exclusive-keys", "spec.yaml:2:19")


def test_an_error_points_into_the_file_that_wrote_the_value(folder: Path) -> None:
    write("base/moe.yaml", HEAD + "model: {dtype: bfloat}\ntasks: [{type: logits, toks: [1]}]")
    found = errors_of("extends: base/moe.yaml\nrun: {seed: -1}")
    assert [(error.code, place(error)) for error in found] == [
        ("out-of-range", "spec.yaml:2:13"),
        ("unknown-value", "base/moe.yaml:3:16"),
        ("unknown-key", "base/moe.yaml:4:24"),
    ]
    assert [marked(error) for error in found[1:]] == ["bfloat", "toks"]


def test_syntax_is_reported_where_it_is(folder: Path) -> None:
    write("base.yaml", "version: 1\nmodel: ]")
    error = error_of("extends: base.yaml")
    assert (error.code, place(error)) == ("yaml-syntax", "base.yaml:2:8")


@pytest.mark.parametrize(
    ("written", "code", "part"),
    [
        ("missing.yaml", "file-not-found", "there is no file missing.yaml"),
        ("bsae.yaml", "file-not-found", "did you mean 'base.yaml'?"),
        (".", "not-a-file", "is a directory"),
        ("'~nobody-of-that-name/x.yaml'", "no-home-directory", "write the path out"),
        ("3", "wrong-type", "the path of a spec"),
        ("{path: base.yaml}", "wrong-type", "the path of a spec"),
        ("''", "wrong-type", "the path of a spec"),
        ("'${vars.x}'", "bad-interpolation", "write the path out"),
        ('"a\\0b"', "bad-name", "not a path"),
    ],
)
def test_what_cannot_be_extended_is_an_error_at_its_line(
    folder: Path, written: str, code: str, part: str
) -> None:
    write("base.yaml", HEAD)
    error = error_of(f"version: 1\nextends: {written}")
    assert (error.code, place(error)) == (code, "spec.yaml:2:10")
    assert part in error.render()


def test_a_missing_one_in_a_list_is_pointed_at(folder: Path) -> None:
    write("base.yaml", HEAD)
    error = error_of("extends: [base.yaml, none.yaml]")
    assert (marked(error), error.code) == ("none.yaml", "file-not-found")


def test_cycles_are_errors_where_they_close(folder: Path) -> None:
    spec = write("a.yaml", HEAD + "extends: sub/b.yaml")
    write("sub/b.yaml", "extends: ../sub/../a.yaml")
    with pytest.raises(UsageError) as caught:
        load_spec(spec)
    (error,) = caught.value.diagnostics
    assert (error.code, place(error)) == ("extends-cycle", "sub/b.yaml:1:10")
    assert error.found == "a.yaml > b.yaml > a.yaml"


def test_depth_and_number_of_files_are_bounded(folder: Path) -> None:
    for number in range(40):
        write(f"{number}.yaml", f"extends: {number + 1}.yaml")
    assert error_of("extends: 0.yaml").code == "too-deep"
    # Each file extends the next one twice: 2^15 readings without a bound.
    for number in range(15):
        write(f"d{number}.yaml", f"extends: [d{number + 1}.yaml, d{number + 1}.yaml]")
    write("d15.yaml", HEAD)
    assert error_of("extends: d0.yaml").code == "too-deep"


# --- relative paths


TASKS = """\
tasks:
- {type: generate, prompt_file: prompts.txt}
- {type: perplexity, data: /abs/text.txt}
- {type: perplexity, data: ~/text.txt}
- {type: generate, prompt: prompts.txt}
"""


def test_paths_are_relative_to_the_file_that_wrote_them(folder: Path) -> None:
    write(
        "base/deep/moe.yaml",
        "version: 1\nsource: {path: ../../models/m}\noutputs: {dir: out}\n"
        "quantization: {sources: {tuned: {type: file, path: ./tuned.json}}}\n" + TASKS,
    )
    write("base/mid.yaml", "extends: deep/moe.yaml\noutputs: {dir: ../out}")
    spec = parse_spec("extends: base/mid.yaml\nvars: {x: 1}").spec
    assert (spec.source.path, spec.outputs.dir) == ("models/m", "out")
    assert spec.quantization.sources["tuned"].path == "base/deep/tuned.json"
    first, absolute, home, last = spec.tasks
    assert isinstance(first, GenerateTask) and isinstance(last, GenerateTask)
    assert isinstance(absolute, PerplexityTask) and isinstance(home, PerplexityTask)
    assert (first.prompt_file, last.prompt) == ("base/deep/prompts.txt", ("prompts.txt",))
    assert (absolute.data, home.data) == ("/abs/text.txt", "~/text.txt")


def test_a_path_begins_where_its_beginning_was_written(folder: Path) -> None:
    write(
        "base/b.yaml",
        "version: 1\nvars: {model: none, file: t.txt}\n"
        "source: {path: '${vars.model}'}\noutputs: {dir: 'o/${vars.model}'}\n"
        "tasks: [{type: perplexity, data: '${vars.dir}/${vars.file}'}]",
    )
    own = "extends: base/b.yaml\nvars: {model: m, dir: texts}"
    spec = parse_spec(own).spec
    assert (spec.source.path, spec.outputs.dir) == ("m", "base/o/m")
    assert spec.tasks[0].data == "texts/t.txt"  # type: ignore[union-attr]
    assert parse_spec(own, set={"source.path": "n"}).spec.source.path == "n"


def test_a_symbolic_link_keeps_its_dots(folder: Path) -> None:
    write("elsewhere/deep/base.yaml", "version: 1\nsource: {path: ../m}")
    (folder / "elsewhere/m").mkdir()
    (folder / "link").symlink_to("elsewhere/deep")
    loaded = parse_spec("extends: link/base.yaml")
    assert loaded.spec.source.path == "link/../m"
    assert loaded.resolve("link/../m").samefile(folder / "elsewhere/m")


def test_a_path_that_begins_with_a_tilde_stays_a_path(folder: Path) -> None:
    write("base/b.yaml", "version: 1\nsource: {path: ./~x}")
    loaded = parse_spec("extends: base/b.yaml")
    assert loaded.spec.source.path == "base/~x"


# --- variables


def test_a_whole_reference_keeps_its_type_and_a_part_is_text() -> None:
    spec = parse_spec(
        HEAD + "vars: {n: 7, drop: [a, b], yes: true, half: 0.5, tag: 'q${vars.n}'}\n"
        "run: {seed: '${vars.n}'}\nnaming: {drop: '${vars.drop}'}\n"
        "name: 's${vars.n}-${vars.yes}-${vars.half}-${vars.tag}'\n"
        "outputs: {dir: '${vars.drop.1}'}"
    ).spec
    assert (spec.run.seed, spec.naming.drop) == (7, ("a", "b"))
    assert (spec.name, spec.outputs.dir) == ("s7-true-0.5-q7", "b")


def test_the_environment_gives_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXPIPE_TEST", "8")
    monkeypatch.setenv("MLXPIPE_EMPTY", "")
    monkeypatch.delenv("MLXPIPE_UNSET", raising=False)
    text = HEAD + (
        "name: '${env:MLXPIPE_TEST}'\n"
        "naming: {drop: ['${env:MLXPIPE_UNSET:-a b}', '${env:MLXPIPE_EMPTY:-c}',"
        " 'x${env:MLXPIPE_EMPTY}', 'y${env:MLXPIPE_UNSET:-}']}"
    )
    spec = parse_spec(text).spec
    assert (spec.name, spec.naming.drop) == ("8", ("a b", "c", "x", "y"))
    error = error_of(HEAD + "run: {seed: '${env:MLXPIPE_TEST}'}")
    assert (error.code, error.found) == ("wrong-type", "the text '8'")


def test_the_environment_s_text_is_not_interpolated_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLXPIPE_TEST", "${vars.x}")
    spec = parse_spec(HEAD + "outputs: {dir: '${env:MLXPIPE_TEST}'}").spec
    assert spec.outputs.dir == "${vars.x}"


BAD = [
    # (section, code, what is marked, part of the error)
    ("name: '${vars.tga}'", "unknown-variable", "${vars.tga}", "did you mean 'tag'?"),
    ("name: 'x${vars.m.b}y'", "unknown-variable", "${vars.m.b}", "vars.m.b"),
    ("name: 'x${vars.m}'", "wrong-type", "${vars.m}", "a list or a mapping"),
    ("name: 'x${vars.none}'", "wrong-type", "${vars.none}", "is nothing"),
    ("name: 'x${foo}'", "bad-interpolation", "${foo}", "${env:NAME:-DEFAULT}"),
    ("name: 'x${vars}'", "bad-interpolation", "${vars}", "${vars.NAME}"),
    ("name: 'x${}'", "bad-interpolation", "${}", "$${"),
    ("name: 'x${vars.tag'", "bad-interpolation", "${vars.tag", "closing"),
    ("name: '${env:MLXPIPE_UNSET}'", "unset-variable", "${env:MLXPIPE_UNSET}", ":-"),
    ("name: '${env:1X}'", "bad-interpolation", "${env:1X}", ""),
    ("naming: {'${vars.tag}': x}", "bad-interpolation", "'${vars.tag}'", "a key"),
    ("tasks: [{type: logits, prompt: 'a ${vars.q}'}]", "unknown-variable", "${vars.q}", "--set"),
]


@pytest.mark.parametrize(("section", "code", "part", "says"), BAD)
def test_a_wrong_reference_is_an_error_at_its_characters(
    section: str, code: str, part: str, says: str
) -> None:
    error = error_of(HEAD + "vars: {tag: a, m: {a: 1}, none: null}\n" + section)
    assert (error.code, marked(error)) == (code, part)
    assert says in error.render()
    assert error.origin is not None and error.origin.line == 4


def test_variables_that_refer_to_each_other_in_a_circle() -> None:
    error = error_of(HEAD + "vars: {a: '${vars.b}', b: 'x${vars.c}', c: '${vars.a}'}")
    assert (error.code, error.found) == ("variable-cycle", "a > b > c > a")
    assert error_of(HEAD + "vars: {a: 'x${vars.a}'}").found == "a > a"


@pytest.mark.parametrize(
    ("levels", "first", "next_one", "code"),
    [
        (20, "'xxxxxxxxxx'", "'{0}{0}{0}{0}'", "too-long"),
        (20, "[x, x, x, x]", "['{0}', '{0}', '{0}', '{0}']", "too-many-values"),
        (40, "[x]", "['{0}']", "too-deep"),
    ],
)
def test_variables_cannot_make_a_small_file_large(
    levels: int, first: str, next_one: str, code: str
) -> None:
    others = (
        f"v{number}: " + next_one.format(f"${{vars.v{number - 1}}}") for number in range(1, levels)
    )
    variables = "\n  ".join([f"v0: {first}", *others])
    found = errors_of(HEAD + f"vars:\n  {variables}\nnaming: {{drop: '${{vars.v{levels - 1}}}'}}")
    assert found[0].code == code


def test_a_long_chain_of_variables_is_refused() -> None:
    chain = "\n  ".join(f"v{number}: '${{vars.v{number + 1}}}'" for number in range(2000))
    assert errors_of(HEAD + f"vars:\n  {chain}\n  v2000: x")[0].code == "too-deep"


def test_a_wrong_value_of_a_variable_is_reported_with_the_variable(folder: Path) -> None:
    write("base.yaml", HEAD + "vars: {d: bfloat}")
    error = error_of("extends: base.yaml\nmodel: {dtype: '${vars.d}'}")
    assert (place(error), error.label) == ("spec.yaml:2:16", "did you mean 'bfloat16'?")
    assert "vars.d at base.yaml:3:11" in error.render()


def test_variables_of_all_files_merge(folder: Path) -> None:
    write("base.yaml", "version: 1\nvars: {a: 1, m: {x: 1, y: 2}}\nname: 'n${vars.a}${vars.m.y}'")
    text = "extends: base.yaml\nvars: {a: 5, m: {x: 3}}\nsource: {path: 'm${vars.m.x}'}"
    spec = parse_spec(text).spec
    assert (spec.name, spec.source.path) == ("n52", "m3")


def test_vars_must_be_a_mapping_and_quotes_are_suggested() -> None:
    assert error_of(HEAD + "vars: x").code == "wrong-type"
    assert "quotes" in error_of(HEAD + "naming: {drop: [${vars.x}]}").render()


@given(st.text(alphabet="${}va:.x", max_size=12).filter(bool))
def test_an_escaped_text_means_itself(text: str) -> None:
    loaded = parse_spec(HEAD, set={"outputs.dir": escape(text)})
    assert loaded.spec.outputs.dir == text
    assert parse_spec(resolved_yaml(loaded)).spec.outputs.dir == text


# --- settings


def settle(text: str, *settings: str) -> LoadedSpec:
    return parse_spec(text, "spec.yaml", set=[parse_setting(each) for each in settings])


GEN = HEAD + (
    "vars: {tag: a}\nname: 'n-${vars.tag}'\ntasks:\n"
    "- {id: gen, type: generate, prompt: x, stop: [a, b]}\n- {type: logits, tokens: [1]}\n"
    "- {type: logits, prompt: y}\n"
)


def test_settings_are_typed_and_win() -> None:
    spec = settle(
        GEN,
        "vars.tag=b",
        "model.dtype=float32",
        "run.seed=0x10",
        "tasks.0.max_tokens=3",
        "tasks.gen.stop.1=c",
        "tasks.gen.temperature=0.5",
        "tasks.logits-2.prompt='no'",
        "quantization.overrides=[{match: '*.a', dense: true}]",
        "quantization.sources.tuned.type=file",
        "quantization.sources.tuned.path=t.json",
        "outputs.dir=runs/${vars.tag}",
        "model.dtype=float16",
    ).spec
    first, second, third = spec.tasks
    assert isinstance(first, GenerateTask)
    assert (spec.name, spec.model.dtype, spec.run.seed) == ("n-b", "float16", 16)
    assert (first.max_tokens, first.stop, first.temperature) == (3, ("a", "c"), 0.5)
    assert (second.id, third.prompt) == ("logits", "no")  # type: ignore[union-attr]
    assert spec.quantization.overrides[0].dense is True
    assert "tuned" in spec.quantization.sources
    assert spec.outputs.dir == "runs/b"


def test_a_setting_replaces_what_it_excludes() -> None:
    assert settle(HEAD, "source.hub=a/b").spec.source.kind == "hub"
    (task, *_) = settle(GEN, "tasks.gen.prompt_file=p.txt").spec.tasks
    assert isinstance(task, GenerateTask) and task.prompt is None


def test_nothing_is_the_default() -> None:
    assert settle(GEN, "name=").name == "spec"


@pytest.mark.parametrize(
    ("setting", "code", "says"),
    [
        ("model.dtyp=x", "unknown-path", "did you mean 'model.dtype'?"),
        ("tasks.gne.max_tokens=1", "unknown-path", "did you mean 'tasks.gen.max_tokens'?"),
        ("tasks.7.id=x", "unknown-path", "tasks.7.id"),
        ("tasks.gen.stop.2=c", "unknown-path", ""),
        ("run.seed.x=1", "unknown-path", "did you mean 'run.seed'?"),
        ("vars.tga=1", "unknown-path", "did you mean 'vars.tag'?"),
        ("vars={}", "unknown-path", ""),
        ("extends=x", "unknown-path", "cannot be set"),
        ("matrix.x=[1]", "unknown-path", "--only"),
        ("model.dtype", "bad-setting", "path=value"),
        ("=x", "bad-setting", "path=value"),
        ("run.seed=1\nname: x", "bad-setting", "quotes"),
        ("run.seed=[", "yaml-syntax", ""),
        ("run.seed=&a 1", "yaml-anchor", ""),
        ("run.seed=x", "wrong-type", "a whole number"),
        ("model.dtype=bfloat", "unknown-value", "did you mean 'bfloat16'?"),
        ("name=${vars.tga}", "unknown-variable", "did you mean 'tag'?"),
        ("quantization.overrides=[{match: x, bits: 9}]", "out-of-range", "at most 8"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_the_option(
    setting: str, code: str, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        settle(GEN, setting)
    (error,) = caught.value.diagnostics
    assert (error.code, place(error)) == (code, f"--set {setting}")
    assert says in error.render()


def test_a_variable_that_is_only_used_can_be_set() -> None:
    text = HEAD + "name: 'n-${vars.tag}'"
    assert error_of(text).code == "unknown-variable"
    assert settle(text, "vars.tag=x").name == "n-x"


def test_python_s_values_stay_as_they_are() -> None:
    values = {"run.seed": 3, "tasks": [{"type": "logits", "tokens": (1, 2)}], "name": "1"}
    spec = parse_spec(HEAD, set=values).spec
    assert (spec.run.seed, spec.name, spec.tasks[0].type) == (3, "1", "logits")
    error = error_of(HEAD, set={"run.seed": "3"})
    assert (error.code, place(error)) == ("wrong-type", "set run.seed")


def test_settings_of_a_bare_directory(folder: Path) -> None:
    (folder / "m${x}").mkdir()
    loaded = spec_for_source("m${x}", set={"model.dtype": "float32"})
    assert (loaded.spec.model.dtype, loaded.spec.source.path) == ("float32", "m${x}")
    assert parse_spec(loaded.text).spec == loaded.spec


# --- the outcome and its origins


@pytest.fixture
def composed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedSpec:
    monkeypatch.setenv("MLXPIPE_TEST", "out")
    write(
        "base/b.yaml",
        "version: 1\nvars: {tag: t}\nsource: {path: '../${vars.tag}'}\n"
        "outputs:\n  dir: '${env:MLXPIPE_TEST}'\nquantization: {precedence: metadata > config}\n"
        "tasks:\n- type: generate\n  prompt: |\n    two\n    lines\n",
    )
    spec = write("spec.yaml", "extends: base/b.yaml\nnaming:\n  drop: [a, '$${b}']\n")
    return load_spec(spec, set=[parse_setting("run.seed=3")])


def test_the_outcome_is_a_spec_that_comes_out_the_same(composed: LoadedSpec) -> None:
    again = parse_spec(resolved_yaml(composed), "again.yaml")
    assert resolved(again) == resolved(composed)
    assert not {"extends", "vars", "matrix"} & resolved(composed).keys()
    assert again.spec.source.path == "t"


def test_every_value_has_an_origin(composed: LoadedSpec) -> None:
    told = origins(composed)
    expected = {
        "version": "base/b.yaml:1",
        "name": "default",
        "source.path": "base/b.yaml:3 (vars.tag at base/b.yaml:2:13)",
        "naming.drop.0": "spec.yaml:3",
        "naming.rules": "default",
        "quantization.precedence": "base/b.yaml:6",
        "outputs.dir": "base/b.yaml:5 (env MLXPIPE_TEST)",
        "run.seed": "--set run.seed=3",
        "tasks.0.prompt.0": "base/b.yaml:9",
        "tasks.0.max_tokens": "default",
        "tasks.0.id": "default",
    }
    assert told.items() >= expected.items()


def test_origins_are_comments_and_change_nothing(composed: LoadedSpec) -> None:
    text = resolved_yaml_with_origins(composed)
    assert read_yaml(text).data == resolved(composed)
    leaves = [line for line in text.splitlines() if not line.rstrip().endswith(":")]
    assert all(" # " in line for line in leaves)


def test_a_bare_directory_has_origins_too(folder: Path) -> None:
    Path("m").mkdir()
    assert origins(spec_for_source("m")).items() >= {"source.path": "m"}.items()
