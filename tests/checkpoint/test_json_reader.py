"""The strict JSON reader and the places of JSON pointers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from checkpoint_files import Refused, write
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxpipe.checkpoint import json_pointer, parse_json, pointer_position, read_json
from mlxpipe.checkpoint.json_positions import MAX_POSITION_BYTES, scan
from mlxpipe.errors import SourceError

TEXT = """{
  "model_type": "tiny",
  "quantization": {
    "bits": 4,
    "model.layers.0.mlp/gate": {"bits": 8},
    "a~b": [1, {"x": "}"}, [], 2]
  }
}
"""


def test_a_valid_document():
    assert parse_json(TEXT, "config.json") == json.loads(TEXT)


def test_infinity_as_transformers_writes_it():
    assert parse_json('{"limit": Infinity}', "config.json") == {"limit": math.inf}


def test_malformed_json_is_shown_at_its_line_and_column():
    with Refused("malformed-json") as refused:
        parse_json('{\n  "bits": 4,,\n}', "config.json")
    assert "config.json:2:13" in refused.text
    assert '"bits": 4,,' in refused.text


def test_one_long_line_is_not_quoted():
    with Refused("malformed-json") as refused:
        parse_json('{"a": [' + "1," * 1000 + "]}", "config.json")
    assert len(refused.text) < 400


def test_duplicate_key_is_shown_where_it_stands_again():
    with Refused("duplicate-key") as refused:
        parse_json('{\n "a": {"bits": 4,\n  "bits": 8}\n}', "config.json")
    assert "config.json:3:3#/a/bits" in refused.text


def test_duplicate_key_hidden_by_an_escape():
    with Refused("duplicate-key"):
        parse_json('{"a": 1, "\\u0061": 2}', "config.json")


def test_colons_in_strings_are_no_duplicates():
    assert parse_json('{"a": "b:c", "d:e": ["f:"]}', "x") == {"a": "b:c", "d:e": ["f:"]}


def test_deep_nesting():
    with Refused("json-too-deep"):
        parse_json("[" * 100_000, "config.json")


def test_a_number_of_thousands_of_digits():
    with Refused("malformed-json"):
        parse_json('{"a": ' + "9" * 5000 + "}", "config.json")


def test_not_utf8(tmp_path: Path):
    write(tmp_path, {"config.json": b'{"a": "\xff"}'})
    with Refused("not-utf8") as refused:
        read_json(tmp_path / "config.json", "config.json")
    assert "offset 7" in refused.text


def test_too_large(tmp_path: Path):
    write(tmp_path, {"config.json": b'{"a": 1}'})
    assert read_json(tmp_path / "config.json", "config.json", limit=8) == {"a": 1}
    with Refused("json-too-large"):
        read_json(tmp_path / "config.json", "config.json", limit=7)


def test_missing_and_irregular_files(tmp_path: Path):
    with Refused("missing-file"):
        read_json(tmp_path / "config.json", "config.json")
    with Refused("unreadable-file"):
        read_json(tmp_path, "config.json")
    with Refused("unreadable-file"):
        read_json(Path("a\0b"), "config.json")


@settings(deadline=None)
@given(st.text(st.sampled_from('{}[]",:\\0ax \n')))
def test_any_text_raises_nothing_but_a_source_error(text: str):
    try:
        data = parse_json(text, "x")
    except SourceError as error:
        assert str(error)
    else:
        assert data == json.loads(text)


# ---------------------------------------------------------------------- pointers


def test_json_pointer_escapes():
    assert json_pointer() == ""
    assert json_pointer("a/b", "c~d", 0) == "/a~1b/c~0d/0"


@pytest.mark.parametrize(
    ("pointer", "line", "column", "width"),
    [
        ("", 1, 1, 1),
        ("/model_type", 2, 3, 12),
        ("/quantization/bits", 4, 5, 6),
        ("/quantization/model.layers.0.mlp~1gate", 5, 5, 25),
        ("/quantization/model.layers.0.mlp~1gate/bits", 5, 33, 6),
        ("/quantization/a~0b/0", 6, 13, 1),
        ("/quantization/a~0b/1/x", 6, 17, 3),
        ("/quantization/a~0b/3", 6, 32, 1),
    ],
)
def test_a_pointer_has_a_line_and_a_column(pointer: str, line: int, column: int, width: int):
    place = pointer_position(TEXT, pointer)
    assert place is not None
    assert (place.line, place.column, place.width) == (line, column, width)
    assert place.text == TEXT.splitlines()[line - 1]


def test_a_pointer_that_is_not_there():
    assert pointer_position(TEXT, "/quantization/group_size") is None


def test_a_very_large_document_has_no_lines():
    assert pointer_position('{"a": "' + "x" * MAX_POSITION_BYTES + '"}', "/a") is None


_documents = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=12,
)


def _pointers(data: object, here: str = "") -> list[str]:
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list)
        else ()
    )
    return [here] + [p for key, value in items for p in _pointers(value, here + json_pointer(key))]


@settings(deadline=None)
@given(_documents, st.sampled_from([None, 1]))
def test_every_pointer_of_a_document_is_found_once_and_in_order(data: object, indent: int | None):
    text = json.dumps(data, indent=indent)
    assert [place.pointer for place in scan(text)] == _pointers(data)
