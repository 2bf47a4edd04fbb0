"""A file that is open only while it is read.

MLX keeps a file open as long as a lazy array of it exists. A store has a blob for each tensor,
often more than a process may have files open.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any


class OnDemandFile(io.RawIOBase):
    """A readable file that `mlx.core.load` takes in place of a path.

    Args:
        path: An existing file, which must not change meanwhile.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._size = path.stat().st_size
        self._at = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move without touching the file."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        """The offset of the next read."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Open the file, fill as much of the buffer as it has, and close it."""
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._at)
            count = file.readinto(buffer)
        self._at += count
        return count
