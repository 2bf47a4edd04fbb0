"""A lock file says what the lock says, whatever the names in it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.locking import Lock, dump_lock, parse_lock
from mlxpipe.locking.lock import DataEntry, FileEntry, Pieces, SourceEntry, Table

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
sizes = st.integers(0, 2**50)
numbers = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.one_of(names, st.integers(-(2**40), 2**40), st.booleans(), numbers)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
pieces = st.lists(st.text("0123456789abcdef", min_size=8, max_size=8), min_size=1, max_size=3)

locks = st.builds(
    Lock,
    versions=st.dictionaries(names, names, max_size=3),
    source=st.builds(
        SourceEntry,
        kind=st.sampled_from(["directory", "hub", "ollama"]),
        name=st.none() | names,
        revision=st.none() | digests,
    ),
    files=st.dictionaries(names, st.builds(FileEntry, bytes=sizes, sha256=digests), max_size=3),
    tokenizer=st.dictionaries(names, st.builds(FileEntry, bytes=sizes, sha256=digests), max_size=2),
    chat_template=st.none() | digests,
    data=st.dictionaries(
        names, st.builds(DataEntry, bytes=sizes, sha256=digests, file=names), max_size=2
    ),
    spec=st.dictionaries(names, values, max_size=3),
    table=st.builds(Table, sha256=digests, modules=st.dictionaries(names, names, max_size=3)),
    pieces=st.dictionaries(
        names,
        st.builds(Pieces, bytes=st.integers(1, 2**40), crc32=pieces.map(" ".join)),
        max_size=2,
    ),
)


@given(locks)
def test_a_lock_file_reads_back_to_the_same_lock(lock: Lock) -> None:
    read, _ = parse_lock(dump_lock(lock), "spec.lock.yaml")

    assert read == lock
    assert read.sha256 == lock.sha256


@given(locks)
def test_the_order_in_which_things_were_found_changes_no_byte(lock: Lock) -> None:
    sections = ("files", "tokenizer", "data", "pieces")
    turned = {name: dict(reversed(getattr(lock, name).items())) for name in sections}
    other = lock.model_copy(update=turned)

    assert dump_lock(other) == dump_lock(lock)
    assert other.sha256 == lock.sha256
