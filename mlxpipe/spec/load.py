"""From a file, a text or a bare directory to a validated spec."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mlxpipe.errors import Diagnostic, Origin, UsageError
from mlxpipe.spec.compose import Composed, compose
from mlxpipe.spec.dump import resolved_yaml
from mlxpipe.spec.interpolation import escape
from mlxpipe.spec.matrix import MATRIX, require_one, some
from mlxpipe.spec.model import Spec
from mlxpipe.spec.positions import Document, Positions
from mlxpipe.spec.reader import read_yaml
from mlxpipe.spec.settings import Setting, as_settings

#: File, line and column.
_Start = tuple[str, int | None, int | None]
#: Values by dotted path, or settings as `parse_setting` makes them.
Settings = Mapping[str, Any] | Iterable[Setting] | None

#: What stands in the place of a spec's suffix in the name of its lock.
LOCK_SUFFIX = ".lock.yaml"


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A validated spec, and what it takes to point at any place of it.

    Attributes:
        spec: The spec, defaults filled in.
        path: The spec file as given; relative paths start from its directory.
        text: The spec as written.
        document: The plain data and its positions, composed: without `extends`, `vars`, `matrix`.
        label: Which combination of a matrix this is, fit for a directory's name; else "".
        matrix: Axis of the matrix -> what this combination has there.
    """

    spec: Spec
    path: Path
    text: str = field(repr=False)
    document: Document = field(repr=False)
    label: str = ""
    matrix: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The spec's name, else the file's stem; always fit for a directory's name."""
        return self.spec.name or as_name(self.path.stem)

    def origin(self, *path: str | int, key: bool = False) -> Origin:
        """Where a value of the spec (or its key) is, or its nearest existing ancestor."""
        return self.document.positions.origin(path, key=key)

    def resolve(self, relative: str) -> Path:
        """A path of the spec: from the spec's directory, `~` expanded.

        Raises:
            UsageError: The path begins with ~ and a user whom this machine does not know.
        """
        path = Path(relative)
        try:
            # `./~x` is a directory called ~x; pathlib alone would drop the dot and expand it.
            return self.path.parent / (path.expanduser() if relative.startswith("~") else path)
        except RuntimeError:
            message = f"there is no home directory for {relative!r}"
            raise UsageError("no-home-directory", message, help="write the path out") from None


def load_spec(path: Path | str, *, set: Settings = None, only: Iterable[str] = ()) -> LoadedSpec:
    """Reads, composes and validates a spec file.

    Args:
        path: The file.
        set: Values by dotted path, such as `{"model.dtype": "float32"}`; they win over the file.
        only: For a spec with a `matrix`: what chooses one combination, a label (or a glob of
            labels) or `axis=value`.

    Raises:
        UsageError: The file cannot be read, is not strict YAML, is not a valid spec, or is a
            matrix of which more than one combination is chosen; every error of a spec is
            reported, at its file, line and column.
    """
    return _one(load_specs(path, set=set, only=only))


def load_specs(
    path: Path | str, *, set: Settings = None, only: Iterable[str] = ()
) -> tuple[LoadedSpec, ...]:
    """Every spec that a file stands for: its matrix's combinations in order, or the one spec.

    Args:
        path: The file.
        set: As for `load_spec`.
        only: Globs of labels and `axis=value`; default: all combinations.

    Raises:
        UsageError: as `load_spec`.
    """
    path = Path(path)
    if path.name.endswith(LOCK_SUFFIX):
        spec = path.name.removesuffix(LOCK_SUFFIX)
        raise UsageError(
            "lock-not-spec",
            f"{path} is a lock, not a spec",
            help=f"give the spec that it belongs to: {path.with_name(spec)}.yaml",
        )
    return _loaded(read_yaml(path), path, set, only)


def parse_spec(
    text: str, name: str = "<string>", directory: Path = Path(), *, set: Settings = None
) -> LoadedSpec:
    """Validates a spec given as text.

    Args:
        text: The YAML.
        name: What to call it in messages.
        directory: Where its relative paths start.
        set: As for `load_spec`.

    Raises:
        UsageError: As `load_spec`.
    """
    return _one(_loaded(read_yaml(text, name), Path(directory) / Path(name).name, set))


def spec_for_source(source: Path | str, *, set: Settings = None) -> LoadedSpec:
    """A minimal spec for a bare checkpoint directory.

    It is made from values rather than from YAML, so any directory name will do. Its relative
    paths start from the current directory.
    """
    path = Path(source)
    written = f"./{path}" if str(path).startswith("~") and path.exists() else str(path)
    name = as_name(path.name if path.name not in ("", "..") else path.resolve().name)
    data = {"version": 1, "name": name, "source": {"path": escape(written)}}
    document = Document(data, Positions(str(path)))
    loaded = _one(_loaded(document, Path(f"{name}.yaml"), set))
    return replace(loaded, text=resolved_yaml(loaded))


