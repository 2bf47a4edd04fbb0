"""What is not as locked, each difference with its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.errors import Diagnostic, Origin
from mlxpipe.locking.contents import shard_names
from mlxpipe.locking.lock import DataEntry, FileEntry, Lock
from mlxpipe.spec import Document

RELOCK = "if that is meant, lock again: mlxpipe lock SPEC"

#: How many places, and how many tensors, one difference names.
MOST_PLACES = 4

#: A changed document up to this size is read again for its line numbers.
MAX_TEXT_BYTES = 64 << 20


class Sides(NamedTuple):
    """What is compared.

    Attributes:
        locked: The lock.
        found: The lock of here and now.
        document: The lock file's positions.
        checkpoint: The checkpoint, for the tensors in a changed file; None where it cannot be
            opened.
        paths: Name in the lock -> the file here, for the lines of a changed document.
    """

    locked: Lock
    found: Lock
    document: Document
    checkpoint: Checkpoint | None
    paths: Mapping[str, Path]

    def origin(self, *keys: str) -> Origin:
        """Where the lock says it."""
        return self.document.positions.origin(keys, key=True)


def differences(sides: Sides) -> tuple[Diagnostic, ...]:
    """Every difference, the cause before the effect: versions, spec, files, data, table."""
    found = [
        finding
        for section in (_versions, _spec, _files, _tokenizer, _template, _data, _table)
        for finding in section(sides)
    ]
    return (*found, *(_revision(sides) if found else ()))


def _revision(sides: Sides) -> Iterator[Diagnostic]:
    """Where a repository moved on: no difference by itself, but the reason of others."""
    was, now = sides.locked.source.revision, sides.found.source.revision
    if was and now and was != now:
        yield Diagnostic(
            "revision-changed",
            f"{sides.found.source.name} is at another commit than when it was locked",
            origin=sides.origin("source", "revision"),
            found=now,
            expected=was,
            help=f"pin it: source.revision: {was}",
        )


# --- versions and the spec -------------------------------------------------------------------


def _versions(sides: Sides) -> Iterator[Diagnostic]:
    for name, was, now in _changed(sides.locked.versions, sides.found.versions):
        yield Diagnostic(
            "version-changed",
            f"{name} is not the locked version",
            origin=sides.origin("versions", name),
            found=now or "not installed",
            expected=was or "not locked",
            help=f"install {name}=={was}, or accept other versions with --allow-versions"
            if was
            else RELOCK,
        )


def _spec(sides: Sides) -> Iterator[Diagnostic]:
    was, now = (dict(_leaves(side.spec)) for side in (sides.locked, sides.found))
    for keys, old, new in _changed(was, now):
        yield Diagnostic(
            "spec-changed",
            f"the spec's {'.'.join(keys)} is not as locked",
            origin=sides.origin("spec", *keys),
            found=_shown(new),
            expected=_shown(old),
            help=RELOCK,
        )


def _leaves(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """The values of nested mappings, as JSON: a list is one value, and 1 is not 1.0."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _leaves(item, (*keys, key))
    else:
        yield keys, json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(value: str | None, limit: int = 160) -> str:
    if value is None:
        return "nothing"
    return value if len(value) <= limit else f"{value[:limit]}… ({len(value)} characters)"


# --- files -----------------------------------------------------------------------------------


def _files(sides: Sides) -> Iterator[Diagnostic]:
    yield from _of_files(sides, "files", sides.locked.files, sides.found.files)


def _tokenizer(sides: Sides) -> Iterator[Diagnostic]:
    yield from _of_files(sides, "tokenizer", sides.locked.tokenizer, sides.found.tokenizer)


def _template(sides: Sides) -> Iterator[Diagnostic]:
    was, now = sides.locked.chat_template, sides.found.chat_template
    if was != now:
        yield Diagnostic(
            "chat-template-changed",
            "the chat template is not as locked",
            origin=sides.origin("chat_template"),
            found=f"sha256 {now}" if now else "none",
            expected=f"sha256 {was}" if was else "none",
            help="prompts would be worded differently; " + RELOCK,
        )


def _data(sides: Sides) -> Iterator[Diagnostic]:
    locked, found = sides.locked.data, sides.found.data
    # Only what binds is compared: a file may have another name.
    was, now = ({key: each.binding for key, each in side.items()} for side in (locked, found))
    for key, _, _ in _changed(was, now):
        entry: DataEntry = found.get(key) or locked[key]
        name = f"{entry.file} ({key})"
        keys = ("data", key)
        yield _changed_file(sides, keys, name, locked.get(key), found.get(key), "data-changed")


def _of_files(
    sides: Sides, section: str, was: Mapping[str, FileEntry], now: Mapping[str, FileEntry]
) -> Iterator[Diagnostic]:
    code = "tokenizer-changed" if section == "tokenizer" else "file-changed"
    for name, old, new in _changed(was, now):
        title = f"the tokenizer's {name}" if section == "tokenizer" else name
        yield _changed_file(sides, (section, name), title, old, new, code)


