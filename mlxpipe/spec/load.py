"""From a file, a text or a bare directory to a validated spec."""

from __future__ import annotations

import copy
import re
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from mlxpipe.errors import Diagnostic, Origin, UsageError
from mlxpipe.spec.dump import resolved_yaml
from mlxpipe.spec.model import Spec
from mlxpipe.spec.positions import Document, Positions
from mlxpipe.spec.reader import read_yaml

_INTERPOLATION = "${"


@dataclass(frozen=True, slots=True)
class LoadedSpec:
    """A validated spec, and what it takes to point at any place of it.

    Attributes:
        spec: The spec, defaults filled in.
        path: The spec file as given; relative paths start from its directory.
        text: The spec as written.
        document: The plain data and its positions.
    """

    spec: Spec
    path: Path
    text: str = field(repr=False)
    document: Document = field(repr=False)

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


def load_spec(path: Path | str) -> LoadedSpec:
    """Reads and validates a spec file.

    Raises:
        UsageError: The file cannot be read, is not strict YAML, or is not a valid spec; every
            error of the last kind is reported, at its line and column.
    """
    path = Path(path)
    return _loaded(read_yaml(path), path)


def parse_spec(text: str, name: str = "<string>", directory: Path = Path()) -> LoadedSpec:
    """Validates a spec given as text.

    Args:
        text: The YAML.
        name: What to call it in messages.
        directory: Where its relative paths start.

    Raises:
        UsageError: As `load_spec`.
    """
    return _loaded(read_yaml(text, name), Path(directory) / Path(name).name)


def spec_for_source(source: Path | str) -> LoadedSpec:
    """A minimal spec for a bare checkpoint directory.

    It is made from values rather than from YAML, so any directory name will do. Its relative
    paths start from the current directory.
    """
    path = Path(source)
    written = f"./{path}" if str(path).startswith("~") and path.exists() else str(path)
    name = as_name(path.name if path.name not in ("", "..") else path.resolve().name)
    data = {"version": 1, "name": name, "source": {"path": written}}
    document = Document(data, Positions(str(path)))
    loaded = LoadedSpec(_validated(document), Path(f"{name}.yaml"), "", document)
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
    return replace(loaded, spec=_validated(document, interpolations=False), document=document)


def as_name(text: str) -> str:
    """`text` as a name: what a name may not contain becomes '-'."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    return name[:128] or "spec"


def _loaded(document: Document, path: Path) -> LoadedSpec:
    return LoadedSpec(_validated(document), path, document.text, document)


def _validated(document: Document, *, interpolations: bool = True) -> Spec:
    found = _interpolations(document) if interpolations else []
    spec = None
    try:
        spec = Spec.model_validate(document.data)
    except ValidationError as error:
        # Imported here: only a wrong spec needs it.
        from mlxpipe.spec.diagnose import diagnose

        found += diagnose(error, document)
    if spec is None or found:
        raise UsageError.several(sorted(found, key=_place)) from None
    return spec


def _place(item: Diagnostic) -> tuple[int, int]:
    origin = item.origin
    return (origin.line or 0, origin.column or 0) if origin else (sys.maxsize, 0)


def _interpolations(document: Document) -> list[Diagnostic]:
    """Refuses `${...}`, which a later version will replace: read as text it would change then."""
    found = []
    for path in document.positions.places:
        value = document.value(path)
        if isinstance(value, str) and (start := value.find(_INTERPOLATION)) >= 0:
            origin = document.positions.within(path, value, start, len(_INTERPOLATION))
            message = "interpolation with ${...} is not in this version"
            found.append(Diagnostic("not-yet", message, origin, help="write the value out"))
    return found
