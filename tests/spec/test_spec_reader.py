"""Strict YAML: scalars of the core schema, positions, and what is refused, at its place."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import pytest

from mlxpipe.errors import MlxpipeError, SourceError, UsageError
from mlxpipe.spec import reader
from mlxpipe.spec.reader import read_yaml

SCALARS = {
    "yes": "yes",
    "No": "No",
    "on": "on",
    "off": "off",
    "y": "y",
    "true": True,
    "True": True,
    "TRUE": True,
    "tRUE": "tRUE",
    "false": False,
    "null": None,
    "Null": None,
    "NULL": None,
    "~": None,
    "": None,
    "nUll": "nUll",
    "0": 0,
    "017": 17,
    "-017": -17,
    "+5": 5,
    "08": 8,
    "0o17": 15,
    "0O17": "0O17",
    "0x1F": 31,
    "-0x1F": "-0x1F",
    "0b1": "0b1",
    "1_000": "1_000",
    "1,000": "1,000",
    "١": "١",
    "1e3": 1000.0,
    "1.": 1.0,
    ".5": 0.5,
    "-.5e-1": -0.05,
    "1.5E+2": 150.0,
    "1.2.3": "1.2.3",
    ".inf": math.inf,
    "-.Inf": -math.inf,
    "+.INF": math.inf,
    "inf": "inf",
    "nan": "nan",
    "12:30:00": "12:30:00",
    "190:20": "190:20",
    "2026-01-01": "2026-01-01",
    "=": "=",
    "'1'": "1",
    '"true"': "true",
    "''": "",
    "|\n  1": "1",
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items())
def test_a_scalar_reads_as_in_the_core_schema(text: str, value: object) -> None:
    read = read_yaml(f"a: {text}").data["a"]
    assert (type(read), read) == (type(value), value)


@pytest.mark.parametrize("text", [".nan", ".NaN", ".NAN"])
def test_not_a_number(text: str) -> None:
    assert math.isnan(read_yaml(f"a: {text}").data["a"])


REFUSED = [
    # (text, code, line, column, part of the rendered error)
    ("a: &x 1", "yaml-anchor", 1, 4, "^^\n"),
    ("a: &x\n  b: 1", "yaml-anchor", 1, 4, "write the value out"),
    ("&a b: 1", "yaml-anchor", 1, 1, ""),
    ("a: 1\nb: *x", "yaml-alias", 2, 4, "quotes"),
    ("match: *.mlp.gate", "yaml-alias", 1, 8, "'*.mlp.gate'"),
    ("a: !!str x", "yaml-tag", 1, 4, "^^^^^"),
    ("a: !!python/object/apply:os.system [ls]", "yaml-tag", 1, 4, ""),
    ("a: ! 12", "yaml-tag", 1, 4, ""),
    ("a: ! 'x'", "yaml-tag", 1, 4, ""),
    ("!!set {a}", "yaml-tag", 1, 1, ""),
    ("a: !<tag:x> 1", "yaml-tag", 1, 4, ""),
    ("%TAG ! tag:x\n---\na: 1", "yaml-directive", 1, 1, ""),
    ("%YAML 1.1\n---\na: 1", "yaml-directive", 1, 1, ""),
    ("a: 1\nb: 2\n'a': 3", "duplicate-key", 3, 1, "line 1"),
    ("s: {b: 1, b: 2}", "duplicate-key", 1, 11, "(s)"),
    ("1: a", "non-string-key", 1, 1, "'1'"),
    ("~: a", "non-string-key", 1, 1, ""),
    ("true: a", "non-string-key", 1, 1, ""),
    ("? [a]\n: 1", "non-string-key", 1, 3, ""),
    ("{a: 1}: 2", "non-string-key", 1, 1, ""),
    ("b: {<<: {a: 1}}", "merge-key", 1, 5, ""),
    ("a: 1\n---\nb: 2", "several-documents", 2, 1, ""),
    ("a: 1\n...\nb: 2", "yaml-syntax", 3, 1, "document"),
    ("", "empty-document", 1, 1, ""),
    ("# only a comment\n", "empty-document", 1, 1, ""),
    ("---\n", "empty-document", 1, 1, ""),
    ("null", "empty-document", 1, 1, ""),
    ("- a", "not-a-mapping", 1, 1, ""),
    ("text", "not-a-mapping", 1, 1, ""),
    ("a:\n\tb: 1", "yaml-syntax", 2, 1, "spaces, not with tabs"),
    ("a: b: c", "yaml-syntax", 1, 5, "quotes"),
    ("a: [1, 2", "yaml-syntax", 1, 4, ""),
    ("a: 'x\nb: 1", "yaml-syntax", 1, 4, ""),
    ("a: @x", "yaml-syntax", 1, 4, "begins with @"),
    (r'a: "\d"', "yaml-syntax", 1, None, "single quotes"),
    ("a: x\x07", "control-character", 1, 5, "U+0007"),
    ("a: é\x85", "control-character", 1, 5, "U+0085"),
    ("a: 1\nb: \u2028", "control-character", 2, 4, "U+2028"),
    ("a: \ud800", "control-character", 1, 4, "U+D800"),
    ("a: 1\n\ufeffb: 2", "control-character", 2, 1, "U+FEFF"),
    ("a: " + "9" * 41, "number-too-long", 1, 4, ""),
    ("é: {'ü': &x 1}", "yaml-anchor", 1, 10, ""),
]


@pytest.mark.parametrize(("text", "code", "line", "column", "part"), REFUSED)
def test_refused_at_its_line_and_column(
    text: str, code: str, line: int, column: int | None, part: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_yaml(text, "f.yaml")
    origin = caught.value.diagnostics[0].origin
    assert origin is not None
    assert (caught.value.code, origin.file, origin.line) == (code, "f.yaml", line)
    assert column is None or origin.column == column
    assert part in str(caught.value) + "\n"


ATTACKS = [
    ("deep flow lists", "a: " + "[" * 100_000, "too-deep"),
    ("deep flow mappings", "a: " + "{a: " * 100_000, "too-deep"),
    ("deep block lists", "a:\n" + "- " * 100_000, "too-deep"),
    ("deep at the top", "[" * 100_000, "not-a-mapping"),
    ("deep keys", "? " * 100_000, "non-string-key"),
    ("billion laughs", "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]", "yaml-anchor"),
    ("many values", "a: [" + "1," * 200_000 + "]", "too-many-values"),
    ("many absent values", "a: {" + ",".join(f"k{i}" for i in range(60_000)) + "}", "too-many"),
    ("a long number", "a: " + "9" * 500_000, "number-too-long"),
    ("a long hexadecimal number", "a: 0x" + "f" * 500_000, "number-too-long"),
    ("a long text", "a: " + "x" * (1 << 20), "file-too-large"),
    ("unfinished escapes", 'a: "' + r"\x41" * 200_000, "yaml-syntax"),
]


@pytest.mark.parametrize(
    ("text", "code"), [row[1:] for row in ATTACKS], ids=[r[0] for r in ATTACKS]
)
def test_an_attack_is_refused_soon(text: str, code: str) -> None:
    begin = time.process_time()
    with pytest.raises(UsageError) as caught:
        read_yaml(text)
    assert caught.value.code.startswith(code)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - begin < 10


def test_the_deepest_value_allowed() -> None:
    text = "a: " + "[" * (reader.MAX_DEPTH - 1) + "]" * (reader.MAX_DEPTH - 1)
    assert read_yaml(text).data["a"] == eval("[" * 31 + "]" * 31)


TEXT = """\
# a comment
top: {flow: [1, 'zwei'], é: x}
list:
- one
-
  - key: |
      several
      lines
    none:
