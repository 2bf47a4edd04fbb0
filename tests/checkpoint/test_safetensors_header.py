"""Every rule of the safetensors format, one test named after each attack."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import Refused, blob
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save

from mlxpipe.checkpoint.entry import DTYPE_BITS
from mlxpipe.checkpoint.header import MAX_HEADER_BYTES, Header, parse_header, read_header
from mlxpipe.errors import SourceError


@pytest.fixture
def read(tmp_path: Path):
    def read(content: bytes) -> Header:
        path = tmp_path / "model.safetensors"
        path.write_bytes(content)
        return read_header(path, "model.safetensors")

    return read


def entry(dtype: object = "U8", shape: object = (1,), offsets: object = (0, 1)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# ---------------------------------------------------------------------- what is right


def test_a_valid_header_gives_absolute_offsets(read):
    raw = (
        b'{"__metadata__":{"format":"mlx"},'
        b'"b":{"dtype":"BF16","shape":[2,2],"data_offsets":[4,12]},'
        b'"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}  '
    )
    header = read(blob(raw, bytes(12)))
    base = 8 + len(raw)
    assert header.metadata == {"format": "mlx"}
    assert header.size == base + 12
    assert header.tensors == [
        ("a", "F32", (), 0, base, base + 4),
        ("b", "BF16", (2, 2), 0, base + 4, base + 12),
    ]
    assert [tensor.nbytes for tensor in header.tensors] == [4, 8]


def test_zero_sized_tensors_are_allowed_anywhere_between_tensors(read):
    header = read(
        blob(
            {
                "z": entry("F32", [0, 7], [1, 1]),
                "a": entry("U8", [1], [0, 1]),
                "e": entry("U8", [1], [1, 2]),
                "y": entry("F32", [0], [2, 2]),
            },
            b"12",
        )
    )
    assert [tensor.name for tensor in header.tensors] == ["a", "z", "e", "y"]


def test_a_file_without_tensors_is_valid(read):
    assert read(b"\x08\0\0\0\0\0\0\0{}      ").tensors == []


def test_white_space_and_colons_do_not_make_a_duplicate(read):
    raw = b'{ "a:b" : {"dtype" :"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{"k":"a:b"}}'
    assert [tensor.name for tensor in read(blob(raw, b"1")).tensors] == ["a:b"]


def test_sub_byte_dtypes_fill_whole_bytes(read):
    header = read(
        blob({"a": entry("F4", [4], [0, 2]), "b": entry("F6_E2M3", [4], [2, 5])}, b"12345")
    )
    assert [tensor.nbytes for tensor in header.tensors] == [2, 3]


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_every_dtype_of_safetensors_is_known(read, dtype: str):
    size = DTYPE_BITS[dtype]
    assert read(blob({"a": entry(dtype, [8], [0, size])}, bytes(size))).tensors[0].dtype == dtype


# ---------------------------------------------------------------------- the file


@pytest.mark.parametrize("content", [b"", b"\x02", b"\x02\0\0\0\0\0\0"])
def test_shorter_than_eight_bytes(read, content: bytes):
    with Refused("header-too-small") as refused:
        read(content)
    assert f"{len(content)} bytes" in refused.text


def test_header_length_above_the_limit(read):
    with Refused("header-too-large"):
        read((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{}")


def test_header_length_wraps_around(read):
    with Refused("header-too-large"):
        read(b"\xff\xff\xff\xff\xff\xff\xff\xff{}")


def test_header_length_beyond_the_file(read):
    with Refused("header-truncated") as refused:
        read(b"\x09\0\0\0\0\0\0\0{}      ")
    assert "9 bytes" in refused.text
    assert "at most 8 bytes" in refused.text


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"GGUF\x03\0\0\0 and so on", "safetensors only"),
        (b"<!DOCTYPE html><html>", "log in"),
        (b"PK\x03\x04 and so on", "convert"),
    ],
)
def test_something_else_in_the_place_of_safetensors(read, content: bytes, advice: str):
    with Refused("not-safetensors") as refused:
        read(content)
    assert advice in refused.text


def test_missing_file(tmp_path: Path):
    with Refused("missing-file"):
        read_header(tmp_path / "model.safetensors", "model.safetensors")


def test_a_directory_in_the_place_of_a_file(tmp_path: Path):
    with Refused("unreadable-file"):
        read_header(tmp_path, "model.safetensors")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_before_it_blocks(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with Refused("unreadable-file"):
        read_header(tmp_path / "pipe", "pipe")


# ---------------------------------------------------------------------- the JSON


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b' {"a":1}',
        b"\xef\xbb\xbf{}",
        b"{",
        b'{"a":}',
        b"{} {}",
        b'{"a\xff":1}',
        b"{\0",
        '{"a": 1}'.encode("utf-16"),
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_header_is_not_a_json_object(raw: bytes):
    with Refused("header-not-json"):
        parse_header(raw, 8 + len(raw), "model.safetensors")


def test_one_tensor_twice(read):
    one = b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    with Refused("duplicate-key") as refused:
        read(blob(b"{" + one + b"," + one + b"}", b"1"))
    assert "/a" in refused.text


def test_one_tensor_twice_hidden_by_an_escape(read):
    a = b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    with Refused("duplicate-key"):
        read(blob(b'{"a":' + a + b',"\\u0061":' + a + b"}", b"1"))


def test_one_field_twice(read):
    raw = b'{"a":{"dtype":"F64","dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    with Refused("duplicate-key") as refused:
        read(blob(raw, b"1"))
    assert "/a/dtype" in refused.text


def test_metadata_twice(read):
    with Refused("duplicate-key"):
        read(blob(b'{"__metadata__":{},"__metadata__":{}}'))


def test_metadata_null_as_mlx_writes_it(read):
    assert read(blob({"__metadata__": None, "a": entry()}, b"1")).metadata == {}


@pytest.mark.parametrize("metadata", [[], "pt", {"a": 1}, {"a": {"b": "c"}}, {"a": None}])
def test_metadata_is_not_text(read, metadata: object):
    with Refused("bad-metadata"):
        read(blob({"__metadata__": metadata}))


@pytest.mark.parametrize(
    "name",
    ["", "a\n", "a\0b", "\x1b[31m", "\x7f", "\x85", "a\u2028b", "\u202eb", "\ud800", "x" * 2000],
)
def test_names_that_garble_a_report(read, name: str):
    with Refused("bad-name") as refused:
        read(blob({name: entry()}, b"1"))
    assert refused.text.isprintable() or "\x1b" not in refused.text


def test_names_in_any_script_are_fine(read):
    assert read(blob({"schicht.ä.重み": entry()}, b"1")).tensors[0].name == "schicht.ä.重み"


# ---------------------------------------------------------------------- the entries


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "U8",
        [],
        {},
        {"dtype": "U8", "shape": [1]},
        {"dtype": "U8", "shape": [1], "offsets": [0, 1]},
        {**entry(), "extra": 1},
        entry(dtype=8),
        entry(dtype=["U8"]),
        entry(dtype=None),
        entry(shape="[1]"),
        entry(shape={"0": 1}),
        entry(shape=1),
    ],
)
def test_entry_is_not_dtype_shape_and_offsets(read, value: object):
    with Refused("bad-entry") as refused:
        read(blob({"a": value}, b"1"))
    assert "#/a" in refused.text


@pytest.mark.parametrize("dtype", ["", "u8", "F31", "F8_E4M3FN", "U8 "])
def test_unknown_dtype(read, dtype: str):
    with Refused("unknown-dtype") as refused:
        read(blob({"a": entry(dtype)}, b"1"))
    assert "F8_E4M3" in refused.text


@pytest.mark.parametrize(
    "shape",
    [
        [-1],
        [-1, -1],
        [True],
        [1.0],
        ["1"],
        [None],
        [[1]],
        [2**31],
        [2**32 + 1],
        [2**63],
        [2**64 + 1],
        [2**31 - 1] * 3,
        [0, 2**30, 2**30, 2**30],
        [1] * 65,
    ],
)
def test_impossible_shape(read, shape: list):
    with Refused("bad-shape"):
        read(blob({"a": entry("U8", shape)}, b"1"))


def test_sub_byte_elements_end_inside_a_byte(read):
    with Refused("bad-shape"):
        read(blob({"a": entry("F4", [3], [0, 2])}, b"12"))


def test_true_is_not_one_even_after_a_valid_one(read):
    with Refused("bad-shape"):
        read(blob({"a": entry("U8", [1], [0, 1]), "b": entry("U8", [True], [1, 2])}, b"12"))


@pytest.mark.parametrize(
    "offsets",
    [
        [1, 0],
        [0, 2],
        [0, 0],
        [-1, 0],
        [0.0, 1.0],
        [False, True],
        ["0", "1"],
        [0],
        [0, 1, 2],
        "01",
        {"0": 0, "1": 1},
        None,
        1,
        [None, 1],
        [2**64, 2**64 + 1],
        [10**4000, 10**4000 + 1],
    ],
)
def test_offsets_that_do_not_fit_the_tensor(read, offsets: object):
    with Refused("bad-offsets"):
        read(blob({"a": entry(offsets=offsets)}, b"1"))


# ---------------------------------------------------------------------- the data


def test_overlap(read):
    with Refused("overlap") as refused:
        read(blob({"a": entry("U8", [4], [0, 4]), "b": entry("U8", [4], [2, 6])}, bytes(6)))
    assert "'b'" in refused.text
    assert "'a'" in refused.text


def test_two_tensors_in_one_place(read):
    with Refused("overlap"):
        read(blob({"a": entry(), "b": entry()}, b"1"))


def test_a_zero_sized_tensor_inside_another(read):
    with Refused("overlap"):
        read(blob({"a": entry("U8", [4], [0, 4]), "b": entry("U8", [0], [2, 2])}, bytes(4)))


def test_hole_between_tensors(read):
    with Refused("hole") as refused:
        read(blob({"a": entry(), "b": entry("U8", [1], [3, 4])}, bytes(4)))
    assert "2 bytes after 'a'" in refused.text


def test_hole_at_the_beginning(read):
    with Refused("hole"):
        read(blob({"a": entry("U8", [1], [1, 2])}, bytes(2)))


def test_truncated(read):
    with Refused("truncated") as refused:
        read(blob({"a": entry("U8", [4], [0, 4])}, bytes(3)))
    assert "1 bytes are missing" in refused.text
    assert "download" in refused.text


def test_trailing_bytes(read):
    with Refused("trailing-bytes"):
        read(blob({"a": entry()}, bytes(2)))


def test_offsets_far_outside_the_file(read):
    with Refused("truncated"):
        read(blob({"a": entry("U8", [2**31 - 1], [0, 2**31 - 1])}, b"1"))


# ---------------------------------------------------------------------- properties

_names = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)
_arrays = hnp.arrays(
    st.sampled_from(["u1", "i2", "u4", "f2", "f4", "f8", "i8", "?"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
_DTYPES = {"u1": "U8", "i2": "I16", "u4": "U32", "f2": "F16", "f4": "F32", "f8": "F64", "i8": "I64"}


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(_names.filter(lambda name: name != "__metadata__"), _arrays, max_size=6))
def test_what_the_library_writes_is_read_back(arrays: dict[str, np.ndarray]):
    content = save(arrays, metadata={"note": 'colons: "and" quotes'})
    length = int.from_bytes(content[:8], "little")
    header = parse_header(content[8 : 8 + length], len(content), "x")
    assert {tensor.name for tensor in header.tensors} == set(arrays)
    for name, dtype, shape, _, start, stop in header.tensors:
        array = arrays[name]
        assert dtype == _DTYPES.get(array.dtype.str[1:], "BOOL")
        assert shape == array.shape
        assert content[start:stop] == array.tobytes()


_VALID = blob(
    {
        "__metadata__": {"format": "pt"},
        "a.weight": entry("BF16", [2, 3], [0, 12]),
        "b.weight": entry("F4", [4], [12, 14]),
        "c": entry("F32", [0], [14, 14]),
    },
    bytes(14),
)
_edits = st.lists(
    st.tuples(
        st.integers(0, len(_VALID)), st.integers(0, 3), st.binary(max_size=3) | st.just(b"-9e")
    ),
    max_size=4,
)


@settings(deadline=None, max_examples=400)
@given(_edits)
@example([(0, 8, b"")])
def test_a_damaged_file_raises_nothing_but_a_source_error(edits: list[tuple[int, int, bytes]]):
    content = bytearray(_VALID)
    for position, removed, added in edits:
        content[position : position + removed] = added
    length = int.from_bytes(content[:8], "little")
    raw = bytes(content[8 : 8 + length])
    try:
        header = parse_header(raw, len(content), "x")
    except SourceError as error:
        assert error.diagnostics[0].help
    else:
        end = 8 + len(raw)
        for tensor in header.tensors:
            assert tensor.start == end
            end = tensor.stop
        assert end == len(content)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
_fields = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(list(DTYPE_BITS)) | _values,
        "shape": st.lists(st.integers(-1, 2**64), max_size=3) | _values,
        "data_offsets": st.lists(st.integers(-1, 20), min_size=2, max_size=2) | _values,
    }
)


@settings(deadline=None, max_examples=300)
@given(
    st.dictionaries(st.text(max_size=5) | st.just("__metadata__"), _fields | _values, max_size=4)
)
def test_any_json_raises_nothing_but_a_source_error(header: dict):
    raw = json.dumps(header).encode()
    try:
        parse_header(raw, 8 + len(raw), "x")
    except SourceError as error:
        assert str(error)


def test_read_header_reads_no_weights(tmp_path: Path):
    path = tmp_path / "sparse.safetensors"
    raw = json.dumps({"a": entry("U8", [2**30], [0, 2**30])}).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 2**30)
    assert read_header(path, "x").tensors[0].nbytes == 2**30
