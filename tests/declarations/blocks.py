"""mlx-lm's blocks in a config.json, as the mutations take them apart and put them together."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from mlxpipe.naming.names import core, strip_leaf
from mlxpipe.quant.modes import MODES, Scheme

FIELDS = ("mode", "bits", "group_size")

#: Where a block may stand, the most trusted last.
PLACES = (
    ("text_config", "quantization_config"),
    ("text_config", "quantization"),
    ("quantization_config",),
    ("quantization",),
)

WRAPPINGS = ("", "model.", "language_model.", "language_model.model.", "model.language_model.")

Block = dict[str, Any]


class Entry(NamedTuple):
    """An override: where it stands in the block, and what it says."""

    place: tuple[str, ...]
    value: Any

    @property
    def key(self) -> str:
        """The place as one key."""
        return ".".join(self.place)

    @property
    def path(self) -> str:
        """The module that is meant, without wrappers."""
        return core(strip_leaf(self.key))


def blocks(config: Mapping[str, Any]) -> dict[tuple[str, ...], Block]:
    """Place -> block, for every block that there is."""
    found = {}
    for place in PLACES:
        value: Any = config
        for segment in place:
            value = value.get(segment) if isinstance(value, dict) else None
        if isinstance(value, dict):
            found[place] = value
    return found


def put(config: dict[str, Any], place: tuple[str, ...], block: Any) -> None:
    """Write a block at a place."""
    inner = config.setdefault(place[0], {}) if len(place) == 2 else config
    inner[place[-1]] = copy.deepcopy(block)


def remove_blocks(config: dict[str, Any]) -> None:
    """Take every block away."""
    for place in blocks(config):
        inner = config[place[0]] if len(place) == 2 else config
        del inner[place[-1]]


def entries(block: Mapping[str, Any], place: tuple[str, ...] = ()) -> Iterator[Entry]:
    """The overrides of a block, nested ones too."""
    for key, value in block.items():
        if not place and key in FIELDS:
            continue
        if isinstance(value, dict) and value and not any(name in value for name in FIELDS):
            yield from entries(value, (*place, key))
        else:
            yield Entry((*place, key), value)


def scalars(block: Mapping[str, Any]) -> Block:
    """The global of a block."""
    return {key: block[key] for key in FIELDS if key in block}


def rebuilt(block: Block, change: Callable[[Entry], list[Entry]]) -> None:
    """Replace each entry of a block by some others, in order."""
    listed = [each for entry in entries(block) for each in change(entry)]
    general = scalars(block)
    block.clear()
    block.update(general)
    for entry in listed:
        inner, place = _inner(block, entry.place)
        inner[place[-1]] = copy.deepcopy(entry.value)


def _inner(block: Block, place: tuple[str, ...]) -> tuple[Block, tuple[str, ...]]:
    """The mapping that an entry is written into; flat where another entry is in its way."""
    inner = block
    for segment in place[:-1]:
        inner = inner.setdefault(segment, {})
        if not isinstance(inner, dict) or any(key in FIELDS for key in inner):
            return block, (".".join(place),)
    return inner, place


def as_entry(scheme: Scheme | None) -> Any:
    """A scheme as mlx-lm declares it, `false` for dense."""
    if scheme is None:
        return False
    return {"mode": scheme.mode, "bits": scheme.bits, "group_size": scheme.group_size}


#: Every scheme that MLX has.
SCHEMES = tuple(
    Scheme(mode.name, bits, size)
    for mode in MODES.values()
    for bits in mode.bits
    for size in mode.group_sizes
)
