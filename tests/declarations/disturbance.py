"""Any value in any place of a declaration."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from mutation import Draw, pick

GONE = object()

VALUES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    4,
    8,
    16,
    32,
    64,
    128,
    4.0,
    10**30,
    "",
    "4",
    "int",
    "float",
    "group",
    "channel",
    "tensor",
    "nvfp4",
    "gemv",
    "gptq_v2",
    "re:.*",
    "model.layers.0",
    [],
    [64, 64],
    [32, 128],
    ["Linear"],
    ["lm_head", "model.layers.0.mlp.up_proj"],
    {},
    {"bits": 4},
    {"a": {"b": 1}},
    {"mode": "nvfp4"},
    {"mode": None, "bits": 8, "group_size": None},
    GONE,
)


def disturb(draw: Draw, block: Any) -> str:
    """Change one place of a block; what was changed, "" where the block has no place."""
    places = list(_places(block))
    if not places:
        return ""
    holder, key = pick(draw, places)
    value, was = pick(draw, VALUES), holder[key]
    if value is GONE:
        del holder[key]
    else:
        holder[key] = copy.deepcopy(value)
    return f"{key}: {was!r:.60} -> {'gone' if value is GONE else repr(value)}"


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON value: what holds it, and the key there."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    else:
        keys = list(range(len(value))) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])
