"""Recipes with a name in the field: what each module of an architecture gets.

`mixed_*` are mlx-lm's (`mixed_quant_predicate_builder` in its `convert.py`, after llama.cpp's
Q4_K_M): values, down projections and the output projection get more bits, the first two in the
first and last eighth of the layers and in every third between. mlx-lm does not ask an
architecture's own `quant_predicate` then, so routers get the low bits as well.

`nvfp4_router8` is what `mlx_lm.convert --q-mode nvfp4` does, the architecture's own predicate
included, with all routers, the embedding and the output projection in 8 bits. SmolLM2-135M, whose
embedding is its output projection, has a perplexity of 30.56 in bfloat16, 42.91 in nvfp4 (4.50 bits
per weight), 37.55 by this preset (5.34) and 37.52 with a dense embedding instead (6.92): 8 bits are
enough there, 4 are not (`mlxpipe run examples/smollm2/recipes.yaml`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxpipe.quant.modes import Scheme, complete

if TYPE_CHECKING:
    from mlxpipe.architecture.advice import Advice

#: Module path -> its scheme, None where it stays as it is.
Choose = Callable[[str], Scheme | None]

DEFAULT_GROUP_SIZE = 64

#: Segments that name a router, or what holds its projection.
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})

#: What chooses among experts and among tokens is small, and 4 bits are costly there.
CAREFUL = Scheme("affine", 8, 64)


class UnfitError(ValueError):
    """A preset that says nothing about this architecture."""


@dataclass(frozen=True, slots=True)
class Table:
    """The modules that could be quantised, and what their architecture says of them.

    Attributes:
        kinds: Path -> `linear`, `embedding`, `experts` or another.
        advice: The architecture's answers.
    """

    kinds: Mapping[str, str]
    advice: Advice


@dataclass(frozen=True, slots=True)
class Preset:
    """One row.

    Attributes:
        name: As specs spell it.
        make: The modules and a group size -> what each module gets. Raises UnfitError.
        group_size: The default; mlx-lm leaves a module dense whose width it does not divide.
        fixed: Whether no other group size makes sense.
    """

    name: str
    make: Callable[[Table, int], Choose]
    group_size: int = DEFAULT_GROUP_SIZE
    fixed: bool = False


def _mixed(low: int, high: int) -> Callable[[Table, int], Choose]:
    def make(table: Table, group_size: int) -> Choose:
        place = _layer_place(table.advice.names)
        layers = table.advice.layers
        if not layers:
            raise UnfitError("its architecture does not say how many layers it has")

        def choose(path: str) -> Scheme:
            more = _is_generous(_layer_index(path, place), layers) and _is_sensitive(path)
            bits = high if more or "lm_head" in path else low
            return Scheme("affine", bits, group_size)

        return choose

    return make


def _is_sensitive(path: str) -> bool:
    # Parts of segments, as mlx-lm tests them: `kv_b_proj` and `qkv_proj` are meant too.
    return any(part in path for part in ("v_proj", "v_a_proj", "v_b_proj", "down_proj"))


def _is_generous(index: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = layers // 8
    return index < eighth or index >= 7 * layers // 8 or (index - eighth) % 3 == 2


def _layer_place(names: Iterable[str]) -> int:
    """Which segment of a path is the layer's number, by the first down projection there is."""
    first = next((name for name in names if "down_proj" in name), None)
    if first is None:
        raise UnfitError("its modules have no down_proj, which mlx-lm's recipe goes by")
    segments = first.split(".")
    return next((at for at, each in enumerate(segments) if each.isdigit()), len(segments) - 1)


def _layer_index(path: str, place: int) -> int:
    """The layer's number; 0 for modules that are in none."""
    segments = path.split(".")
    return int(segments[place]) if len(segments) > place and segments[place].isdigit() else 0


def _router_safe(table: Table, group_size: int) -> Choose:
    base = Scheme("nvfp4", 4, group_size)
    blocks = _expert_blocks(table.kinds)

    def choose(path: str) -> Scheme | None:
        choice = table.advice.choices.get(path, True)
        if choice is False:
            return None
        if isinstance(choice, Mapping):
            return complete(choice.get("mode"), choice.get("bits"), choice.get("group_size"))
        careful = table.kinds[path] == "embedding" or _is_head(path) or is_router(path, blocks)
        return CAREFUL if careful else base

    return choose


def _is_head(path: str) -> bool:
    return path.rpartition(".")[2] == "lm_head"


def _expert_blocks(kinds: Mapping[str, str]) -> frozenset[str]:
    """Every path that has experts somewhere below it."""
    return frozenset(
        ".".join(segments[:depth])
        for path, kind in kinds.items()
        if kind == "experts"
        for segments in [path.split(".")]
        for depth in range(1, len(segments))
    )


def is_router(path: str, blocks: frozenset[str]) -> bool:
    """Whether a module chooses among the experts beside it.

    A plain MLP may have a `gate` too, so the block that holds the router must hold experts.
    """
    segments = path.split(".")
    at = next((at for at, each in enumerate(segments) if each in ROUTERS), None)
    return at is not None and ".".join(segments[:at]) in blocks


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("mixed_2_6", _mixed(2, 6)),
        Preset("mixed_3_4", _mixed(3, 4)),
        Preset("mixed_3_6", _mixed(3, 6)),
        Preset("mixed_4_6", _mixed(4, 6)),
        Preset("nvfp4_router8", _router_safe, group_size=16, fixed=True),
    )
}
