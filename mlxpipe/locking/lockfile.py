"""Lock files: `spec.lock.yaml` beside `spec.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlxpipe.checkpoint.files import read_bytes
from mlxpipe.errors import LockError, Origin
from mlxpipe.files import write_text
from mlxpipe.locking.lock import FORMAT, Lock
from mlxpipe.spec import LOCK_SUFFIX, Document, LoadedSpec, OneLine, dump_yaml, read_yaml

#: No lock of a sensible checkpoint comes near it.
MAX_BYTES = 64 << 20

HEAD = """\
# Written by `mlxpipe lock`; commit it beside the spec, and do not edit it.
# `mlxpipe lock --check` and `mlxpipe run --locked` compare the spec and its files with it.
"""


def lock_path(loaded: LoadedSpec) -> Path:
    """Where the lock of a spec is: beside it, `.lock.yaml` in the place of its suffix.

    A combination of a matrix has its label before that.
    """
    label = f".{loaded.label}" if loaded.label else ""
    return loaded.path.with_name(f"{loaded.path.stem}{label}{LOCK_SUFFIX}")


def dump_lock(lock: Lock) -> str:
    """The text of a lock file, in a stable order."""
    data = lock.model_dump(exclude_none=True)
    for section in ("files", "tokenizer", "data", "pieces"):
        data[section] = {name: OneLine(entry) for name, entry in sorted(data[section].items())}
    data["source"] = OneLine(data["source"])
    data["table"]["modules"] = dict(sorted(data["table"]["modules"].items()))
    return HEAD + dump_yaml(data)


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock file, whole or not at all.

    Raises:
        LockError: `cannot-write`.
    """
    try:
        write_text(path, dump_lock(lock))
    except OSError as error:
        reason = error.strerror or str(error)
        raise LockError("cannot-write", f"{path} cannot be written", found=reason) from error


def read_lock(path: Path) -> tuple[Lock, Document]:
    """A lock file and its positions.

    Raises:
        LockError: `no-lock`, `bad-lock`, `lock-format`, or as for the reading of YAML.
    """
    if not path.exists():
        raise LockError(
            "no-lock",
            f"there is no lock {path}",
            help="make one: mlxpipe lock SPEC, and commit it",
        )
    raw = read_bytes(path, str(path), MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise LockError("file-too-large", f"{path} is larger than {MAX_BYTES >> 20} MiB")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        raise LockError("not-utf8", f"{path} is not UTF-8 text", help=AGAIN) from None
    return parse_lock(text, str(path))


AGAIN = "make it again: mlxpipe lock SPEC"


def parse_lock(text: str, name: str) -> tuple[Lock, Document]:
    """A lock given as text; errors as for `read_lock`."""
    document = read_yaml(text, name, error=LockError)
    found = document.data.get("lock")
    if found != FORMAT:
        raise LockError(
            "lock-format",
            f"{name} is no lock that this mlxpipe reads",
            origin=document.positions.origin(("lock",)),
            found=f"lock: {found}",
            expected=f"lock: {FORMAT}",
            help=AGAIN,
        )
    try:
        return Lock.model_validate(document.data), document
    except ValidationError as error:
        raise _bad_lock(error.errors()[0], document, name) from None


def _bad_lock(problem: Any, document: Document, name: str) -> LockError:
    place = tuple(problem["loc"])
    origin = document.positions.origin(place) if place else Origin(name)
    where = ".".join(map(str, place))
    message = f"{name} is not as mlxpipe writes it: {where}"
    return LockError("bad-lock", message, origin=origin, found=problem["msg"], help=AGAIN)
