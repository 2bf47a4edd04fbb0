"""The resolved spec: what was written, and every default."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from mlxpipe.spec.interpolation import escape
from mlxpipe.spec.scalars import CORE_SCHEMA

if TYPE_CHECKING:
    from mlxpipe.spec.load import LoadedSpec

# Raw, these would be line breaks to some YAML parsers, or invisible to a reader.
_ESCAPED = re.compile(
    "[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_WIDE = 1 << 20


def resolved(loaded: LoadedSpec) -> dict[str, Any]:
    """The spec as plain data in the spec's own order, with every default filled in.

    Keys that say nothing are left out: those whose default depends on something outside the spec
    (the tokenizer, the text's length) or on another key that is shown.
    """
    data: dict[str, Any] = _written(loaded.spec.model_dump(mode="python", exclude_none=True))
    data["quantization"]["precedence"] = " > ".join(loaded.spec.quantization.precedence)
    return {"version": data.pop("version"), "name": loaded.name} | data


def resolved_yaml(loaded: LoadedSpec) -> str:
    """The resolved spec as YAML: itself a valid spec, which resolves to the same."""
    return dump_yaml(resolved(loaded))


class OneLine(dict[str, Any]):
    """A mapping that `dump_yaml` writes on one line."""


def dump_yaml(data: dict[str, Any]) -> str:
    """Plain data as YAML that `read_yaml` reads back to the same, in the order given."""
    return str(
        yaml.dump(data, Dumper=_CoreDumper, sort_keys=False, allow_unicode=True, width=_WIDE)
    )


def _written(value: Any) -> Any:
    """Values as a spec writes them: `${` escaped, so that texts mean themselves."""
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, dict):
        return {key: _written(item) for key, item in value.items()}
    return [_written(item) for item in value] if isinstance(value, (list, tuple)) else value


class _CoreDumper(yaml.SafeDumper):
    """Quotes whatever YAML 1.1 or the core schema would read as something else than a text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Writes equal values out: the reader refuses anchors."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # On one line even where the text has several, so that a comment can follow any value.
    style = '"' if "\n" in text or _ESCAPED.search(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


for _rule in CORE_SCHEMA:
    _CoreDumper.add_implicit_resolver(_rule.tag, _rule.pattern, list(_rule.first))
_CoreDumper.add_representer(str, _represent_text)
_CoreDumper.add_representer(
    OneLine,
    lambda dumper, value: dumper.represent_mapping(
        "tag:yaml.org,2002:map", value.items(), flow_style=True
    ),
)
