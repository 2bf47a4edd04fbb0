"""Opening files: regular ones only, and every failure as a SourceError that names the file."""

from __future__ import annotations

import gc
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mlxpipe.errors import Origin, SourceError


@contextmanager
def collector_paused() -> Iterator[None]:
    """Without the cyclic garbage collector, which halves the speed of reading large headers.

    Parsing makes millions of containers and no cycle; the collector would walk them over and over.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def open_regular(path: Path, label: str) -> tuple[BinaryIO, int]:
    """Open a regular file for reading and say how many bytes it has.

    Raises:
        SourceError: `missing-file` or `unreadable-file`. Devices and pipes are refused before
            they are opened, because opening one may block or have an effect.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(
                "unreadable-file",
                f"{label} is not a regular file",
                origin=Origin(label),
                expected="a file",
            )
        return path.open("rb"), status.st_size
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise unreadable(label, error) from error


def read_bytes(path: Path, label: str, limit: int) -> bytes:
    """The first `limit` bytes of a regular file; errors as for `open_regular`."""
    file, size = open_regular(path, label)
    with file:
        try:
            return file.read(min(limit, size + 1))
        except OSError as error:
            raise unreadable(label, error) from error


def unreadable(label: str, error: Exception) -> SourceError:
    """The SourceError for what the operating system said about a file or directory."""
    if isinstance(error, FileNotFoundError):
        return SourceError(
            "missing-file", f"{label} does not exist", origin=Origin(label), help="check the path"
        )
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return SourceError(
        "unreadable-file",
        f"{label} cannot be read: {reason}",
        origin=Origin(label),
        help="check the path, its permissions and the disk",
    )
