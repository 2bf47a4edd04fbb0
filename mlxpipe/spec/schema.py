"""The spec's JSON Schema, for editors and other programs."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from mlxpipe.spec import model, quantize, tasks
from mlxpipe.spec.values import Section

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_SECTIONS: tuple[type[Section], ...] = (
    model.Source,
    model.Override,
    quantize.QuantizeRule,
    tasks.GenerateTask,
    tasks.LogitsTask,
)


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
    title = "A spec of mlxpipe"
    return {"$schema": _DIALECT, **_tidy(schema), "title": title}


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
