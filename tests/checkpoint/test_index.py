"""The quick look at an index says yes only where parsing it would."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoint_files import Refused, weights, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxpipe.checkpoint import open_directory
from mlxpipe.checkpoint.index import INDEX, is_plain, read_index
from mlxpipe.checkpoint.inventory import Tensor
from mlxpipe.errors import SourceError

FILES = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
ONE, TWO = FILES

#: How transformers, mlx-lm and others write JSON.
STYLES = ({}, {"indent": 2}, {"indent": 4}, {"indent": 1}, {"indent": "\t"})

names = st.text(st.sampled_from('ab."\\:,} \u00e9'), min_size=1, max_size=6)
tables = st.dictionaries(names, st.sampled_from([0, 1]), min_size=1, max_size=5)


def tensors_of(table):
    return [Tensor(name, "U8", (1,), shard, 0, 1) for name, shard in table.items()]


def written(table, style, tail=None):
    rows = {name: FILES[shard] for name, shard in table.items()}
    return json.dumps({"metadata": {"total_size": 7}, "weight_map": rows, **(tail or {})}, **style)


@given(tables, st.sampled_from(STYLES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_a_plain_index_is_known_in_either_order(tmp_path, table, style):
    path = tmp_path / INDEX
    path.write_text(written(table, style), encoding="utf-8")
    rows = tensors_of(table)
    escaped = any(name != json.dumps(name)[1:-1] for name in table)
    assert is_plain(path, "index", FILES, [rows]) is not escaped
    assert is_plain(path, "index", FILES, [rows[::-1], rows]) is not escaped


@given(tables, tables, st.sampled_from(STYLES))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_another_table_is_never_plain(tmp_path, table, other, style):
    path = tmp_path / INDEX
    path.write_text(written(table, style), encoding="utf-8")
    if table != other:
        assert not is_plain(path, "index", FILES, [tensors_of(other)])


@given(tables, st.integers(0, 400), st.text(st.sampled_from('"{}[],: ab\\n'), max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_a_damaged_text_is_plain_only_where_parsing_gives_the_same(tmp_path, table, at, put):
    text = written(table, {"indent": 2})
    path = tmp_path / INDEX
    path.write_text(text[:at] + put + text[at + 1 :], encoding="utf-8")
    try:
        plain = is_plain(path, "index", FILES, [tensors_of(table)])
    except SourceError:
        return
    if plain:
        assert read_index(path, "index") == {name: FILES[shard] for name, shard in table.items()}


def test_a_name_cannot_pass_for_two_rows(tmp_path):
    sly = f'a": "{ONE}", "b'
    path = tmp_path / INDEX
    path.write_text(written({"a": 0, "b": 0}, {}), encoding="utf-8")
    assert not is_plain(path, "index", FILES, [tensors_of({sly: 0})])


@pytest.mark.parametrize("style", STYLES)
def test_rows_beyond_the_tensors_are_found(tmp_path: Path, style):
    write(tmp_path, {ONE: weights("a"), TWO: weights("b")})
    (tmp_path / INDEX).write_text(written({"a": 0, "b": 1, "c": 1}, style), encoding="utf-8")
    with Refused("lying-index"):
        open_directory(tmp_path)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "a", "b")])
def test_a_directory_opens_whatever_the_order_of_its_index(tmp_path: Path, style, names):
    shard = {"c": 0, "a": 0, "b": 1}
    write(tmp_path, {ONE: weights("c", "a"), TWO: weights("b")})
    (tmp_path / INDEX).write_text(written({name: shard[name] for name in names}, style))
    found = open_directory(tmp_path).tensors
    assert {name: tensor.shard for name, tensor in found.items()} == shard
