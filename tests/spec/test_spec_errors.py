"""What is wrong with a spec, where, and what to do about it."""

from __future__ import annotations

import re
import time

import pytest

from mlxpipe.errors import Diagnostic, ExitCode, UsageError
from mlxpipe.spec import parse_spec

HEAD = "version: 1\nsource: {path: x}\n"


def errors_of(text: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(UsageError) as caught:
        parse_spec(text, "spec.yaml")
    assert caught.value.exit_code == ExitCode.USAGE
    return caught.value.diagnostics


def test_the_error_shape() -> None:
    (error,) = errors_of("version: 1\n\nsource:\n  hub: org/name\n  revison: main\n")
    assert error.render() == (
        "error[unknown-key]: unknown key 'revison'\n"
        "  --> spec.yaml:5:3 (source)\n"
        "   5 |   revison: main\n"
        "     |   ^^^^^^^ did you mean 'revision'?"
    )


TOP = [
    # (the whole spec, code, line, column, context, part of the rendered error)
    ("source: {path: x}", "missing-key", 1, 1, "", "'version'"),
    ("version: 1", "missing-key", 1, 1, "", "'source'"),
    ("version: 2\nsource: {path: x}", "unknown-value", 1, 10, "", "expected: 1"),
    ("version: '1'\nsource: {path: x}", "wrong-type", 1, 10, "", "the text '1'"),
    ("version: 1.0\nsource: {path: x}", "wrong-type", 1, 10, "", "the number 1.0"),
    ("version: true\nsource: {path: x}", "wrong-type", 1, 10, "", "found: true"),
    ("version: 1\nsource:\n", "wrong-type", 2, 1, "", "found: nothing"),
    ("version: 1\nsource: x", "wrong-type", 2, 9, "", "expected: a mapping"),
    ("version: 1\nsource: {}", "missing-key", 2, 1, "source", "path, hub or ollama"),
    ("version: 1\nsource: {path: x, hub: a/b}", "exclusive-keys", 2, 19, "source", "exactly one"),
    ("version: 1\nsource: {path: x, revision: y}", "exclusive-keys", 2, 19, "source", "'hub'"),
    ("version: 1\nsource: {hub: a/b, store: y}", "exclusive-keys", 2, 20, "source", "'ollama'"),
    ("version: 1\nsource: {hub: name}", "bad-name", 2, 15, "source", "org/name"),
    ("version: 1\nsource: {hub: a/b, revision: 1e5}", "wrong-type", 2, 30, "source", "in quotes"),
    ("version: 1\nsource: {ollama: '../x'}", "bad-name", 2, 18, "source", "name:tag"),
    ("version: 1\nsource: {path: ''}", "out-of-range", 2, 16, "source", "empty"),
    ('version: 1\nsource: {path: "a\\0b"}', "bad-name", 2, 16, "source", "a path"),
]

REST = [
    # The same, after a valid head of two lines.
    ("name: a/b", "bad-name", 3, 7, "", "letters"),
    ("name: ..", "bad-name", 3, 7, "", "letters"),
    ("taks: []", "unknown-key", 3, 1, "", "did you mean 'tasks'?"),
    ("colour: red", "unknown-key", 3, 1, "", "expected: version, name, source"),
    ("extends: base.yaml", "file-not-found", 3, 10, "extends", "there is no file base.yaml"),
    ("vars: [x]", "wrong-type", 3, 7, "", "expected: a mapping"),
    ("matrix: {}", "wrong-type", 3, 9, "", "expected: a mapping"),
    ("outputs: {dir: 'runs/${x}'}", "bad-interpolation", 3, 22, "outputs", "${vars.NAME}"),
    ("naming: {conventions: aut}", "unknown-value", 3, 23, "naming", "did you mean 'auto'?"),
    ("naming: {conventions: 5}", "wrong-type", 3, 23, "naming", "auto, or a list"),
    ("naming: {conventions: [mlx, 5]}", "wrong-type", 3, 29, "naming.conventions", "item 2"),
    ("naming: {rules: [{match: 'a(b', replace: x}]}", "bad-pattern", 3, 28, "naming.rules.0", "("),
    ("naming: {rules: [{match: '[[a]', replace: x}]}", "bad-pattern", 3, 26, "naming.rules.0", ""),
    (
        "naming:\n  rules:\n  - match: a(b)\n    replace: x\\2",
        "bad-pattern",
        6,
        16,
        "naming.rules.0",
        "invalid group reference 2",
    ),
    (
        r"naming: {rules: [{match: a, replace: '\g<n>'}]}",
        "bad-pattern",
        3,
        38,
        "naming.rules.0",
        "unknown group name 'n'",
    ),
    ("naming: {rules: [{match: a}]}", "missing-key", 3, 18, "naming.rules.0", "'replace'"),
    ("naming: {drop: 'a.*'}", "wrong-type", 3, 16, "naming", "brackets"),
    ("naming: {drop: ['re:a']}", "bad-pattern", 3, 17, "naming.drop", "only globs"),
    ("model: {dtype: bfloat}", "unknown-value", 3, 16, "model", "did you mean 'bfloat16'?"),
    ("model: {device: cuda}", "unknown-value", 3, 17, "model", "auto, cpu or gpu"),
    ("run: {seed: -1}", "out-of-range", 3, 13, "run", "at least 0"),
    ("run: {seed: 1.0}", "wrong-type", 3, 13, "run", "a whole number"),
    ("run: {seed: '1'}", "wrong-type", 3, 13, "run", "without quotes"),
    ("run: {seed: 99999999999999999999}", "out-of-range", 3, 13, "run", "at most"),
    ("tasks:", "wrong-type", 3, 1, "", "found: nothing"),
    ("tasks: {type: logits}", "wrong-type", 3, 8, "", "a list of tasks"),
    ("tasks: [x]", "wrong-type", 3, 9, "tasks", "item 1 of 'tasks'"),
]

QUANTIZATION = [
    # The same, inside `quantization: {…}`, whose contents begin at 3:16.
    ("precedence: spec > tuend > config", "unknown-value", 3, 35, "", "unknown source 'tuend'"),
    ("precedence: [spec, confg]", "unknown-value", 3, 35, ".precedence", "did you mean 'config'?"),
    ("precedence: 'spec > config > spec'", "duplicate-value", 3, 45, "", "twice"),
    ("precedence: spec >> config", "unknown-value", 3, 34, "", "a name is missing"),
    ("precedence: config", "lone-name", 3, 28, "", "orders nothing"),
    ("precedence: 3", "wrong-type", 3, 28, "", "'a > b > c'"),
    ("sources: {spec: {type: file, path: x}}", "reserved-name", 3, 26, ".sources", "built-in"),
    ("sources: {a b: {type: file, path: x}}", "bad-name", 3, 26, ".sources", "letters"),
    ("sources: {a: {type: fil, path: x}}", "unknown-value", 3, 36, ".sources.a", "'file'?"),
    ("sources: {a: {type: file}}", "missing-key", 3, 26, ".sources.a", "'path'"),
    ("overrides: [{match: x}]", "missing-key", 3, 28, ".overrides.0", "mode / bits"),
    ("overrides: [{bits: 4}]", "missing-key", 3, 28, ".overrides.0", "'match'"),
    ("overrides: [{match: x, mode: mxfp5}]", "unknown-value", 3, 45, ".overrides.0", "'mxfp"),
    ("overrides: [{match: x, bits: 9}]", "out-of-range", 3, 45, ".overrides.0", "at most 8"),
    ("overrides: [{match: x, bits: true}]", "wrong-type", 3, 45, ".overrides.0", "whole number"),
    ("overrides: [{match: x, dense: 1}]", "wrong-type", 3, 46, ".overrides.0", "expected: true"),
    ("overrides: [{match: x, dense: no}]", "wrong-type", 3, 46, ".overrides.0", "the text 'no'"),
    ("overrides: [{match: 're:a[', bits: 4}]", "bad-pattern", 3, 41, ".overrides.0", ""),
    (
        "overrides: [{match: x, bits: 4, dense: true}]",
        "exclusive-keys",
        3,
        48,
        ".overrides.0",
        "exclude each other",
    ),
    ("on_conflict: warm", "unknown-value", 3, 29, "", "did you mean 'warn'?"),
    ("on_unmatched: no", "unknown-value", 3, 30, "", "error, warn or ignore"),
]

TASK = [
    # The same, inside `- {…}` as the only task: its contents begin at 4:6.
    ("type: generat", "unknown-task", 12, "", "did you mean 'generate'?"),
    ("type: 5", "wrong-type", 12, "", "generate, logits, perplexity"),
    ("prompt: x", "missing-key", 5, "", "'type'"),
    ("type: export", "missing-key", 5, "", "'path' is missing"),
    ("type: logits, id: ../x", "bad-name", 24, "", ""),
    ("type: generate", "missing-key", 5, "", "prompt or prompt_file"),
    ("type: generate, promt: x", "unknown-key", 22, "", "did you mean 'prompt'?"),
    ("type: generate, generate: x", "unknown-key", 22, "", ""),
    ("type: generate, prompt: x, prompt_file: y", "exclusive-keys", 33, "", ""),
    ("type: generate, prompt: 5", "wrong-type", 30, "", "a text or a list of texts"),
    ("type: generate, prompt: [a, 5]", "wrong-type", 34, ".prompt", "item 2 of 'prompt'"),
    ("type: generate, prompt: ''", "out-of-range", 30, "", "empty"),
    ("type: generate, prompt: []", "out-of-range", 30, "", "empty"),
    ("type: generate, prompt: x, chat: maybe", "unknown-value", 39, "", "auto, true or false"),
    ("type: generate, prompt: x, chat: yes", "unknown-value", 39, "", "did you mean true?"),
    ("type: generate, prompt: x, chat: 1", "wrong-type", 39, "", "the whole number 1"),
    ("type: generate, prompt: x, chat: false, system: y", "exclusive-keys", 46, "", "chat"),
    ("type: generate, prompt: x, max_tokens: 0", "out-of-range", 45, "", "at least 1"),
    ("type: generate, prompt: x, temperature: -1", "out-of-range", 46, "", "at least 0"),
    ("type: generate, prompt: x, temperature: .inf", "out-of-range", 46, "", "finite"),
    ("type: generate, prompt: x, temperature: hot", "wrong-type", 46, "", "a number"),
    ("type: generate, prompt: x, top_p: 0", "out-of-range", 40, "", "more than 0"),
    ("type: generate, prompt: x, min_p: 2", "out-of-range", 40, "", "at most 1"),
    ("type: generate, prompt: x, stop: end", "wrong-type", 39, "", "brackets"),
    ("type: logits", "missing-key", 5, "", "tokens or prompt"),
    ("type: logits, tokens: []", "out-of-range", 28, "", "empty"),
    ("type: logits, tokens: [1, -1]", "out-of-range", 32, ".tokens", "item 2 of 'tokens'"),
    ("type: logits, tokens: [-1]", "out-of-range", 29, ".tokens", "item 1 of 'tokens'"),
    ("type: logits, tokens: [1], prompt: x", "exclusive-keys", 33, "", ""),
    ("type: perplexity", "missing-key", 5, "", "'data'"),
    ("type: perplexity, data: x, context: 1", "out-of-range", 42, "", "at least 2"),
    ("type: perplexity, data: x, context: 8, stride: 9", "out-of-range", 53, "", "at most 8"),
    ("type: perplexity, data: x, bos: on", "wrong-type", 38, "", "did you mean true?"),
]

ERRORS = [
    *TOP,
    *((HEAD + text, *rest) for text, *rest in REST),
    *(
        (f"{HEAD}quantization: {{{text}}}", code, line, column, f"quantization{context}", part)
        for text, code, line, column, context, part in QUANTIZATION
    ),
    *(
        (f"{HEAD}tasks:\n - {{{text}}}", code, 4, column - 1, f"tasks.0{context}", part)
        for text, code, column, context, part in TASK
    ),
]


@pytest.mark.parametrize(("text", "code", "line", "column", "context", "part"), ERRORS)
def test_one_error_at_its_line_and_column(
    text: str, code: str, line: int, column: int, context: str, part: str
) -> None:
    found = [error for error in errors_of(text) if error.code == code]
    assert len(found) == 1, [error.render() for error in errors_of(text)]
    origin = found[0].origin
    assert origin is not None
    assert (origin.line, origin.column, origin.context) == (line, column, context)
    assert part in found[0].render()
    assert not re.search(r"Input|pydantic|\bvalid\b|tuple|dict|\bstr\b|None", found[0].render())


def test_all_errors_are_reported_in_the_order_of_the_text() -> None:
    found = errors_of(
        "version: 2\n"
        "taks: []\n"
        "source: {hub: name, revison: x}\n"
        "run: {seed: -1}\n"
        "tasks:\n"
        "  - {type: generat}\n"
        "  - {type: logits, tokens: [x]}\n"
        "name: '${x}'\n"
    )
    places = [(error.code, error.origin and error.origin.line) for error in found]
    assert places == [
        ("unknown-value", 1),
        ("unknown-key", 2),
        ("bad-name", 3),
        ("unknown-key", 3),
        ("out-of-range", 4),
        ("unknown-task", 6),
        ("wrong-type", 7),
        ("bad-interpolation", 8),
    ]


def test_ids_must_differ_even_where_case_is_ignored() -> None:
    tasks = "tasks:\n- {type: logits, tokens: [1], id: A}\n- {type: logits, tokens: [1], id: a}\n"
    (error,) = errors_of(HEAD + tasks)
    assert (error.code, str(error.origin)) == ("duplicate-id", "spec.yaml:5:35")


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"k{i}: 1\n" for i in range(40_000)),
        "naming: {drop: [" + "3," * 90_000 + "]}",
        "quantization: {precedence: " + "a>" * 300_000 + "}",
        "tasks: [" + "{type: logits, tokens: []}," * 15_000 + "]",
    ],
    ids=["keys", "items", "names", "tasks"],
)
def test_thousands_of_errors_take_no_time(text: str) -> None:
    begin = time.process_time()
    found = errors_of(HEAD + text)
    assert len(found) <= 101
    assert time.process_time() - begin < 10
