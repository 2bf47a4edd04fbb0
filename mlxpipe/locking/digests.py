"""SHA-256 of files, with a checksum of each piece that says where a changed file changed.

The SHA-256 is what binds. The CRC-32 of a piece only names the place, so it need not withstand an
attacker; it sees every change of up to 32 bits in a row.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from threading import Event, Lock
from typing import Any, NamedTuple

from mlxpipe.checkpoint.files import open_regular, unreadable
from mlxpipe.errors import Origin, SourceError
from mlxpipe.locking.cache import DigestCache

#: A file has at most this many pieces, each a power of two of bytes long.
MOST_PIECES = 128
LEAST_PIECE = 1 << 10

#: Bytes read at a time, a power of two.
BLOCK = 4 << 20

#: Files read at once: hashing is as fast as a disk only with several.
THREADS = 4

#: Smaller files are read again rather than looked up.
WORTH_KEEPING = 1 << 20

#: label, total, unit -> a bar that is told how much is done.
Bar = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]


class FileDigest(NamedTuple):
    """A file's content in short.

    Attributes:
        size: Bytes.
        sha256: 64 hexadecimal digits.
        piece: Bytes of a piece; the last may be shorter.
        crc32: The checksum of each piece.
    """

    size: int
    sha256: str
    piece: int
    crc32: tuple[int, ...]


def piece_size(size: int) -> int:
    """Bytes of a piece of a file of `size` bytes."""
    piece = LEAST_PIECE
    while piece * MOST_PIECES < size:
        piece *= 2
    return piece


def canonical_digest(value: Any) -> str:
    """The SHA-256 of plain data; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Digests:
    """Digests of files, several at once.

    Args:
        cache: Where digests of unchanged files are looked up; None reads every byte.
        bar: Shows progress.
    """

    def __init__(self, cache: DigestCache | None = None, bar: Bar | None = None) -> None:
        self._cache = cache
        self._bar = bar or _no_bar

    def of(self, path: Path, label: str) -> FileDigest:
        """The digest of one file; errors as for `of_files`."""
        return self.of_files({label: path})[label]

    def of_files(self, paths: Mapping[str, Path]) -> dict[str, FileDigest]:
        """Label -> digest, in the order given.

        Raises:
            SourceError: `missing-file`, `unreadable-file`, or `file-in-motion` where one changed
                while it was read.
        """
        status = {label: _status(path, label) for label, path in paths.items()}
        found = {label: self._known(paths[label], status[label]) for label in paths}
        wanted = [label for label in paths if found[label] is None]
        total = sum(status[label].st_size for label in wanted)
        if total < WORTH_KEEPING:
            made = {
                label: _read(paths[label], label, Event(), lambda count: None) for label in wanted
            }
        else:
            with self._bar("hashing", total, "bytes") as advance:
                made = dict(self._read_all(paths, wanted, status, advance))
        return {label: known or made[label] for label, known in found.items()}

    def _known(self, path: Path, status: os.stat_result) -> FileDigest | None:
        if self._cache is None or status.st_size < WORTH_KEEPING:
            return None
        text = self._cache.get(path.resolve(), status)
        return _parsed(text) if text else None

    def _read_all(
        self,
        paths: Mapping[str, Path],
        labels: list[str],
        status: Mapping[str, os.stat_result],
        advance: Callable[[int], None],
    ) -> Iterator[tuple[str, FileDigest]]:
        stop, count = Event(), _counter(advance)
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                jobs = {
                    pool.submit(_read, paths[label], label, stop, count): label for label in labels
                }
                for job in as_completed(jobs):
                    label, digest = jobs[job], job.result()
                    if self._cache is not None and digest.size >= WORTH_KEEPING:
                        self._cache.put(paths[label].resolve(), status[label], json.dumps(digest))
                    yield label, digest
            finally:
                # Also when interrupted: the threads end at their next block.
                stop.set()


def tree_digest(path: Path, label: str, digests: Digests) -> str:
    """One digest of a file, or of a directory: of the names and contents of all files below it.

    Raises:
        SourceError: as `Digests.of_files`; a link to a directory is not followed.
    """
    if not path.is_dir():
        return digests.of(path, label).sha256
    below = sorted(each for each in path.rglob("*") if each.is_file())
    names = {each.relative_to(path).as_posix(): each for each in below}
    found = digests.of_files({f"{label}/{name}": each for name, each in names.items()})
    return canonical_digest({name: found[f"{label}/{name}"].sha256 for name in names})


def _parsed(text: str) -> FileDigest | None:
    try:
        size, sha256, piece, sums = json.loads(text)
        return FileDigest(size, sha256, piece, tuple(sums))
    except (ValueError, TypeError):
        return None


def _status(path: Path, label: str) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        raise unreadable(label, error) from error


def _read(
    path: Path,
    label: str,
    stop: Event | None = None,
    count: Callable[[int], None] = lambda more: None,
) -> FileDigest:
    stop = stop or Event()
    file, size = open_regular(path, label)
    with file:
        before = os.fstat(file.fileno())
        piece = piece_size(size)
        whole, sums, at = hashlib.sha256(), [0] * max(1, -(-size // piece)), 0
        try:
            while not stop.is_set() and (data := file.read(min(piece, BLOCK))):
                whole.update(data)
                place = min(at // piece, len(sums) - 1)
                sums[place] = zlib.crc32(data, sums[place])
                at += len(data)
                count(len(data))
        except OSError as error:
            raise unreadable(label, error) from error
        after = os.fstat(file.fileno())
    moved = (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size)
    if moved or (at != size and not stop.is_set()):
        raise _in_motion(label)
    return FileDigest(size, whole.hexdigest(), piece, tuple(sums))


def _in_motion(label: str) -> SourceError:
    return SourceError(
        "file-in-motion",
        f"{label} changed while it was read",
        origin=Origin(label),
        help="wait for the download or the program that writes it, and try again",
    )


def _counter(advance: Callable[[int], None]) -> Callable[[int], None]:
    """`advance` wants the sum so far; threads only know what they add."""
    lock, done = Lock(), 0

    def count(more: int) -> None:
        nonlocal done
        with lock:
            done += more
            advance(done)

    return count


@contextmanager
def _no_bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    yield lambda done: None
