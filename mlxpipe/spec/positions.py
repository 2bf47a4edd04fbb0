"""Where each value of a document stands in its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mlxpipe.errors import Origin

Path = tuple[str | int, ...]

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")
_MAX_EXCERPT = 240


class Mark(NamedTuple):
    """A stretch of one line: 1-based line and column, and a width, in characters."""

    line: int
    column: int
    width: int = 1


class TextFile(NamedTuple):
    """A text that values stand in: a file as the user knows it, or an option of a command.

    Attributes:
        name: What to call it.
        lines: Its lines; empty where there is nothing to show.
    """

    name: str
    lines: tuple[str, ...] = ()

    def at(self, mark: Mark, context: str = "") -> Origin:
        """The origin of a mark, with its line as an excerpt fit for a terminal."""
        if not self.lines:
            return Origin(self.name, context=context)
        line = self.lines[mark.line - 1] if mark.line <= len(self.lines) else ""
        line = line if len(line) <= _MAX_EXCERPT else ""
        return Origin(
            self.name,
            mark.line,
            mark.column,
            context=context,
            text=_UNPRINTABLE.sub("\ufffd", line.replace("\t", " ")),
            width=mark.width,
        )


class Place(NamedTuple):
    """Where a value stands.

    Attributes:
        value: The value's mark.
        key: Its key's, where it has one.
        file: What both are marks in; None for the document's own text.
        via: What else the value came through, such as `matrix` or `vars.tag`.
    """

    value: Mark
    key: Mark | None = None
    file: TextFile | None = None
    via: tuple[str, ...] = ()


def split_lines(text: str) -> tuple[str, ...]:
    """The lines of `text` as YAML counts them (`str.splitlines` also breaks at form feeds)."""
    return tuple(_LINE_BREAK.split(text))


def part_of(file: TextFile, mark: Mark, value: str, start: int, width: int) -> Mark:
    """The mark of a part of a text value, or the value's own where escapes hide the part.

    Args:
        file: What the value stands in.
        mark: Where the value stands.
        value: The text as read.
        start: 0-based offset of the part in `value`.
        width: Length of the part.
    """
    if not file.lines:
        return mark
    found = file.lines[mark.line - 1].find(value, mark.column - 1, mark.column - 1 + mark.width)
    return mark if found < 0 else Mark(mark.line, found + start + 1, max(1, width))


@dataclass(frozen=True, slots=True)
class Positions:
    """The places of a document's values.

    Attributes:
        file: The file as the user knows it.
        lines: The document's lines.
        places: For each path of keys and indexes, where it stands; `()` is the document.
    """

    file: str
    lines: tuple[str, ...] = field(default=(), repr=False)
    places: Mapping[Path, Place] = field(default_factory=dict, repr=False)

    def origin(self, path: Path = (), *, key: bool = False) -> Origin:
        """Where `path` is, or its nearest existing ancestor.

        Args:
            path: Keys and indexes from the top.
            key: Point at the key rather than at the value, where there is one.
        """
        context = ".".join(map(str, path[:-1]))
        place = self._nearest(path)
        if place is None:
            return Origin(self.file, context=context)
        mark = place.key if key and place.key else place.value
        return self._file(place).at(mark, context)

    def within(self, path: Path, value: str, start: int, width: int) -> Origin:
        """Where a part of a text value is, or the whole value where escapes hide the part.

        Args:
            path: Keys and indexes from the top.
            value: The text as read.
            start: 0-based offset of the part in `value`.
            width: Length of the part.
        """
        context = ".".join(map(str, path[:-1]))
        place = self.places.get(path)
        if place is None:
            return self.origin(path)
        file = self._file(place)
        return file.at(part_of(file, place.value, value, start, width), context)

    def at(self, mark: Mark, context: str = "") -> Origin:
        """The origin of a mark in the document's own text."""
        return TextFile(self.file, self.lines).at(mark, context)

    def _file(self, place: Place) -> TextFile:
        return place.file or TextFile(self.file, self.lines)

    def _nearest(self, path: Path) -> Place | None:
        for length in range(len(path), -1, -1):
            if (place := self.places.get(path[:length])) is not None:
                return place
        return None


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML document: plain data and where each piece of it stands."""

    data: dict[str, Any]
    positions: Positions
    text: str = field(default="", repr=False)

    def value(self, path: Path) -> Any:
        """The value at a path that exists."""
        data: Any = self.data
        for part in path:
            data = data[part]
        return data
