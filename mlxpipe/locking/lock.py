"""A lock: the frozen value that says what a spec means and what it reads.

What binds is the resolved meaning: the table of modules, the tasks, seed, dtype, device and
kernels as the spec asks for them, the contents of every file that is read, and the versions of what
computes. The spec's text, its name, the places of its files, the order of its keys and tasks, and
how overrides and rules are spelled do not bind: a refactored spec that means the same has the same
lock.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field

from mlxpipe.locking.digests import canonical_digest
from mlxpipe.spec import Section

FORMAT = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(Section):
    """A file's content.

    Attributes:
        bytes: Its size.
        sha256: Its digest.
    """

    bytes: int
    sha256: Sha256


class DataEntry(FileEntry):
    """A file, or a directory as a whole, that a task reads.

    Attributes:
        file: Its name without directories; the suffix decides how it is read.
    """

    file: str

    @property
    def binding(self) -> tuple[str, str]:
        """What of it binds: the content and the suffix."""
        return (self.sha256, PurePath(self.file).suffix)


class SourceEntry(Section):
    """Where the files came from; it does not bind.

    Attributes:
        kind: `directory`, `hub` or `ollama`.
        name: What the hub or the store calls it, None for a directory.
        revision: The commit, of the hub.
    """

    kind: Literal["directory", "hub", "ollama"]
    name: str | None = None
    revision: str | None = None


class Table(Section):
    """The resolved per-tensor table.

    Attributes:
        sha256: Of the whole.
        modules: Module path -> its row, with a digest of its own.
    """

    sha256: Sha256
    modules: dict[str, str]


class Pieces(Section):
    """Checksums that say where a file changed; they do not bind.

    Attributes:
        bytes: Bytes of a piece.
        crc32: Eight hexadecimal digits for each, with spaces between.
    """

    bytes: Annotated[int, Field(ge=1)]
    crc32: Annotated[str, Field(pattern=r"^[0-9a-f]{8}( [0-9a-f]{8})*$")]

    @property
    def sums(self) -> tuple[int, ...]:
        """The checksums as numbers."""
        return tuple(int(each, 16) for each in self.crc32.split())


class Lock(Section):
    """Everything a run depends on.

    Attributes:
        lock: The format of the lock file.
        versions: Package -> version.
        source: Where the files came from.
        files: The checkpoint's weights and documents by name.
        tokenizer: The tokenizer's files by name.
        chat_template: The digest of the template's text, None without one.
        data: `<task>.<key>` -> what a task reads.
        spec: What the spec means beyond the above: model, run, and the tasks by id.
        table: The resolved per-tensor table.
        pieces: File -> where to look when it changed.
    """

    lock: Literal[1] = 1
    versions: dict[str, str]
    source: SourceEntry
    files: dict[str, FileEntry]
    tokenizer: dict[str, FileEntry] = Field(default_factory=dict)
    chat_template: Sha256 | None = None
    data: dict[str, DataEntry] = Field(default_factory=dict)
    spec: dict[str, Any]
    table: Table
    pieces: dict[str, Pieces] = Field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """The digest of what binds; equal for specs that mean the same."""
        data = {key: entry.binding for key, entry in self.data.items()}
        rest = self.model_dump(exclude={"source", "pieces", "data"})
        return canonical_digest({**rest, "data": data})
