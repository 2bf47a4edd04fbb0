"""Where each value of a resolved spec came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlxpipe.spec.dump import resolved, resolved_yaml
from mlxpipe.spec.positions import Path, Place
from mlxpipe.spec.reader import read_yaml

if TYPE_CHECKING:
    from mlxpipe.spec.load import LoadedSpec

DEFAULT = "default"


def origins(loaded: LoadedSpec) -> dict[str, str]:
    """Dotted path -> where its value came from, for every value that has none below it.

    That is a file and a line, with what the value came through in brackets (`matrix`, a variable
    and where it stands, the environment); the name of an option; or `default`.
    """
    paths = _leaves(resolved(loaded), ())
    return {".".join(map(str, path)): _origin(loaded, path) for path in paths}


def resolved_yaml_with_origins(loaded: LoadedSpec) -> str:
    """The resolved spec as YAML, with the origin of each value as a comment on its line."""
    text = resolved_yaml(loaded)
    lines = text.splitlines()
    document = read_yaml(text)
    notes = {
        document.positions.places[path].value.line - 1: _origin(loaded, path)
        for path in _leaves(document.data, ())
    }
    width = min(60, max(len(lines[number]) for number in notes))
    for number, note in notes.items():
        lines[number] = f"{lines[number]:<{width}}  # {note}"
    return "\n".join(lines) + "\n"


def _leaves(value: Any, path: Path) -> Iterator[Path]:
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for part, each in parts:
        if isinstance(each, (dict, list)) and each:
            yield from _leaves(each, (*path, part))
        else:
            yield (*path, part)


def _origin(loaded: LoadedSpec, path: Path) -> str:
    place = _written(loaded, path)
    if place is None:
        return DEFAULT
    file = place.file.name if place.file else loaded.document.positions.file
    where = f"{file}:{place.value.line}" if place.file and place.file.lines else file
    return f"{where} ({', '.join(place.via)})" if place.via else where


def _written(loaded: LoadedSpec, path: Path) -> Place | None:
    """The place of a value that was written, None for a default.

    A text can stand for a list of one, or a precedence for its names: then what was written is
    above the path.
    """
    places = loaded.document.positions.places
    for length in range(len(path), 0, -1):
        if (place := places.get(path[:length])) is not None:
            value = loaded.document.value(path[:length])
            whole = length == len(path) or not isinstance(value, (dict, list))
            return place if whole and value is not None else None
    return None
