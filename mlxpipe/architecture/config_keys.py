"""config.json's keys under the names that mlx-lm's classes read.

transformers 5 renamed keys that its checkpoints are written with, and mlx-lm's older classes know
the old names. Nothing is replaced: a name that is there stays, one that is missing is filled in.
Source: transformers 5's configuration classes and its migration notes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

#: Names for one thing; whichever is there fills in the others.
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("num_experts", "num_local_experts"),
    ("torch_dtype", "dtype"),
)

#: How transformers writes numbers that JSON does not have.
TAG = "__float__"
TAGGED = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}

#: Sections that are configs of their own.
SECTIONS = ("text_config",)

Config = dict[str, Any]


def normalise(config: Mapping[str, Any]) -> Config:
    """A copy of a config with tagged floats decoded and missing names filled in."""
    decoded: Config = {key: _decode(value) for key, value in config.items()}
    for section in SECTIONS:
        if isinstance(decoded.get(section), dict):
            decoded[section] = _fill(decoded[section])
    return _fill(decoded)


def _decode(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {TAG} and isinstance(value[TAG], str) and value[TAG] in TAGGED:
            return TAGGED[value[TAG]]
        return {key: _decode(item) for key, item in value.items()}
    return [_decode(item) for item in value] if isinstance(value, list) else value


def _fill(config: Config) -> Config:
    steps: tuple[Callable[[Config], Config], ...] = (_fill_synonyms, _fill_rope)
    for step in steps:
        config = step(config)
    return config


def _fill_synonyms(config: Config) -> Config:
    filled = dict(config)
    for names in SYNONYMS:
        known = next((name for name in names if config.get(name) is not None), None)
        if known is not None:
            filled |= {name: config[known] for name in names if config.get(name) is None}
    return filled


def _fill_rope(config: Config) -> Config:
    """`rope_parameters` as `rope_theta`, `partial_rotary_factor` and `rope_scaling`.

    Parameters per kind of layer are left alone: the architectures that have them read them.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping) or any(isinstance(each, Mapping) for each in rope.values()):
        return config
    found = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in (None, "default"):
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        found["rope_scaling"] = {**scaling, "type": kind}
    return {
        **{key: value for key, value in found.items() if config.get(key) is None},
        **{key: value for key, value in config.items() if value is not None or key not in found},
    }
