"""mlx-lm's declarations moved, repeated, contradicted, lost and damaged."""

from __future__ import annotations

import copy
from typing import Any

from bases import Base, Declarations, reference
from blocks import (
    FIELDS,
    PLACES,
    SCHEMES,
    WRAPPINGS,
    Block,
    Entry,
    as_entry,
    blocks,
    entries,
    put,
    rebuilt,
    remove_blocks,
    scalars,
)
from disturbance import disturb
from hypothesis import strategies as st
from mutation import (
    EITHER,
    LOADS,
    STAYS,
    Draw,
    Expectation,
    Mutation,
    fails,
    pick,
    some,
)

from mlxpipe.naming.names import core
from mlxpipe.quant.modes import Scheme


def truth(base: Base) -> dict[str, Scheme | None]:
    """Module path without wrappers -> what it is."""
    return {core(path): scheme for path, scheme in reference(base).truth.items()}


def lying_stamps(declarations: Declarations, base: Base) -> set[str]:
    """Modules, without wrappers, that a blob is stamped wrongly for."""
    stamped = {core(layer.removesuffix(".weight")) for layer, s in declarations.stamps.items() if s}
    general = Scheme("nvfp4", 4, 16)
    return {path for path, scheme in truth(base).items() if path in stamped and scheme != general}


def main_block(config: dict[str, Any]) -> tuple[tuple[str, ...], Block] | None:
    """The block that mlx-lm would believe, and its place."""
    found = blocks(config)
    return list(found.items())[-1] if found else None


def chosen(draw: Draw, declarations: Declarations) -> tuple[Declarations, Any, list[Entry]]:
    """A copy, its config, and some of its entries."""
    after, config = declarations.edited()
    found = main_block(config)
    listed = list(entries(found[1])) if found else []
    return after, config, some(draw, listed) if listed else []


def respelled(config: dict[str, Any], change: dict[tuple[str, ...], list[Entry]]) -> None:
    """Replace entries by their places, in every block."""
    for block in blocks(config).values():
        rebuilt(block, lambda entry: change.get(entry.place, [entry]))


# --- moved -----------------------------------------------------------------------------------


