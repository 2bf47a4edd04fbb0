"""The spec's JSON Schema, for editors and other programs."""

from __future__ import annotations

import re
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from mlxpipe.spec import model, quantize, source, task_measuring, task_writing
from mlxpipe.spec.values import Section

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SECTIONS: tuple[type[Section], ...] = (
    source.Source,
    source.Reference,
    model.Override,
    quantize.QuantizeRule,
    task_writing.GenerateTask,
    task_writing.LogitsTask,
    task_measuring.BenchmarkTask,
)

_INTERPOLATED = {"type": "string", "pattern": r"\$\{"}
_BUNDLES = {"type": "object", "minProperties": 1}
_COMPOSING: dict[str, Any] = {
    "extends": {
        "description": "A spec, or a list of specs, under this one: mappings merge deeply, lists "
        "replace, the later wins. Relative to this file.",
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}},
        ],
    },
    "vars": {"description": "Values for ${vars.NAME}.", "type": ["object", "null"]},
    "matrix": {
        "description": "Axes: a dotted path with a list of values, or with values by label; or a "
        "name with, by label, mappings of dotted paths to values. Every combination is a run.",
        "type": ["object", "null"],
        "additionalProperties": {"anyOf": [{"type": ["array", "null"], "minItems": 1}, _BUNDLES]},
    },
}
#: Values that are told apart by them, or that no variable has a say in.
_FIXED = {"type", "version"}


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the spec.

    It accepts every valid spec. What no schema can say (regular expressions that compile, ids
    that differ) is left to `load_spec`.
    """
    schema = model.Spec.model_json_schema(schema_generator=_Generator)
    for section in _SECTIONS:
        schema["$defs"][section.__name__] |= _groups(section)
    for definition in schema["$defs"].values():
        del definition["title"]  # the name of our class
    schema = _interpolable(_tidy(schema))
    schema["properties"].update(_COMPOSING)
    # What an extended file says need not be said again, and it need not be a whole spec itself.
    schema["required"] = []
    schema["anyOf"] = [{"required": ["version"]}, {"required": ["extends"]}]
    title = "A spec of mlxpipe"
    return {"$schema": _DIALECT, **schema, "title": title}


class _Generator(GenerateJsonSchema):
    """Leaves out the titles, which only repeat the keys."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """No title for any field."""
        return False


def _groups(section: type[Section]) -> dict[str, Any]:
    """`exactly_one` and `belongs_to` in JSON Schema's words."""
    rules: dict[str, Any] = {}
    if section.exactly_one:
        rules["oneOf"] = [_any_given(group) for group in section.exactly_one]
    if section.belongs_to:
        rules["allOf"] = [
            {"anyOf": [{"not": _given(key)}, _given(owner)]}
            for key, owner in section.belongs_to.items()
        ]
    return rules


def _any_given(group: tuple[str, ...]) -> dict[str, Any]:
    given = [_given(key) for key in group]
    return given[0] if len(given) == 1 else {"anyOf": given}


def _given(key: str) -> dict[str, Any]:
    """The key is there and not null: null is what leaving it out means."""
    return {"required": [key], "properties": {key: {"not": {"type": "null"}}}}


def _interpolable(schema: Any) -> Any:
    """The schema with `${…}` in place of any value that it would not take as a text."""
    if isinstance(schema, list):
        return [_interpolable(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _interpolable(value) for key, value in schema.items()}
    if found.get("type") == "object":
        properties = found.get("properties", {}).items()
        found["properties"] = {
            key: value if key in _FIXED else _or_interpolated(value) for key, value in properties
        }
    for key in ("items", "additionalProperties"):
        if isinstance(found.get(key), dict):
            found[key] = _or_interpolated(found[key])
    return found


def _or_interpolated(schema: dict[str, Any]) -> dict[str, Any]:
    free = schema.get("type") == "string" and not schema.keys() & {"enum", "const"}
    if free and re.search(schema.get("pattern", ""), "${vars.x}"):
        return schema
    kept: dict[str, Any] = {key: schema[key] for key in ("description", "default") if key in schema}
    rest = {key: value for key, value in schema.items() if key not in kept}
    arms = rest["anyOf"] if rest.keys() == {"anyOf"} else [rest]
    return {"anyOf": [*arms, _INTERPOLATED], **kept}


def _tidy(schema: Any) -> Any:
    """Without OpenAPI's `discriminator`, and without defaults that say nothing."""
    if isinstance(schema, list):
        return [_tidy(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _tidy(value)
        for key, value in schema.items()
        if (key, value) != ("default", None)
        and not (key == "discriminator" and "propertyName" in value)
    }
