"""Directories that appear whole or not at all.

Everything is written into a hidden sibling, `.<name>.<random>.partial`, and renamed once it is
complete and on the disk. Whatever goes wrong before, Ctrl-C included, takes the sibling away.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlxpipe.checkpoint.index import INDEX
from mlxpipe.errors import ExecutionError, Origin, UsageError

#: What an export's index calls its producer; only such a directory is ever replaced.
PRODUCER = "mlxpipe"


def check_target(target: Path, *, overwrite: bool, origin: Origin | None = None) -> None:
    """Refuse a directory that exists, unless it is an earlier export that may be replaced.

    Raises:
        UsageError: `target-exists`.
    """
    if not os.path.lexists(target):
        return
    if overwrite and is_export(target):
        return
    if overwrite:
        found = "no earlier export of mlxpipe, or one with other files in it"
        advice = "overwrite replaces earlier exports only: remove it yourself or choose another"
    else:
        found = "an earlier export" if is_export(target) else ""
        advice = "choose another path, remove it, or replace earlier exports with overwrite: true"
    raise UsageError(
        "target-exists", f"{target} exists already", origin=origin, found=found, help=advice
    )


def is_export(directory: Path) -> bool:
    """Whether a directory is an export of ours with no file in it that is not."""
    try:
        index = json.loads((directory / INDEX).read_bytes())
        metadata = index["metadata"]
        if metadata["producer"] != PRODUCER or directory.is_symlink():
            return False
        known = {*metadata["files"], *index["weight_map"].values(), INDEX}
        return {entry.name for entry in directory.iterdir()} <= known
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def check_outside(target: Path, source: Path, origin: Origin | None = None) -> None:
    """Refuse to write into the source, or over it.

    Raises:
        UsageError: `target-in-source`.
    """
    if target.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            "target-in-source",
            f"{target} lies inside the checkpoint that is exported",
            origin=origin,
            expected="a path outside of it: inputs are never written to",
            help="choose another path",
        )


def check_space(directory: Path, needed: int, origin: Origin | None = None) -> None:
    """Refuse what the disk cannot hold.

    Args:
        directory: Where it will be, or what it will be in; need not exist.
        needed: Bytes.

    Raises:
        ExecutionError: `no-space`.
    """
    free = shutil.disk_usage(_existing(directory)).free
    if needed > free:
        raise ExecutionError(
            "no-space",
            f"{directory} has no room for the export",
            origin=origin,
            found=f"{free:,} bytes available",
            expected=f"{needed:,} bytes",
            help="make room, or choose a path on another disk",
        )


def _existing(path: Path) -> Path:
    """The path or its nearest ancestor that exists."""
    return next(each for each in (path, *path.absolute().parents) if each.exists())


@contextmanager
def draft(target: Path, *, origin: Origin | None = None) -> Iterator[Path]:
    """An empty directory that becomes `target` when the block ends well.

    A directory at `target` is replaced; whether it may be is `check_target`'s question.

    Raises:
        ExecutionError: `cannot-write`, for whatever the operating system refuses.
    """
    made = [each for each in target.absolute().parents if not each.exists()]
    with staging(target.parent, target.name, origin=origin) as partial:
        try:
            yield partial
            sync(partial)
            _replace(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            for folder in made:
                with suppress(OSError):
                    folder.rmdir()
            raise
    sync(target.parent)


@contextmanager
def staging(parent: Path, name: str, *, origin: Origin | None = None) -> Iterator[Path]:
    """A hidden directory in `parent`, gone when the block ends unless it was renamed.

    Raises:
        ExecutionError: `cannot-write`.
    """
    partial = parent / f".{name}.{secrets.token_hex(4)}.partial"
    try:
        # Not `tempfile`: its directories are for their owner only, and keep that when renamed.
        partial.mkdir(parents=True)
        yield partial
    except OSError as error:
        raise ExecutionError(
            "cannot-write",
            f"the export to {parent / name} cannot be written",
            origin=origin,
            found=error.strerror or str(error),
            help="choose another place, or make room there; nothing was left behind",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, target: Path) -> None:
    if not target.is_dir():
        partial.rename(target)
        return
    old = partial.with_suffix(".old")
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_file(source: Path, path: Path) -> None:
    """Copy a small file's content, and neither its dates nor its permissions."""
    write_file(path, source.read_bytes())


def write_json(path: Path, value: Any) -> None:
    """Write a new JSON file, the keys in the order in which they are."""
    text = json.dumps(value, indent=4, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(path, text.encode())


def sync(directory: Path) -> None:
    """Wait until the disk has a directory's entries."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
