"""What the blobs of an Ollama store are stamped with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from bases import Base, Declarations
from blocks import blocks, entries
from hypothesis import strategies as st
from mlx_mutations import truth
from mutation import LOADS, STAYS, Draw, Expectation, Mutation, fails, pick

from mlxpipe.naming.names import core
from mlxpipe.quant.modes import Scheme

Stamp = Mapping[str, str]

TYPES = {
    Scheme("nvfp4", 4, 16): "nvfp4",
    Scheme("mxfp4", 4, 32): "mxfp4",
    Scheme("mxfp8", 8, 32): "mxfp8",
    Scheme("affine", 4, 64): "int4",
    Scheme("affine", 8, 64): "int8",
}


def path_of(layer: str) -> str:
    """The module that a layer feeds, without wrappers."""
    return core(layer.removesuffix(".weight"))


def stamped(before: Declarations) -> list[str]:
    """Layers with a stamp."""
    return [layer for layer, stamp in before.stamps.items() if stamp]


def overridden(before: Declarations) -> set[str]:
    """Modules that config.json has an entry for."""
    found = blocks(before.documents["config.json"]).values()
    return {entry.path for block in found for entry in entries(block)}


def stamps(before: Declarations, layers: Iterable[str], stamp: Stamp) -> Declarations:
    """The declarations with another stamp on some layers."""
    return replace(before, stamps={**before.stamps, **dict.fromkeys(layers, stamp)})


def _chosen(draw: Draw, layers: list[str]) -> list[str]:
    return layers if draw(st.booleans()) else [pick(draw, layers)]


def no_stamp(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    layers = stamped(before)
    if not layers:
        return None
    chosen = _chosen(draw, layers)
    return Mutation("stamp absent", f"{len(chosen)} blobs", LOADS, stamps(before, chosen, {}))


def true_stamps(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    known = truth(base)
    after = before
    for layer in stamped(before):
        scheme = known[path_of(layer)]
        true = {"mode": scheme.mode, "bits": f"{scheme.bits}", "group_size": f"{scheme.group_size}"}
        after = stamps(after, [layer], true)
    return Mutation("stamps that tell the truth", "", LOADS, after)


def tensor_keys(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """The same stamp, said of the blob's tensor rather than of the blob."""
    layers = [layer for layer in stamped(before) if "quant_type" in before.stamps[layer]]
    if not layers:
        return None
    after = before
    for layer in _chosen(draw, layers):
        said = {f"{layer}.{key}": value for key, value in before.stamps[layer].items()}
        after = stamps(after, [layer], said)
    return Mutation("stamp by tensor", "", STAYS, after)


def other_case(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    layers = [layer for layer in stamped(before) if "quant_type" in before.stamps[layer]]
    after = before
    for layer in layers:
        stamp = before.stamps[layer]
        after = stamps(after, [layer], {**stamp, "quant_type": stamp["quant_type"].upper()})
    return Mutation("quant_type in capitals", "", STAYS, after) if layers else None


def wrong_stamp(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """A stamp that lies: stale where config.json overrides the path, else believed."""
    layers = stamped(before)
    if not layers:
        return None
    layer = pick(draw, layers)
    path = path_of(layer)
    wrong = pick(draw, [name for scheme, name in TYPES.items() if scheme != truth(base)[path]])
    stale = path in overridden(before)
    expected: Expectation = LOADS if stale else fails("contradiction", names=path)
    kind = f"wrong stamp, {'stale' if stale else 'believed'}"
    return Mutation(
        kind, f"{layer}: {wrong}", expected, stamps(before, [layer], {"quant_type": wrong})
    )


DAMAGED: tuple[tuple[Stamp, str], ...] = (
    ({"quant_type": "nvfp8"}, "unknown-quant-type"),
    ({"quant_type": "Q5_K_M"}, "unknown-quant-type"),
    ({"quant_type": "nvfp4", "group_size": "sixteen"}, "malformed-metadata"),
    ({"quant_type": "nvfp4", "group_size": "32"}, "unknown-scheme"),
    ({"quant_type": "int4", "group_size": "-64"}, "unknown-scheme"),
    ({"mode": "fp4"}, "unknown-scheme"),
    ({"bits": "9"}, "unknown-scheme"),
)


def damaged_stamp(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    layers = stamped(before)
    if not layers:
        return None
    layer = pick(draw, layers)
    stamp, code = pick(draw, DAMAGED)
    expected = fails(code, names=path_of(layer))
    return Mutation("damaged stamp", f"{layer}: {stamp}", expected, stamps(before, [layer], stamp))


def strange_stamp(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """A stamp that says nothing of a packed tensor: noted, and without effect."""
    layers = list(before.stamps)
    layer = pick(draw, layers)
    extra = pick(
        draw,
        ({"format": "pt"}, {"a.b.weight.quant_type": "nvfp4"}, {"a.b.weight.group_size": "16"}),
    )
    after = stamps(before, [layer], {**before.stamps[layer], **extra})
    return Mutation("stamp on nothing", f"{layer}: {extra}", LOADS, after)


KINDS = (
    no_stamp,
    true_stamps,
    tensor_keys,
    other_case,
    wrong_stamp,
    damaged_stamp,
    strange_stamp,
)