def other_prefix(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config, listed = chosen(draw, before)
    wrapping = pick(draw, WRAPPINGS)
    if not listed:
        return None
    respelled(
        config,
        {e.place: [Entry((wrapping + core(e.key),), e.value)] for e in listed},
    )
    return Mutation("other prefix", f"{wrapping}… of {len(listed)}", STAYS, after)


def with_weight(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config, listed = chosen(draw, before)
    listed = [entry for entry in listed if not entry.key.endswith(".weight")]
    if not listed:
        return None
    respelled(
        config,
        {e.place: [Entry((*e.place[:-1], e.place[-1] + ".weight"), e.value)] for e in listed},
    )
    return Mutation("with .weight", listed[0].key, STAYS, after)


def nested(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config, listed = chosen(draw, before)
    if not listed:
        return None
    deep = draw(st.booleans())
    change = {}
    for entry in listed:
        segments = entry.key.split(".")
        cut = draw(st.integers(1, max(1, len(segments) - 1)))
        halves = (".".join(segments[:cut]), ".".join(segments[cut:]))
        place = tuple(segments) if deep else tuple(filter(None, halves))
        change[entry.place] = [Entry(place, entry.value)]
    respelled(config, change)
    return Mutation("nested", f"{len(listed)} entries", STAYS, after)


def elsewhere(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    found = main_block(config)
    if found is None or len(blocks(config)) > 1:
        return None
    place = pick(draw, PLACES)
    remove_blocks(config)
    put(config, place, found[1])
    return Mutation(f"in {'.'.join(place)} only", "", STAYS, after)


def repeated(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    found = main_block(config)
    if found is None or len(blocks(config)) > 1:
        return None
    places = draw(st.lists(st.sampled_from(PLACES), min_size=2, unique=True))
    remove_blocks(config)
    for place in places:
        put(config, place, found[1])
    return Mutation("repeated, agreeing", " ".join(".".join(p) for p in places), STAYS, after)


def spelt_out(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config, listed = chosen(draw, before)
    known = truth(base)
    whole = {e.place: as_entry(known[e.path]) for e in listed if e.path in known}
    right = {
        e.place: [Entry(e.place, whole[e.place])]
        for e in listed
        if isinstance(e.value, dict)
        and e.place in whole
        and e.value.items() <= whole[e.place].items()
    }
    if not right:
        return None
    respelled(config, right)
    return Mutation("mode written out", f"{len(right)} entries", STAYS, after)


def reordered(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    for block in blocks(config).values():
        turned = list(reversed(block.items()))
        block.clear()
        block.update(turned)
    return Mutation("other order", "", LOADS, after) if blocks(config) else None


def said_of_more(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """Entries that say what is so anyway."""
    after, config = before.edited()
    if not blocks(config):
        return None
    path, scheme = pick(draw, sorted(reference(base).truth.items()))
    if core(path) in {e.path for block in blocks(config).values() for e in entries(block)}:
        return None
    for block in blocks(config).values():
        value = True if draw(st.booleans()) and _is_global(block, scheme) else as_entry(scheme)
        block[path] = value
    return Mutation("agreeing entry added", path, LOADS, after)


def _is_global(block: Block, scheme: Scheme | None) -> bool:
    return scheme is not None and as_entry(scheme) == scalars(block)


def twice(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config, listed = chosen(draw, before)
    if not listed:
        return None
    for block in blocks(config).values():
        block |= {f"{wrapped}.weight": e.value for e in listed if (wrapped := e.key)}
    return Mutation("said twice, agreeing", listed[0].key, LOADS, after)


def expert_names(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """Stacked experts by the names of their parts: all together, or one by one."""
    after, config = before.edited()
    modules = reference(base).plan.modules
    stacked = [path for path, module in modules.items() if module.kind == "experts"]
    if not blocks(config) or not stacked:
        return None
    path = pick(draw, stacked)
    block, _, projection = path.rpartition(".")
    prefix = f"{block.rpartition('.')[0]}.experts"
    count = modules[path].verdict.evidence.weight.shape[0]
    numbered = [f"{prefix}.{number}.{projection}" for number in range(count)]
    names = pick(draw, (numbered, [f"{prefix}.{projection}"]))
    right = modules[path].scheme
    lie = pick(draw, (None, *names))
    wrong = as_entry(other_scheme(draw, right))
    for each in blocks(config).values():
        rebuilt(each, lambda entry: [] if entry.path == core(path) else [entry])
        each |= {name: wrong if name == lie else as_entry(right) for name in names}
    expected = fails("contradiction", "divided-experts", names=core(path)) if lie else LOADS
    name = f"experts by name, {'one wrong' if lie else 'agreeing'}"
    return Mutation(name, f"{names[0]} and on, {lie or 'none'} wrong", expected, after)


# --- contradicted ----------------------------------------------------------------------------


def other_scheme(draw: Draw, right: Scheme | None, *, same_mode: bool = False) -> Scheme | None:
    """A scheme that MLX has and that is not the right one."""
    wrong = [each for each in SCHEMES if each != right]
    if same_mode and right is not None:
        wrong = [each for each in wrong if each.mode == right.mode] or wrong
    choices: list[Scheme | None] = [*wrong]
    if right is not None and not same_mode:
        choices.append(None)
    return pick(draw, choices)


def wrong_entry(draw: Draw, base: Base, entry: Entry, field: str = "") -> Any:
    """What an entry says, made wrong: in one field, or altogether."""
    right = truth(base)[entry.path]
    if right is None or not field:
        return as_entry(other_scheme(draw, right))
    choices = [
        scheme
        for scheme in SCHEMES
        if getattr(scheme, field) != getattr(right, field)
        and all(
            getattr(scheme, other) == getattr(right, other)
            for other in FIELDS
            if other != field and field != "mode"
        )
    ]
    if not choices:
        return as_entry(other_scheme(draw, right))
    return as_entry(pick(draw, choices))


def _known(base: Base, config: dict[str, Any]) -> list[Entry]:
    """Entries of the first block on modules that there are and that they describe rightly."""
    found = main_block(config)
    known = truth(base)
    listed = list(entries(found[1])) if found else []
    paths = [entry.path for entry in listed]
    return [e for e in listed if e.path in known and paths.count(e.path) == 1]


def wrong(field: str) -> Any:
    """Makes the kind of mutation that makes an entry wrong in a field, everywhere."""

    def kind(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
        after, config = before.edited()
        listed = _known(base, config)
        if not listed:
            return None
        entry = pick(draw, listed)
        value = wrong_entry(draw, base, entry, field)
        respelled(config, {entry.place: [Entry(entry.place, value)]})
        name = f"wrong {field.replace('_', ' ')}" if field else "wrong scheme"
        expected = fails("contradiction", names=entry.path)
        return Mutation(name, f"{entry.key}: {value}", expected, after)

    return kind


def contradicted_elsewhere(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """Two blocks, one of them wrong in an entry; the more trusted place is believed."""
    after, config = before.edited()
    listed = _known(base, config)
    if not listed or len(blocks(config)) > 1:
        return None
    entry = pick(draw, listed)
    value = wrong_entry(draw, base, entry)
    found = main_block(config)
    assert found is not None
    lie = copy.deepcopy(found[1])
    rebuilt(lie, lambda each: [each._replace(value=value)] if each.place == entry.place else [each])
    places = draw(st.lists(st.sampled_from(PLACES), min_size=2, max_size=2, unique=True))
    remove_blocks(config)
    put(config, places[0], found[1])
    put(config, places[1], lie)
    believed = PLACES.index(places[1]) > PLACES.index(places[0])
    expected = fails("contradiction", names=entry.path) if believed else LOADS
    detail = f"{entry.key} in {'.'.join(places[1])}: {value}"
    return Mutation(
        f"contradicted, {'and believed' if believed else 'stale'}", detail, expected, after
    )


def contradicted_spelling(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """One block that has an entry under two spellings; the later one is believed."""
    after, config = before.edited()
    listed = _known(base, config)
    if not listed:
        return None
    entry = pick(draw, listed)
    value = wrong_entry(draw, base, entry)
    respelling = Entry((entry.key + ".scales",), value)
    last = draw(st.booleans())
    respelled(config, {entry.place: [entry, respelling] if last else [respelling, entry]})
    expected = fails("contradiction", names=entry.path) if last else LOADS
    return Mutation("contradicted in one block", f"{respelling.key}: {value}", expected, after)


def contradicted_global(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """The global is another one: in every block, or in one of two."""
    after, config = before.edited()
    found = main_block(config)
    if found is None or not scalars(found[1]):
        return None
    wrong = as_entry(pick(draw, SCHEMES))
    if draw(st.booleans()):
        for block in blocks(config).values():
            block.update(wrong)
        return Mutation("wrong global", f"{wrong}", LOADS, after)
    copied = copy.deepcopy(found[1])
    copied.update(wrong)
    put(config, pick(draw, PLACES), copied)
    return Mutation("contradicted global", f"{wrong}", LOADS, after)


# --- absent ----------------------------------------------------------------------------------


def _without(base: Base, before: Declarations, paths: set[str]) -> Expectation:
    """What remains where these paths have no entry: the stamps, else the arithmetic."""
    lies = sorted(paths & lying_stamps(before, base))
    return fails("contradiction", names=lies[0]) if len(lies) == 1 else _several(lies)


def _several(lies: list[str]) -> Expectation:
    return fails("contradiction") if lies else LOADS


def no_declarations(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    if not blocks(config):
        return None
    remove_blocks(config)
    return Mutation("absent", "every block", _without(base, before, set(truth(base))), after)


def no_entry(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config, listed = chosen(draw, before)
    if not listed:
        return None
    respelled(config, {entry.place: [] for entry in listed})
    expected = _without(base, before, {entry.path for entry in listed})
    return Mutation("absent entry", f"{len(listed)} entries", expected, after)


def no_global(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    found = blocks(config).values()
    if not any(scalars(block) for block in found):
        return None
    for block in found:
        for key in FIELDS:
            block.pop(key, None)
    needed = any(entry.value is True for block in found for entry in entries(block))
    return Mutation("absent global", "", EITHER if needed else LOADS, after)


# --- unknown and damaged ---------------------------------------------------------------------

UNKNOWN_MODES = ("nvfp8", "int4", "NVFP4", "mxfp6", "", "affine ")


def unknown_mode(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    listed = _known(base, config)
    name = pick(draw, UNKNOWN_MODES)
    if not listed or (draw(st.booleans()) and scalars(main_block(config)[1])):  # type: ignore[index]
        for block in blocks(config).values():
            block["mode"] = name
        expected = fails("unknown-scheme", names=f"'{name}'")
        return Mutation("unknown mode", f"global: {name}", expected, after) if listed else None
    entry = pick(draw, listed)
    respelled(config, {entry.place: [Entry(entry.place, {"mode": name, "bits": 4})]})
    expected = fails("unknown-scheme", names=entry.path)
    return Mutation("unknown mode", f"{entry.key}: {name}", expected, after)


IMPOSSIBLE = (
    {"bits": 7},
    {"bits": 0, "group_size": 64},
    {"bits": 8, "group_size": 48},
    {"bits": -4},
    {"mode": "nvfp4", "bits": 8},
    {"mode": "nvfp4", "bits": 4, "group_size": 32},
    {"mode": "mxfp4", "group_size": 16},
    {"bits": 10**30},
)

DAMAGED = (
    "nvfp4",
    4,
    3.5,
    None,
    [],
    ["affine", 8, 64],
    {"bits": "8"},
    {"bits": True},
    {"bits": 8.0},
    {"bits": [8]},
    {"mode": 4},
    {"mode": {"name": "affine"}, "bits": 8},
    {"bits": 8, "groupsize": 64},
    {"group_size": "64", "bits": 8},
)


def spoilt(name: str, values: tuple[Any, ...], *codes: str) -> Any:
    """Makes the kind of mutation that puts a value that means nothing into an entry."""

    def kind(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
        after, config = before.edited()
        listed = _known(base, config)
        if not listed:
            return None
        entry, value = pick(draw, listed), pick(draw, values)
        respelled(config, {entry.place: [Entry(entry.place, value)]})
        return Mutation(name, f"{entry.key}: {value}", fails(*codes, names=entry.path), after)

    return kind


def damaged_block(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    found = main_block(config)
    if found is None:
        return None
    value = pick(draw, ("nvfp4", 4, [], True, [{"bits": 4}]))
    remove_blocks(config)
    put(config, found[0], value)
    expected = fails("malformed-quantization")
    return Mutation("damaged block", f"{'.'.join(found[0])}: {value}", expected, after)


def unknown_path(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    if not blocks(config):
        return None
    path = pick(draw, sorted(reference(base).truth))
    parent, _, leaf = path.rpartition(".")
    name = pick(
        draw,
        (
            f"{path}_x",
            f"{path}.inner",
            f"{parent}.{leaf[:-1]}",
            f"{parent}.x.{leaf}",
            parent,
            f"x.{path}",
            path.upper(),
            "layers.99.mlp.gate",
            "*.mlp.*",
            "",
        ),
    )
    value = pick(draw, (False, {"bits": 8, "group_size": 64}))
    for block in blocks(config).values():
        block[name] = value
    # A parent may be a module with parameters of its own.
    codes = ("unmatched-override", *(["not-quantisable"] if name == parent else []))
    expected = EITHER if name == parent and not value else fails(*codes, names=core(name))
    return Mutation("unknown path", f"{name}: {value}", expected, after)


def not_quantisable(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    found = main_block(config)
    if found is None:
        return None
    path = pick(draw, base.plain)
    key = pick(draw, (path, f"{path}.weight", core(path)))
    value = pick(draw, (False, {"bits": 8, "group_size": 64}, {"mode": "nvfp4"}))
    for block in blocks(config).values():
        block[key] = value
    expected = fails("not-quantisable", names=core(path)) if value else LOADS
    return Mutation("cannot be quantised", f"{key}: {value}", expected, after)


def anything(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    found = main_block(config)
    detail = disturb(draw, found[1]) if found else ""
    return Mutation("any value anywhere", detail, EITHER, after) if detail else None


PREFIXED = (other_prefix, with_weight, nested)
MOVED = (*PREFIXED, elsewhere, repeated, spelt_out)
HARMLESS = (reordered, said_of_more, twice, expert_names)
CONTRADICTED = (
    wrong("bits"),
    wrong("group_size"),
    wrong("mode"),
    wrong(""),
    contradicted_elsewhere,
    contradicted_spelling,
    contradicted_global,
)
LOST = (no_declarations, no_entry, no_global)
DAMAGED_KINDS = (
    unknown_mode,
    unknown_path,
    not_quantisable,
    spoilt("impossible scheme", IMPOSSIBLE, "unknown-scheme"),
    spoilt("damaged entry", DAMAGED, "malformed-quantization", "unknown-key"),
    damaged_block,
    anything,
)

KINDS = (*MOVED, *HARMLESS, *CONTRADICTED, *LOST, *DAMAGED_KINDS)
