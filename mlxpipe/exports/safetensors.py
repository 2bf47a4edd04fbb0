"""Write safetensors files tensor by tensor: first the header, then the data as it comes.

The safetensors library and MLX want every tensor of a file in memory at once. Here shapes and
dtypes, which lazy arrays know, make the header; each array is computed when its turn comes and
forgotten once written, so that peak memory is a few tensors.

https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from mlxpipe.checkpoint.entry import DTYPE_BITS

if TYPE_CHECKING:
    import mlx.core as mx
    from typing_extensions import Buffer

#: Bytes that are written, and reported, at once.
PIECE_BYTES = 16 << 20

#: The header's length is a multiple of this, so that the data begins aligned.
ALIGNMENT = 8


class Entry(NamedTuple):
    """One tensor of a file: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


#: Told of every piece that was written.
Sink = Callable[[memoryview | bytes], object]


def header(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """What stands before the data of a file: the header's length and the header."""
    members: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for entry in entries:
        stop = offset + entry.nbytes
        members[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(members, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def lay_out(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str]) -> None:
    """Make a file of its full size with the header alone: the data are a hole.

    Whatever reads headers can judge the file before a byte of weights is computed.
    """
    entries = tuple(entries)
    start = header(entries, metadata)
    with path.open("xb") as file:
        file.write(start)
        file.truncate(len(start) + sum(entry.nbytes for entry in entries))


def fill(
    path: Path,
    entries: Iterable[Entry],
    arrays: MutableMapping[str, mx.array],
    sinks: Sequence[Sink],
) -> None:
    """Write the data of a laid out file, computing each array and taking it out of `arrays`.

    Args:
        path: A file made by `lay_out`.
        entries: The same entries.
        arrays: Name -> lazy array of the declared dtype and shape.
        sinks: Given every byte of the file in order, the header's included.
    """
    with path.open("r+b", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        _tell(sinks, file.read(8 + length))
        for entry in entries:
            for piece in _pieces(arrays.pop(entry.name)):
                _write(file, piece)
                _tell(sinks, piece)
        os.fsync(file.fileno())


def _pieces(array: mx.array) -> Iterable[memoryview]:
    """The bytes of an array, computed now, in pieces."""
    import mlx.core as mx

    if not array.size:
        return
    data = mx.contiguous(array.reshape(-1)).view(mx.uint8)
    mx.eval(data)
    del array
    view = memoryview(cast("Buffer", data))
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]


def _tell(sinks: Sequence[Sink], piece: memoryview | bytes) -> None:
    for sink in sinks:
        sink(piece)


def _write(file: Any, piece: memoryview) -> None:
    done = 0
    while done < len(piece):
        done += file.write(piece[done:])
