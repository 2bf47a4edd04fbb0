"""Digests of files that were read before, so that large ones are not read again.

A digest is used again only for the same path, device, inode, size, mtime and ctime. Writing to a
file changes its ctime, and no program can set that back. A file touched a moment before it was read
is not kept: a second write within the clock's tick would leave its times as they were. What this
cannot see is a disk that loses bits by itself; `--no-cache` reads every byte.

The cache is an SQLite file in the user's cache directory (`MLXPIPE_CACHE` names another). Without
write access, or with a broken file, there is no cache, and nothing else changes.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

VARIABLE = "MLXPIPE_CACHE"

FILE = "digests.sqlite"

#: Seconds for which a file must have been left alone; coarse clocks tick every two (FAT).
SETTLED = 3.0

#: Seconds to wait for another process that writes.
PATIENCE = 2.0

_SCHEMA = """
create table if not exists digests_1 (
    path text primary key, identity text not null, digest text not null
)
"""


def cache_directory() -> Path:
    """Where mlxpipe keeps what it can make again: `$MLXPIPE_CACHE`, else the user's cache."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    if sys.platform == "darwin":
        return Path("~/Library/Caches/mlxpipe").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mlxpipe"


def identity(status: os.stat_result) -> str:
    """What tells one state of a file from another without reading it."""
    parts = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return ":".join(map(str, parts))


class DigestCache:
    """Texts by path and identity.

    Args:
        directory: Where its file is; by default `cache_directory()`.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory

    def get(self, path: Path, status: os.stat_result) -> str | None:
        """What was kept for this state of a file."""
        rows = self._do(
            "select digest from digests_1 where path = ? and identity = ?",
            (str(path), identity(status)),
        )
        return rows[0][0] if rows else None

    def put(self, path: Path, status: os.stat_result, digest: str) -> None:
        """Keep the digest of a file that had this status before it was read."""
        if time.time() - max(status.st_mtime, status.st_ctime) > SETTLED:
            values = (str(path), identity(status), digest)
            self._do("insert or replace into digests_1 values (?, ?, ?)", values)

    def _do(self, statement: str, values: tuple[str, ...]) -> list[Any]:
        """One statement in a transaction of its own; nothing where the cache cannot be used."""
        try:
            directory = self._directory or cache_directory()
            directory.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(directory / FILE, timeout=PATIENCE)) as base, base:
                base.execute(_SCHEMA)
                return base.execute(statement, values).fetchall()
        except (OSError, RuntimeError, sqlite3.Error):
            return []