last: "q"
"""

PLACES = [
    # (path, key?, line, column, width)
    ((), False, 2, 1, 3),
    (("top",), True, 2, 1, 3),
    (("top",), False, 2, 6, 25),
    (("top", "flow", 1), False, 2, 17, 6),
    (("top", "é"), True, 2, 26, 1),
    (("top", "é"), False, 2, 29, 1),
    (("list",), False, 4, 1, 1),
    (("list", 0), False, 4, 3, 3),
    (("list", 0), True, 4, 3, 3),
    (("list", 1, 0), False, 6, 5, 3),
    (("list", 1, 0, "key"), False, 6, 10, 1),
    (("list", 1, 0, "none"), False, 9, 5, 4),
    (("last",), False, 10, 7, 3),
    (("last", "missing", 3), False, 10, 7, 3),
    (("top", "missing"), True, 2, 1, 3),
    (("missing",), True, 2, 1, 3),
]


@pytest.mark.parametrize(("path", "key", "line", "column", "width"), PLACES)
def test_every_value_knows_its_place(
    path: tuple[str | int, ...], key: bool, line: int, column: int, width: int
) -> None:
    origin = read_yaml(TEXT, "f.yaml").positions.origin(path, key=key)
    assert (origin.line, origin.column, origin.width) == (line, column, width)
    assert origin.text == TEXT.split("\n")[line - 1]
    assert origin.context == ".".join(map(str, path[:-1]))


@pytest.mark.parametrize("line_break", ["\n", "\r\n", "\r"])
def test_line_breaks_and_a_byte_order_mark(line_break: str, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes(f"\ufeffa: 1{line_break}b: x{line_break}".encode())
    document = read_yaml(file)
    assert document.data == {"a": 1, "b": "x"}
    assert (document.positions.origin(("b",)).line, document.positions.lines[1]) == (2, "b: x")


def test_the_pure_parser_agrees_on_places(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = read_yaml(TEXT)
    monkeypatch.setattr(reader, "_LOADER", reader.yaml.SafeLoader)
    assert read_yaml(TEXT) == compiled


def test_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_bytes("a: 1\né: ".encode() + b"\xff")
    with pytest.raises(UsageError) as caught:
        read_yaml(file, "f.yaml")
    assert caught.value.code == "not-utf8"
    assert str(caught.value.diagnostics[0].origin) == "f.yaml:2:4"
    assert "0xff at offset 9" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("a: 1")
    (tmp_path / "large.yaml").write_bytes(b"#" * (reader.MAX_BYTES + 1))
    expected = {
        "spce.yaml": ("file-not-found", "did you mean 'spec.yaml'?"),
        ".": ("not-a-file", "directory"),
        "large.yaml": ("file-too-large", "1 MiB"),
        "x" * 5000: ("unreadable-file", "too long"),
        "spec.yaml/x": ("file-not-found", "check the path"),
    }
    for name, (code, part) in expected.items():
        with pytest.raises(UsageError, match=re.escape(part)) as caught:
            read_yaml(tmp_path / name)
        assert caught.value.code == code


def test_the_caller_chooses_the_error() -> None:
    with pytest.raises(SourceError) as caught:
        read_yaml("a: *b", error=SourceError)
    assert isinstance(caught.value, MlxpipeError)


def test_an_excerpt_is_fit_for_a_terminal() -> None:
    with pytest.raises(UsageError) as caught:
        read_yaml("a:\t'\x1b[31m'")
    assert "\x1b" not in str(caught.value)
    assert "\t" not in str(caught.value)
