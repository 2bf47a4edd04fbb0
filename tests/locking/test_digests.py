"""Digests of files: what they say, what is read again and what is looked up."""

import hashlib
import os
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.errors import SourceError
from mlxpipe.locking import DigestCache, Digests, tree_digest
from mlxpipe.locking.cache import FILE
from mlxpipe.locking.digests import LEAST_PIECE, MOST_PIECES, WORTH_KEEPING, piece_size

LARGE = bytes(range(256)) * (WORTH_KEEPING // 256) + b"end"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A large file that nobody has touched for a while."""
    path = tmp_path / "shard"
    path.write_bytes(LARGE)
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as untouched for a while, however new they are."""
    monkeypatch.setattr("mlxpipe.locking.cache.SETTLED", -(10.0**9))


@pytest.fixture
def cache(tmp_path: Path) -> DigestCache:
    return DigestCache(tmp_path / "cache")


def corrupt(path: Path) -> None:
    """Change the content and keep what the file system says of it, as a failing disk does."""
    before = path.stat()
    path.write_bytes(b"X" + path.read_bytes()[1:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# --- digests ---------------------------------------------------------------------------------


@given(st.integers(0, 2**50))
def test_pieces_are_powers_of_two_and_few(size: int) -> None:
    piece = piece_size(size)

    assert piece >= LEAST_PIECE
    assert piece & (piece - 1) == 0
    assert piece * MOST_PIECES >= size
    assert piece == LEAST_PIECE or piece // 2 * MOST_PIECES < size


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 131_072, 131_073, WORTH_KEEPING + 5])
def test_a_digest_is_of_the_whole_and_of_each_piece(tmp_path: Path, size: int) -> None:
    content = (LARGE + LARGE)[:size]
    (tmp_path / "file").write_bytes(content)

    found = Digests().of(tmp_path / "file", "file")

    pieces = [content[at : at + found.piece] for at in range(0, size, found.piece)] or [b""]
    assert found.size == size
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert found.crc32 == tuple(map(zlib.crc32, pieces))


def test_many_files_keep_their_order(tmp_path: Path) -> None:
    paths = {f"file {number}": tmp_path / str(number) for number in range(9)}
    for number, path in enumerate(paths.values()):
        path.write_bytes(LARGE * (9 - number))

    found = Digests().of_files(paths)

    assert list(found) == list(paths)
    assert found["file 3"].size == len(LARGE) * 6


def test_progress_adds_up(old: Path) -> None:
    from collections.abc import Callable, Iterator
    from contextlib import contextmanager

    seen: list[object] = []

    @contextmanager
    def bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        seen.append((label, total, unit))
        yield seen.append

    Digests(bar=bar).of(old, "shard")

    assert seen[0] == ("hashing", len(LARGE), "bytes")
    assert seen[-1] == len(LARGE)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="model does not exist"):
        Digests().of(tmp_path / "no", "model")


def test_a_file_that_changes_meanwhile(old: Path) -> None:
    from collections.abc import Callable, Iterator
    from contextlib import contextmanager

    def touch(done: int) -> None:
        os.utime(old, ns=(0, done))

    @contextmanager
    def bar(label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        yield touch

    with pytest.raises(SourceError, match="changed while it was read"):
        Digests(bar=bar).of(old, "shard")


# --- trees -----------------------------------------------------------------------------------


def test_a_tree_is_its_names_and_contents(tmp_path: Path) -> None:
    def tree(name: str, **files: str) -> str:
        for path, text in files.items():
            place = tmp_path / name / path.replace("_", "/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return tree_digest(tmp_path / name, "tree", Digests())

    one = tree("one", a="1", b_c="2")
    assert tree("same", b_c="2", a="1") == one
    others = [tree("x", a="1"), tree("y", a="1", b="2"), tree("z", a="1", b_c="3")]
    assert len({one, *others}) == 4


# --- the cache -------------------------------------------------------------------------------


def test_a_file_that_was_read_before_is_looked_up(
    old: Path, cache: DigestCache, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Digests(cache).of(old, "shard")
    monkeypatch.setattr("mlxpipe.locking.digests._read", None)

    assert Digests(cache).of(old, "shard") == first
    with pytest.raises(TypeError):
        Digests(None).of(old, "shard")


def test_a_file_that_was_written_to_is_read_again(
    old: Path, cache: DigestCache, settled: None
) -> None:
    before = Digests(cache).of(old, "shard")
    time.sleep(0.02)  # a tick of the file system's clock
    corrupt(old)

    assert Digests(cache).of(old, "shard").sha256 != before.sha256


def test_another_file_in_its_place_is_read(old: Path, cache: DigestCache, settled: None) -> None:
    before = Digests(cache).of(old, "shard")
    status = old.stat()
    other = old.with_name("other")
    other.write_bytes(b"X" + LARGE[1:])
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(old)

    assert Digests(cache).of(old, "shard").sha256 != before.sha256


def test_what_was_just_written_is_not_kept(
    old: Path, cache: DigestCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    Digests(cache).of(old, "shard")
    monkeypatch.setattr("mlxpipe.locking.digests._read", None)

    with pytest.raises(TypeError):
        Digests(cache).of(old, "shard")


@pytest.mark.parametrize("content", [b"", b"no database", b"SQLite format 3\0" + bytes(100)])
def test_a_broken_cache_is_no_cache(old: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / FILE).write_bytes(content)

    found = Digests(DigestCache(tmp_path / "cache")).of(old, "shard")

    assert found.sha256 == hashlib.sha256(LARGE).hexdigest()


def test_a_cache_that_holds_nonsense_is_no_cache(
    old: Path, cache: DigestCache, settled: None
) -> None:
    for text in ("{}", "[1]", "null", "x"):
        cache.put(old.resolve(), old.stat(), text)

        assert Digests(cache).of(old, "shard").size == len(LARGE)


def test_a_place_that_cannot_be_written_is_no_cache(old: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    found = Digests(DigestCache(tmp_path / "file" / "cache")).of(old, "shard")

    assert found.size == len(LARGE)