def _changed_file(
    sides: Sides,
    keys: tuple[str, str],
    name: str,
    was: FileEntry | None,
    now: FileEntry | None,
    code: str,
) -> Diagnostic:
    if was is None or now is None:
        return Diagnostic(
            code.replace("changed", "missing" if now is None else "added"),
            f"{name} is not there, and the lock has it"
            if now is None
            else f"{name} is not in the lock",
            origin=sides.origin(*keys),
            found="nothing" if now is None else _content(now),
            expected=_content(was) if was else "nothing",
            help="restore it, or lock again: mlxpipe lock SPEC" if now is None else RELOCK,
        )
    return Diagnostic(
        code,
        f"{name} is not as locked",
        origin=sides.origin(*keys),
        found=_content(now),
        expected=_content(was),
        help="restore it, or, if it is meant, lock again: mlxpipe lock SPEC",
        notes=tuple(_places(sides, keys[1], was, now)),
    )


def _content(entry: FileEntry) -> str:
    return f"sha256 {entry.sha256}, {entry.bytes:,} bytes"


def _places(sides: Sides, name: str, was: FileEntry, now: FileEntry) -> Iterator[str]:
    """Where a file of the same size differs, as far as its pieces tell."""
    old, new = sides.locked.pieces.get(name), sides.found.pieces.get(name)
    if was.bytes != now.bytes or old is None or new is None or old.bytes != new.bytes:
        return
    pieces = zip(old.sums, new.sums, strict=False)
    numbers = [number for number, (before, after) in enumerate(pieces) if before != after]
    ranges = [
        (first * old.bytes, min((last + 1) * old.bytes, now.bytes))
        for first, last in _runs(numbers)
    ]
    for start, stop in ranges[:MOST_PLACES]:
        yield f"differs within bytes {start:,} to {stop - 1:,}{_inside(sides, name, start, stop)}"
    if len(ranges) > MOST_PLACES:
        yield f"and in {len(ranges) - MOST_PLACES} more places"


def _runs(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of each stretch of consecutive numbers."""
    starts = [numbers[0], *(b for a, b in pairwise(numbers) if b > a + 1)] if numbers else []
    ends = [*(a for a, b in pairwise(numbers) if b > a + 1), numbers[-1]] if numbers else []
    return zip(starts, ends, strict=True)


def _inside(sides: Sides, name: str, start: int, stop: int) -> str:
    """What these bytes are: tensors of a shard, or lines of a text."""
    names = shard_names(sides.checkpoint) if sides.checkpoint else []
    if sides.checkpoint is None or name not in names:
        return _lines(sides.paths.get(name), start, stop)
    number = names.index(name)
    mine = [each for each in sides.checkpoint.tensors.values() if each.shard == number]
    inside = [each.name for each in mine if each.start < stop and start < each.stop]
    # Data follow the header at once.
    if start < min((each.start for each in mine), default=0):
        inside.insert(0, "the header")
    more = f" and {len(inside) - MOST_PLACES} more" if len(inside) > MOST_PLACES else ""
    return f", in {', '.join(inside[:MOST_PLACES])}{more}" if inside else ""


def _lines(path: Path | None, start: int, stop: int) -> str:
    if path is None or not path.is_file() or path.stat().st_size > MAX_TEXT_BYTES:
        return ""
    content = path.read_bytes()
    if b"\0" in content:
        return ""
    first = content.count(b"\n", 0, start) + 1
    last = content.count(b"\n", 0, stop - 1) + 1
    return f", line {first}" if first == last else f", lines {first} to {last}"


# --- the table -------------------------------------------------------------------------------


def _table(sides: Sides) -> Iterator[Diagnostic]:
    was, now = sides.locked.table, sides.found.table
    changed = list(_changed(was.modules, now.modules))
    for path, old, new in changed:
        yield Diagnostic(
            "table-changed",
            f"'{path}' is not decided as locked" if old and new else f"'{path}' is {_fate(new)}",
            origin=sides.origin("table", "modules", path),
            module=path,
            found=new or "nothing",
            expected=old or "nothing",
            help=f"mlxpipe explain SPEC {path} says why; {RELOCK}",
        )
    if not changed and was.sha256 != now.sha256:
        yield Diagnostic(
            "table-changed",
            "the table's digest is not as locked: the architecture is another",
            origin=sides.origin("table", "sha256"),
            found=now.sha256,
            expected=was.sha256,
            help=RELOCK,
        )


def _fate(new: str | None) -> str:
    return "not in the lock" if new else "gone"


def _changed(
    was: Mapping[Any, Any], now: Mapping[Any, Any]
) -> Iterator[tuple[Any, Any | None, Any | None]]:
    """Key, old and new value of everything that differs, the lock's order first."""
    for key in (*was, *(key for key in now if key not in was)):
        if was.get(key) != now.get(key):
            yield key, was.get(key), now.get(key)
