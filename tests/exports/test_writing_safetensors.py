"""Files written tensor by tensor are what the safetensors library reads."""

from __future__ import annotations

from hashlib import sha256

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import load_file

from mlxpipe.checkpoint.header import read_header
from mlxpipe.exports import safetensors
from mlxpipe.exports.files import entries_of
from mlxpipe.exports.safetensors import Entry, fill, header, lay_out

NUMPY = ("bool", "uint8", "int8", "uint16", "int32", "uint32", "int64", "float16", "float32")

arrays = st.dictionaries(
    st.text(st.characters(codec="utf-8", categories=["L", "N", "P"]), min_size=1, max_size=20),
    st.sampled_from(NUMPY).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0))
    ),
    max_size=6,
).filter(lambda tensors: "__metadata__" not in tensors)


def write(path, tensors, metadata=None, sinks=()):
    entries = entries_of(tensors)
    lay_out(path, entries, metadata or {})
    fill(path, entries, tensors, sinks)
    return path


@given(arrays, st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=2))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_library_reads_what_was_written(tmp_path, tensors, metadata):
    path = tmp_path / "model.safetensors"
    path.unlink(missing_ok=True)
    write(path, {name: mx.array(array) for name, array in tensors.items()}, metadata)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
    with safe_open(path, "numpy") as file:
        assert (file.metadata() or {}) == metadata
    assert [tensor.name for tensor in read_header(path, "file").tensors] == list(tensors)


def test_what_numpy_does_not_have(tmp_path):
    tensor = mx.array([[1.5, -2.0], [3.0, 0.25]]).astype(mx.bfloat16)
    path = write(tmp_path / "file", {"a": tensor, "b": mx.array(7.0, mx.bfloat16)})
    found = mx.load(str(path), format="safetensors")
    assert mx.array_equal(found["a"], tensor)
    assert (found["b"].dtype, found["b"].shape) == (mx.bfloat16, ())


@pytest.mark.parametrize(
    "view",
    [
        lambda array: array.T,
        lambda array: array[::2, 1:],
        lambda array: mx.broadcast_to(array[:1], array.shape),
        lambda array: array[::-1],
    ],
)
def test_views_are_written_in_the_order_of_their_elements(tmp_path, view):
    array = view(mx.arange(24, dtype=mx.uint32).reshape(4, 6))
    found = load_file(write(tmp_path / "file", {"a": array}))["a"]
    assert found.tolist() == array.tolist()


def test_pieces_of_a_large_tensor_are_one_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "PIECE_BYTES", 7)
    sizes, digest = [], sha256()
    path = write(
        tmp_path / "file",
        {"a": mx.arange(25, dtype=mx.uint16)},
        sinks=[lambda piece: sizes.append(len(piece)), digest.update],
    )
    assert load_file(path)["a"].tolist() == list(range(25))
    assert sizes[1:] == [7] * 7 + [1]
    assert digest.hexdigest() == sha256(path.read_bytes()).hexdigest()


def test_arrays_are_forgotten_once_written(tmp_path):
    tensors = {"a": mx.ones(3), "b": mx.zeros(2)}
    write(tmp_path / "file", tensors)
    assert tensors == {}


def test_data_begin_aligned():
    for length in range(20):
        start = header([Entry("n" * (length + 1), "U8", (3,))], {})
        assert len(start) % safetensors.ALIGNMENT == 0


def test_a_laid_out_file_has_its_full_size_and_a_sound_header(tmp_path):
    lay_out(tmp_path / "file", [Entry("a", "BF16", (3, 5))], {"format": "mlx"})
    found = read_header(tmp_path / "file", "file")
    assert found.size == (tmp_path / "file").stat().st_size
    assert found.metadata == {"format": "mlx"}


def test_a_file_is_never_written_over(tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        lay_out(tmp_path / "file", [], {})
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_nan_payloads_and_negative_zero_survive(tmp_path):
    bits = np.array([0x7FC00001, 0x80000000, 0x7F800001], dtype=np.uint32)
    array = mx.array(bits).view(mx.float32)
    assert load_file(write(tmp_path / "f", {"a": array}))["a"].view(np.uint32).tolist() == [*bits]