def spec_beside(near: LoadedSpec, source: Mapping[str, str]) -> LoadedSpec:
    """A minimal spec for another source, with the `model` and the relative paths of `near`.

    Args:
        near: The spec that names the source.
        source: What its `source` would say.

    Raises:
        UsageError: as `load_spec`.
    """
    data = {
        "version": 1,
        "name": as_name(next(iter(source.values()))),
        "source": {key: escape(value) for key, value in source.items()},
        "model": near.spec.model.model_dump(mode="json"),
    }
    document = Document(data, Positions(str(near.path)))
    loaded = _one(_loaded(document, near.path))
    return replace(loaded, text=resolved_yaml(loaded))


def override(loaded: LoadedSpec, path: tuple[str, ...], value: object) -> LoadedSpec:
    """The spec with one value replaced, validated again; its text stays as written.

    Raises:
        UsageError: as `load_spec`.
    """
    data = copy.deepcopy(loaded.document.data)
    place = data
    for key in path[:-1]:
        place = place.setdefault(key, {})
    place[path[-1]] = value
    document = replace(loaded.document, data=data)
    spec, found = _validated(document)
    if spec is None:
        raise UsageError.several(found)
    return replace(loaded, spec=spec, document=document)


def as_name(text: str) -> str:
    """`text` as a name: what a name may not contain becomes '-'."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    return name[:128] or "spec"


def _one(specs: Sequence[LoadedSpec]) -> LoadedSpec:
    if len(specs) > 1:
        raise require_one([each.label for each in specs])
    return specs[0]


def _loaded(
    document: Document,
    path: Path,
    given: Settings = None,
    only: Iterable[str] = (),
) -> tuple[LoadedSpec, ...]:
    specs: list[LoadedSpec] = []
    wrong: dict[str, list[Diagnostic]] = {}
    for composed in compose(document, path, as_settings(given), only):
        label, values = composed.combination.label, composed.combination.values
        spec, found = _checked(composed)
        if spec is None or found:
            wrong[label] = found
        else:
            specs.append(LoadedSpec(spec, path, document.text, composed.document, label, values))
    if wrong:
        raise UsageError.several(_gathered(wrong, len(specs) + len(wrong)))
    return tuple(specs)


def _checked(composed: Composed) -> tuple[Spec | None, list[Diagnostic]]:
    spec, invalid = _validated(composed.document)
    through = _through(composed.document)
    found = [
        replace(each, notes=(*each.notes, *through.get(start, ())))
        for each in invalid
        if (start := _start(each)) not in composed.failed
    ]
    main = composed.document.positions.file
    return spec, sorted((*composed.found, *found), key=lambda item: _place(item, main))


def _gathered(wrong: dict[str, list[Diagnostic]], number: int) -> list[Diagnostic]:
    """The findings of all combinations, each once, with the combinations where not all have it."""
    where: dict[Diagnostic, list[str]] = {}
    for label, found in wrong.items():
        for item in found:
            where.setdefault(item, []).append(label)
    return [
        item
        if len(labels) == number
        else replace(item, notes=(*item.notes, f"in combination {some(labels)}"))
        for item, labels in where.items()
    ]


def _validated(document: Document) -> tuple[Spec | None, list[Diagnostic]]:
    try:
        return Spec.model_validate(document.data), []
    except ValidationError as error:
        # Imported here: only a wrong spec needs it.
        from mlxpipe.spec.diagnose import diagnose

        return None, diagnose(error, document)


def _through(document: Document) -> dict[_Start, tuple[str, ...]]:
    """Where a value starts -> what it came through, which its own place does not show."""
    notes: dict[_Start, tuple[str, ...]] = {}
    for place in document.positions.places.values():
        ways = [way for way in place.via if way != MATRIX]
        if ways and place.file:
            start = (place.file.name, place.value.line, place.value.column)
            notes[start] = (f"the value is that of {', '.join(ways)}",)
    return notes


def _start(item: Diagnostic) -> _Start:
    origin = item.origin
    return (origin.file, origin.line, origin.column) if origin else ("", None, None)


def _place(item: Diagnostic, main: str) -> tuple[bool, str, int, int]:
    """The spec's own findings come first, each file's in the order of its text."""
    origin = item.origin
    if origin is None:
        return (True, "\U0010ffff", sys.maxsize, 0)
    return (origin.file != main, origin.file, origin.line or 0, origin.column or 0)
