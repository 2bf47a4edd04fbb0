"""Where a JSON pointer is in a JSON text: the line and column that a diagnostic shows.

`json.loads` keeps no positions, so they are found again, and only when somebody asks: a token
scanner walks the text and notes the offset of every member's key and every array element. It relies
on the text having been parsed before and does no validation of its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

MAX_POSITION_BYTES = 4 << 20
"""Larger documents get a JSON pointer but no line: the scanner is Python and would be felt."""

MAX_EXCERPT = 200
"""Longer lines are not quoted: minified JSON is one line of everything."""

_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


class Position(NamedTuple):
    """A place in a text, 1-based; `text` is the line itself, "" where it is too long to show."""

    line: int
    column: int
    text: str
    width: int


class Place(NamedTuple):
    """Offset and width of the token that a pointer names: a member's key, or an element."""

    pointer: str
    offset: int
    width: int


def json_pointer(*segments: str | int) -> str:
    """The JSON pointer (RFC 6901) made of `segments`: `~` becomes `~0`, `/` becomes `~1`."""
    return "".join(f"/{_escape(str(segment))}" for segment in segments)


def _escape(segment: str) -> str:
    return segment.replace("~", "~0").replace("/", "~1")


def scan(text: str) -> Iterator[Place]:
    """Every pointer of a JSON text in document order, duplicate members included."""
    open_pointers: list[str] = []
    counts: list[int] = []  # the next index of each open array, -1 for an object
    member: str | None = None  # the pointer of the object member whose value comes next
    for token in _TOKEN.finditer(text):
        first = text[token.start()]
        if first in "]}":
            if not open_pointers:
                return
            open_pointers.pop()
            counts.pop()
        elif first == ",":
            member = None
            if counts and counts[-1] >= 0:
                counts[-1] += 1
        elif first == ":":
            continue
        elif counts and counts[-1] < 0 and member is None:
            member = f"{open_pointers[-1]}/{_escape(_string(token[0]))}"
            yield Place(member, token.start(), len(token[0]))
        else:
            here = member
            if here is None:
                here = f"{open_pointers[-1]}/{counts[-1]}" if open_pointers else ""
                yield Place(here, token.start(), len(token[0]))
            if first in "[{":
                open_pointers.append(here)
                counts.append(0 if first == "[" else -1)
                member = None


def second_occurrence(text: str) -> Place | None:
    """The first member whose pointer stood in `text` before: a duplicate key."""
    seen: set[str] = set()
    for place in scan(text):
        if place.pointer in seen:
            return place
        seen.add(place.pointer)
    return None


def _string(token: str) -> str:
    return str(json.loads(token)) if "\\" in token else token[1:-1]


def locate(text: str, offset: int, width: int = 1) -> Position:
    """The line and column of an offset in `text`."""
    start = text.rfind("\n", 0, offset) + 1
    stop = text.find("\n", offset)
    line = text[start : stop if stop >= 0 else len(text)].rstrip("\r")
    # A tab would move the caret under the excerpt.
    shown = line.replace("\t", " ") if len(line) <= MAX_EXCERPT else ""
    return Position(text.count("\n", 0, offset) + 1, offset - start + 1, shown, width)


def pointer_position(text: str, pointer: str) -> Position | None:
    """Where `pointer` is in `text`; None where it is not, or the text is very large."""
    return JsonPlaces(text).find(pointer)


class JsonPlaces:
    """The places of one JSON text, scanned once, on the first question."""

    __slots__ = ("_places", "_text")

    def __init__(self, text: str) -> None:
        self._text = text if len(text) <= MAX_POSITION_BYTES else ""
        self._places: dict[str, Place] | None = None

    @classmethod
    def of_file(cls, path: Path) -> JsonPlaces:
        """The places of a file; none where it cannot be read (any more) or is very large."""
        try:
            if path.stat().st_size > MAX_POSITION_BYTES:
                return cls("")
            return cls(path.read_bytes().decode("utf-8"))
        except (OSError, UnicodeDecodeError):
            return cls("")

    def find(self, pointer: str) -> Position | None:
        """Where `pointer` is, or None."""
        if self._places is None:
            self._places = {place.pointer: place for place in scan(self._text)}
        place = self._places.get(pointer)
        return None if place is None else locate(self._text, place.offset, place.width)
