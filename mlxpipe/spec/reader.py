"""Strict YAML with positions.

A spec is read by people before it is read by us, so whatever makes a document mean something else
than it shows (anchors, tags, merge keys, duplicate keys, several documents) is an error at its
line and column. Size, depth and number of values are bounded before anything is built.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from mlxpipe.errors import MlxpipeError, Origin, UsageError, did_you_mean
from mlxpipe.spec.positions import Document, Mark, Place, Positions, split_lines
from mlxpipe.spec.positions import Path as KeyPath
from mlxpipe.spec.scalars import MAX_INT_DIGITS, plain_value

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 100_000

# libyaml where the wheel has it: several times faster, with the same events.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_ILLEGAL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")

_PROPERTIES = {
    "&": ("yaml-anchor", "anchors are not allowed", "write the value out where it is used"),
    "*": (
        "yaml-alias",
        "aliases are not allowed",
        "put a pattern that begins with * in quotes: '*.mlp.gate'",
    ),
    "!": ("yaml-tag", "tags are not allowed", "put a text that begins with ! in quotes"),
}

_SYNTAX_HELP = {
    "\t": "YAML indents with spaces, not with tabs",
    "${": "put a text with ${…} in quotes",
    "@": "put a text that begins with @ in quotes",
    "`": "put a text that begins with ` in quotes",
    ":": "put a text that contains ': ' in quotes",
    "\\": "in double quotes \\ begins an escape; use single quotes for patterns and paths",
}


def read_yaml(
    source: Path | str, name: str = "", *, error: type[MlxpipeError] = UsageError
) -> Document:
    """Reads one YAML document whose top level is a mapping.

    Args:
        source: A path to read, or the text itself.
        name: What to call it in messages; default: the path, or `<string>`.
        error: The class to raise: a side file of a checkpoint is not a usage error.

    Raises:
        MlxpipeError: `error`, with the line and column of what is wrong.
    """
    if isinstance(source, Path):
        name = name or str(source)
        source = read_text(source, name, error=error)
    return _Reader(source.removeprefix("\ufeff"), name or "<string>", error).read()


def read_text(path: Path, name: str = "", *, error: type[MlxpipeError] = UsageError) -> str:
    """The text of a UTF-8 file of at most `MAX_BYTES`."""
    name = name or str(path)
    try:
        _check_file(path, name, error)
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as problem:
        raise error("unreadable-file", f"cannot read {name}: {problem.strerror}") from None
    return _decode(raw, name, error)


def _check_file(path: Path, name: str, error: type[MlxpipeError]) -> None:
    if path.is_dir():
        raise error("not-a-file", f"{name} is a directory", help="name the YAML file itself")
    if not path.exists():
        near = did_you_mean(path.name, [item.name for item in _siblings(path)])
        raise error("file-not-found", f"there is no file {name}", help=near or "check the path")
    if not path.is_file():
        raise error("not-a-file", f"{name} is not a regular file")


def _siblings(path: Path) -> Iterator[Path]:
    try:
        yield from path.parent.glob("*.y*ml")
    except OSError:
        return


def _decode(raw: bytes, name: str, error: type[MlxpipeError]) -> str:
    if len(raw) > MAX_BYTES:
        raise error("file-too-large", f"{name} is larger than {MAX_BYTES >> 20} MiB")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as problem:
        before = split_lines(raw[: problem.start].decode("utf-8").removeprefix("\ufeff"))
        raise error(
            "not-utf8",
            "this byte is not UTF-8",
            origin=Origin(name, len(before), len(before[-1]) + 1),
            found=f"byte 0x{raw[problem.start]:02x} at offset {problem.start}",
            help="save the file as UTF-8",
        ) from None


@dataclass(slots=True)
class _Frame:
    """A collection under construction; `key` is the mapping key that waits for its value."""

    path: KeyPath
    items: dict[str, Any] | list[Any]
    start: Mark
    flow: bool
    key: str | None = None
    key_mark: Mark | None = None


@dataclass(slots=True)
class _Reader:
    """Builds the data from the parser's events, without recursion."""

    text: str
    name: str
    error: type[MlxpipeError]
    lines: tuple[str, ...] = ()
    places: dict[KeyPath, Place] = field(default_factory=dict)
    stack: list[_Frame] = field(default_factory=list)
    documents: int = 0
    nodes: int = 0
    root: Any = None

    def read(self) -> Document:
        self.lines = split_lines(self.text)
        self._check_characters()
        try:
            for event in yaml.parse(self.text, Loader=_LOADER):
                self._accept(event)
        except yaml.MarkedYAMLError as problem:
            self._syntax(problem)
        if self.root is None:
            self._fail("empty-document", "the document is empty", Mark(1, 1))
        positions = Positions(self.name, self.lines, self.places)
        return Document(self.root, positions, self.text)

    def _fail(self, code: str, message: str, mark: Mark, **details: str) -> NoReturn:
        context = ".".join(map(str, self.stack[-1].path)) if self.stack else ""
        origin = Positions(self.name, self.lines).at(mark, context)
        raise self.error(code, message, origin=origin, **details) from None

    def _check_characters(self) -> None:
        if len(self.text) > MAX_BYTES:
            raise self.error("file-too-large", f"{self.name} is larger than {MAX_BYTES >> 20} MiB")
        if (bad := _ILLEGAL.search(self.text)) is None:
            return
        before = split_lines(self.text[: bad.start()])
        self._fail(
            "control-character",
            f"the character U+{ord(bad[0]):04X} is not allowed here",
            Mark(len(before), len(before[-1]) + 1),
            help='write it as an escape in double quotes, such as "\\u2028"',
        )

    def _accept(self, event: Any) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._start_document(event)
            case yaml.ScalarEvent():
                self._check_node(event)
                self._scalar(event)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._check_node(event)
                self._open(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._close(event)
            case yaml.AliasEvent():
                self._check_node(event)

    def _start_document(self, event: Any) -> None:
        self.documents += 1
        mark = self._mark(event)
        if self.documents > 1:
            self._fail("several-documents", "a file holds one document", mark)
        if event.tags or event.version not in (None, (1, 2)):
            message = "the only directive allowed is %YAML 1.2"
            self._fail("yaml-directive", message, Mark(mark.line, mark.column))

    def _check_node(self, event: Any) -> None:
        """Refuses properties and aliases by their first character, and bounds the count."""
        start, end = event.start_mark.index, event.end_mark.index
        first = self.text[start : start + 1] if end > start else ""
        if first in _PROPERTIES:
            code, message, advice = _PROPERTIES[first]
            mark = self._mark(event)
            width = len(self.text[start : start + mark.width].split()[0])
            self._fail(code, message, mark._replace(width=width), help=advice)
        self.nodes += 1
        if self.nodes > MAX_NODES:
            self._fail("too-many-values", f"more than {MAX_NODES} values", self._mark(event))

    def _open(self, event: Any) -> None:
        mapping = isinstance(event, yaml.MappingStartEvent)
        mark = self._mark(event)._replace(width=1)
        if len(self.stack) >= MAX_DEPTH:
            self._fail("too-deep", f"values are nested deeper than {MAX_DEPTH} levels", mark)
        if not self.stack and not mapping:
            self._fail("not-a-mapping", "the top level must be a mapping of keys to values", mark)
        if self._wants_key():
            self._fail("non-string-key", "a key must be a text, not a collection", mark)
        items: dict[str, Any] | list[Any] = {} if mapping else []
        self.stack.append(_Frame(self._next_path(), items, mark, bool(event.flow_style)))

    def _close(self, event: Any) -> None:
        frame = self.stack.pop()
        mark = frame.start
        if frame.flow:
            end = event.end_mark
            mark = self._span(mark.line, mark.column, end.line + 1, end.column + 1)
        elif isinstance(frame.items, dict) and frame.items:
            first = self.places[(*frame.path, next(iter(frame.items)))]
            mark = mark._replace(width=first.key.width if first.key else 1)
        self._put(frame.items, mark)

    def _scalar(self, event: Any) -> None:
        mark = self._mark(event)
        if not self.stack:
            self._top_level_scalar(event, mark)
        elif self._wants_key():
            self._key(event, mark)
        else:
            self._put(self._value(event, mark), mark)

    def _top_level_scalar(self, event: Any, mark: Mark) -> None:
        if event.implicit[0] and plain_value(event.value[:MAX_INT_DIGITS]) is None:
            return
        self._fail("not-a-mapping", "the top level must be a mapping of keys to values", mark)

    def _key(self, event: Any, mark: Mark) -> None:
        frame = self.stack[-1]
        key = self._value(event, mark)
        if not isinstance(key, str):
            advice = f"put it in quotes: '{event.value}'" if event.value else ""
            self._fail("non-string-key", "a key must be a text", mark, help=advice)
        if key == "<<" and event.implicit[0]:
            self._fail("merge-key", "merge keys are not allowed", mark)
        if key in frame.items:
            first = self.places[(*frame.path, key)].key or mark
            message = f"duplicate key {key!r}"
            self._fail("duplicate-key", message, mark, help=f"it is also in line {first.line}")
        frame.key, frame.key_mark = key, mark

    def _value(self, event: Any, mark: Mark) -> Any:
        if _SURROGATE.search(event.value):
            self._fail("control-character", "half a surrogate pair is not a character", mark)
        if not event.implicit[0]:
            return event.value
        try:
            return plain_value(event.value)
        except OverflowError:
            message = f"a whole number of more than {MAX_INT_DIGITS} digits"
            self._fail("number-too-long", message, mark)

    def _wants_key(self) -> bool:
        frame = self.stack[-1] if self.stack else None
        return frame is not None and isinstance(frame.items, dict) and frame.key is None

    def _next_path(self) -> KeyPath:
        if not self.stack:
            return ()
        frame = self.stack[-1]
        return (*frame.path, frame.key if frame.key is not None else len(frame.items))

    def _put(self, value: Any, mark: Mark) -> None:
        """Stores a finished value in its parent (or as the root) and notes its place."""
        path = self._next_path()
        if not self.stack:
            self.root = value
            self.places[path] = Place(mark)
            return
        frame = self.stack[-1]
        # Where a value is absent, its key is where a person looks.
        shown = frame.key_mark if mark.width == 0 and frame.key_mark else mark
        self.places[path] = Place(shown, frame.key_mark)
        if isinstance(frame.items, dict):
            assert frame.key is not None
            frame.items[frame.key] = value
            frame.key = frame.key_mark = None
        else:
            frame.items.append(value)

    def _mark(self, event: Any) -> Mark:
        start, end = event.start_mark, event.end_mark
        if start.index == end.index and isinstance(event, yaml.ScalarEvent):
            return self._absent(start)
        return self._span(start.line + 1, start.column + 1, end.line + 1, end.column + 1)

    def _absent(self, start: Any) -> Mark:
        """Where a value is missing: the parsers disagree, and may mean the next line."""
        line, column = min(start.line, len(self.lines) - 1), start.column
        if self.stack and self.stack[-1].key_mark is not None:
            return Mark(line + 1, column + 1, 0)
        while line > 0 and not self.lines[line][:column].strip():
            line, column = line - 1, len(self.lines[line - 1])
        return Mark(line + 1, max(1, len(self.lines[line][:column].rstrip())), 0)

    def _span(self, line: int, column: int, end_line: int, end_column: int) -> Mark:
        """From a start to an end, cut at the end of the first line."""
        if end_line == line:
            return Mark(line, column, max(1, end_column - column))
        return Mark(line, column, max(1, len(self.lines[line - 1].rstrip()) - column + 1))

    def _syntax(self, problem: yaml.MarkedYAMLError) -> NoReturn:
        opened, mark = problem.context_mark, problem.problem_mark or problem.context_mark
        if opened and "scanning" in str(problem.context) and self._at(opened) in _PROPERTIES:
            code, message, advice = _PROPERTIES[self._at(opened)]
            self._fail(code, message, Mark(opened.line + 1, opened.column + 1), help=advice)
        # Where the text ends is no help; where the unfinished thing began is.
        if opened and mark and not self.text[mark.index :].strip():
            mark = opened
        line = min(mark.line + 1, len(self.lines)) if mark else 1
        column = min(mark.column, len(self.lines[line - 1])) + 1 if mark else 1
        words = re.sub(r"character '.*' that", "character that", problem.problem or "")
        self._fail(
            "yaml-syntax",
            f"this is not YAML: {words} {problem.context or ''}".rstrip(),
            Mark(line, column),
            help=self._syntax_help(line, self._at(mark), words),
        )

    def _at(self, mark: Any) -> str:
        return self.text[mark.index : mark.index + 1] if mark else ""

    def _syntax_help(self, line: int, at: str, words: str) -> str:
        if "escape" in words or "hex" in words:
            return _SYNTAX_HELP["\\"]
        text = self.lines[line - 1]
        if "${" in text and at in "{}[],":
            return _SYNTAX_HELP["${"]
        if "\t" in text[: len(text) - len(text.lstrip())]:
            return _SYNTAX_HELP["\t"]
        return _SYNTAX_HELP.get(at, "")
