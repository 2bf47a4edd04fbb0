"""A strict reader of the JSON documents beside the weights.

Bounded in size and depth, without duplicate members, every fault at its line and column. Python's
`NaN` and `Infinity` literals are accepted, because transformers writes them into config.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlxpipe.checkpoint.files import read_bytes
from mlxpipe.checkpoint.json_positions import MAX_POSITION_BYTES, locate, second_occurrence
from mlxpipe.errors import Origin, SourceError

MAX_JSON_BYTES = 64 << 20
"""Limit of a document. The largest configs in the wild have some hundred thousand overrides."""

_CONTAINERS = frozenset({dict, list})
_AGAIN = "restore or download the file again"


class _DuplicateKeyError(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def read_json(path: Path, label: str, limit: int = MAX_JSON_BYTES) -> Any:
    """Read and parse a JSON file.

    Args:
        path: The file.
        label: How diagnostics name it.
        limit: The size in bytes above which it is refused.

    Raises:
        SourceError: `missing-file`, `unreadable-file`, `json-too-large`, `not-utf8`,
            `malformed-json`, `json-too-deep` or `duplicate-key`.
    """
    return parse_json(read_text(path, label, limit), label)


def read_text(path: Path, label: str, limit: int) -> str:
    """The text of a JSON file; see `read_json` for the errors."""
    raw = read_bytes(path, label, limit + 1)
    if len(raw) > limit:
        raise SourceError(
            "json-too-large",
            f"{label} is too large for a JSON document",
            origin=Origin(label),
            found=f"more than {limit:,} bytes",
            expected=f"at most {limit:,} bytes",
            help=_AGAIN,
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(
            "not-utf8",
            f"{label} is not UTF-8 text",
            origin=Origin(label),
            found=f"byte 0x{raw[error.start]:02x} at offset {error.start}",
            expected="JSON in UTF-8",
            help=_AGAIN,
        ) from error


def parse_json(text: str, label: str) -> Any:
    """Parse a JSON text strictly; see `read_json` for the errors."""
    try:
        data = json.loads(text)
        # Every key in the text has a colon of its own: as many colons as parsed keys, no duplicate.
        if text.count(":") != _count_keys(data):
            json.loads(text, object_pairs_hook=_unique)
        return data
    except json.JSONDecodeError as error:
        raise _malformed(text, label, error) from error
    except _DuplicateKeyError as error:
        raise _duplicate(text, label, error.key) from error
    except RecursionError as error:
        raise SourceError(
            "json-too-deep",
            f"{label} is nested too deeply",
            origin=Origin(label),
            help=_AGAIN,
        ) from error
    except ValueError as error:  # an integer of thousands of digits
        raise SourceError(
            "malformed-json",
            f"{label} holds a number that cannot be read",
            origin=Origin(label),
            found=str(error),
            help=_AGAIN,
        ) from error


def _count_keys(data: Any) -> int:
    keys, waiting = 0, [data] if type(data) in _CONTAINERS else []
    while waiting:
        node = waiting.pop()
        keys += len(node) if type(node) is dict else 0
        items = node.values() if type(node) is dict else node
        waiting += [item for item in items if type(item) in _CONTAINERS]
    return keys


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _DuplicateKeyError(key)
        seen.add(key)


def _malformed(text: str, label: str, error: json.JSONDecodeError) -> SourceError:
    place = locate(text, error.pos)
    return SourceError(
        "malformed-json",
        f"{label} is not valid JSON: {error.msg}",
        origin=Origin(label, place.line, place.column, text=place.text),
        label="here",
        help="correct the file, or download it again",
    )


def _duplicate(text: str, label: str, key: str) -> SourceError:
    return SourceError(
        "duplicate-key",
        f"key {key!r} stands twice in one object of {label}",
        origin=_second_occurrence(text, label),
        label="stands here again",
        help="remove one of the two: readers disagree which of them counts",
    )


def _second_occurrence(text: str, label: str) -> Origin:
    place = second_occurrence(text) if len(text) <= MAX_POSITION_BYTES else None
    if place is None:
        return Origin(label)
    at = locate(text, place.offset, place.width)
    return Origin(label, at.line, at.column, place.pointer, text=at.text, width=at.width)
