"""What is on disk, as frozen values: a checkpoint, its shards, its tensors, its JSON documents.

Nothing here holds weights. A `Tensor` is one row of a safetensors header; a mixture of experts has
hundreds of thousands of them, hence a tuple and no dictionary each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from mlxpipe.checkpoint.json_positions import JsonPlaces, json_pointer
from mlxpipe.checkpoint.json_reader import read_json
from mlxpipe.errors import Origin, SourceError, did_you_mean

Kind = Literal["directory", "hub", "ollama"]

_JSON_TYPES: dict[type, str] = {dict: "an object", list: "an array"}


class Tensor(NamedTuple):
    """One tensor as its header declares it.

    Attributes:
        name: The name in the file.
        dtype: The safetensors name of its type, such as `BF16` or `F8_E4M3`.
        shape: Its dimensions, () for a scalar.
        shard: Index into `Checkpoint.shards`.
        start: Offset of its first byte in the shard's file.
        stop: Offset after its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """How many bytes it takes in the file."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file.

    Attributes:
        path: Where it is.
        label: What the user calls it: the file's name, or the blob with its layer's name.
        metadata: The header's `__metadata__`.
        size: Bytes of the whole file.
        layer: The layer's name in an Ollama store, "" elsewhere.
    """

    path: Path
    label: str
    metadata: Mapping[str, str] = field(hash=False)
    size: int
    layer: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class JsonDocument:
    """A parsed JSON file of the checkpoint.

    Attributes:
        name: Its name in the checkpoint, such as `config.json`.
        path: Where it is.
        label: What diagnostics show.
        data: The parsed value. It is shared: copy it before handing it to code that may change it.
    """

    name: str
    path: Path
    label: str
    data: Any = field(repr=False)
    _cache: dict[str, JsonPlaces] = field(default_factory=dict, init=False, repr=False)

    def origin(self, pointer: str = "") -> Origin:
        """The place of a JSON pointer, with line and excerpt where they can be found.

        The first call scans the file (about a millisecond per 10 KB). A document above 4 MiB, or
        one that is gone by now, gives an origin with the pointer alone.
        """
        places = self._cache.get("places")
        if places is None:
            places = self._cache["places"] = JsonPlaces.of_file(self.path)
        at = places.find(pointer) if pointer else None
        if at is None:
            return Origin(self.label, pointer=pointer)
        return Origin(self.label, at.line, at.column, pointer, text=at.text, width=at.width)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model on disk: its headers and its documents, no weights.

    Attributes:
        kind: Where it came from: `directory`, `hub` or `ollama`.
        label: How diagnostics name it.
        root: The directory, snapshot or store.
        shards: The safetensors files.
        tensors: Every tensor by its name, sorted by name.
        files: Every other file by its own name. From an Ollama store: its JSON layers, and
            `template`, `system`, `params`, `license` where present.
        revision: The resolved commit (hub), else None.
        ignored: What was there and is no part of the model: other safetensors files, or layers.
    """

    kind: Kind
    label: str
    root: Path
    shards: tuple[Shard, ...]
    tensors: Mapping[str, Tensor] = field(repr=False)
    files: Mapping[str, Path] = field(repr=False)
    revision: str | None = None
    ignored: tuple[str, ...] = ()
    _documents: dict[str, JsonDocument] = field(default_factory=dict, init=False, repr=False)

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.stop - tensor.start for tensor in self.tensors.values())

    @property
    def config(self) -> JsonDocument:
        """config.json.

        Raises:
            SourceError: `missing-config`, or as for `document`.
        """
        document = self.document("config.json")
        if document is None:
            near = did_you_mean("config.json", self.files)
            raise SourceError(
                "missing-config",
                f"{self.label} has no config.json",
                origin=Origin(self.label),
                found=", ".join(sorted(self.files)[:12]) or "no other file than the weights",
                expected="config.json, which names the architecture and its sizes",
                help=near or "point the source at the complete model, or download config.json too",
            )
        return document

    def document(self, name: str, top: type = dict) -> JsonDocument | None:
        """The JSON file called `name`, parsed when first asked for; None if there is none.

        Args:
            name: Its name in `files`.
            top: What the whole document must be: `dict`, `list`, or `object` for anything.

        Raises:
            SourceError: `json-type`, or as for `mlxpipe.checkpoint.json_reader.read_json`.
        """
        path = self.files.get(name)
        if path is None:
            return None
        document = self._documents.get(name)
        if document is None:
            label = f"{self.label}/{name}"
            document = JsonDocument(name, path, label, read_json(path, label))
            self._documents[name] = document
        if not isinstance(document.data, top):
            raise SourceError(
                "json-type",
                f"{document.label} is not {_JSON_TYPES.get(top, top.__name__)}",
                origin=Origin(document.label, 1),
                found=type(document.data).__name__,
                expected=f"{_JSON_TYPES.get(top, top.__name__)} at the top",
                help="correct the file, or download it again",
            )
        return document


def gather(labels: Sequence[str], shards: Iterable[Iterable[Tensor]]) -> Mapping[str, Tensor]:
    """One sorted mapping of all shards' tensors.

    Args:
        labels: How diagnostics name each shard, in the order of `Checkpoint.shards`.
        shards: The tensors of each.

    Raises:
        SourceError: `duplicate-tensor` where two shards hold one name.
    """
    rows = sorted(chain.from_iterable(shards), key=itemgetter(0))
    tensors = {row[0]: row for row in rows}
    if len(tensors) == len(rows):
        return MappingProxyType(tensors)
    twice = [(a, b) for a, b in pairwise(rows) if a.name == b.name]
    one, other = (labels[row.shard] for row in twice[0])
    raise SourceError(
        "duplicate-tensor",
        f"tensor '{twice[0][0].name}' is in two files",
        origin=Origin(other, pointer=json_pointer(twice[0][0].name)),
        found=f"'{twice[0][0].name}' in {one} and in {other}",
        expected="each tensor in one file",
        help="remove the file that does not belong to the model",
        notes=(f"{len(twice)} tensors are in more than one file",) if len(twice) > 1 else (),
    )
