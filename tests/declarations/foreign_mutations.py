"""Other producers' declarations, moved and damaged in their own forms.

A producer's block stands in config.json, in a side file, or in both. config.json is believed before
a side file, so what is wrong in the side file alone is stale.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from bases import CONFIG, Base, Declarations, reference
from blocks import SCHEMES, as_entry
from disturbance import disturb
from hypothesis import strategies as st
from mlx_mutations import truth
from mutation import EITHER, LOADS, STAYS, Draw, Expectation, Kind, Mutation, fails, pick

from mlxpipe.naming.names import core

Block = dict[str, Any]

#: Where config.json may hold another producer's block, the most trusted last.
PLACES = (
    ("text_config", "compression_config"),
    ("text_config", "quantization_config"),
    ("compression_config",),
    ("quantization_config",),
)

SIDECARS = ("hf_quant_config.json", "quantization_config.json")

PREFIXES = ("", "model.", "language_model.model.", "model.language_model.")


class Edit(NamedTuple):
    """One way to change a block.

    Attributes:
        detail: What it changes.
        change: Changes a block in place.
        expected: What must come of it.
        stale: What must come of it where a more trusted block is as it was.
    """

    detail: str
    change: Callable[[Block], None]
    expected: Expectation
    stale: Expectation | None = None


#: The edits of one kind for a base.
Edits = Callable[[Base], Iterator[Edit]]


# --- where blocks stand ----------------------------------------------------------------------


def places(config: Block) -> list[tuple[str, ...]]:
    """Where config.json holds a block, the most trusted last."""
    return [place for place in PLACES if isinstance(_at(config, place), dict)]


def _at(config: Block, place: tuple[str, ...]) -> Any:
    value: Any = config
    for segment in place:
        value = value.get(segment) if isinstance(value, dict) else None
    return value


def _put(config: Block, place: tuple[str, ...], block: Block) -> None:
    inner = config.setdefault(place[0], {}) if len(place) == 2 else config
    inner[place[-1]] = copy.deepcopy(block)


def _remove(config: Block) -> None:
    for place in places(config):
        del (config[place[0]] if len(place) == 2 else config)[place[-1]]


def holders(before: Declarations) -> list[str]:
    """Documents that hold a block, the most trusted first."""
    own = [CONFIG] if places(before.documents[CONFIG]) else []
    return own + [name for name in SIDECARS if before.documents.get(name)]


def held(after: Declarations, holder: str) -> list[Block]:
    """The blocks of a document, where they may be changed."""
    document = after.documents[holder]
    if holder != CONFIG:
        return [document.get("quantization", document)]
    return [_at(document, place) for place in places(document)]


# --- moved -----------------------------------------------------------------------------------


def elsewhere(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    after, config = before.edited()
    found = places(config)
    if not found:
        return None
    block = copy.deepcopy(_at(config, found[-1]))
    chosen = draw(st.lists(st.sampled_from(PLACES), min_size=1, unique=True))
    _remove(config)
    for place in chosen:
        _put(config, place, block)
    kind = "block repeated, agreeing" if len(chosen) > 1 else f"block in {'.'.join(chosen[0])} only"
    return Mutation(kind, "", STAYS, after)


def one_document(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """Declared in config.json alone, or in the side file alone."""
    listed = holders(before)
    if len(listed) < 2:
        return None
    after, _ = before.edited()
    lost = pick(draw, listed)
    _forget(after, lost)
    return Mutation(f"not in {lost}", "", LOADS, after)


def _forget(after: Declarations, holder: str) -> None:
    if holder == CONFIG:
        _remove(after.documents[CONFIG])
    else:
        del after.documents[holder]  # type: ignore[attr-defined]


def nowhere(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    listed = holders(before)
    if not listed:
        return None
    after, _ = before.edited()
    for holder in listed:
        _forget(after, holder)
    return Mutation("absent", "every block", LOADS, after)


def own_block(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """An entry in mlx-lm's form beside the producer's block, which it beats."""
    after, config = before.edited()
    path, right = pick(draw, sorted(truth(base).items(), key=lambda item: item[0]))
    agrees = draw(st.booleans())
    choices = [None, *SCHEMES] if right else list(SCHEMES)
    value = right if agrees else pick(draw, [each for each in choices if each != right])
    config["quantization"] = {**config.get("quantization", {}), path: as_entry(value)}
    expected = LOADS if agrees else fails("contradiction", names=path)
    name = f"mlx-lm's entry beside it, {'agreeing' if agrees else 'wrong'}"
    return Mutation(name, f"{path}: {as_entry(value)}", expected, after)


def contradicted(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """Two blocks in config.json that differ; the more trusted place is believed."""
    after, config = before.edited()
    found = places(config)
    if len(found) != 1:
        return None
    right = copy.deepcopy(_at(config, found[0]))
    lie = copy.deepcopy(right)
    edit = pick(draw, list(WRONG[base.producer](base)))
    try:
        edit.change(lie)
    except (AttributeError, KeyError, TypeError):
        return None
    chosen = draw(st.lists(st.sampled_from(PLACES), min_size=2, max_size=2, unique=True))
    _remove(config)
    _put(config, chosen[0], right)
    _put(config, chosen[1], lie)
    believed = PLACES.index(chosen[1]) > PLACES.index(chosen[0])
    expected = edit.expected if believed else LOADS
    name = f"blocks that differ, {'believed' if believed else 'stale'}"
    return Mutation(name, f"{edit.detail} in {'.'.join(chosen[1])}", expected, after)


def edited(name: str, edits: Edits, *documents: str) -> Kind:
    """The kind of mutation that makes one of some edits, in one of some documents or in all."""

    def kind(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
        listed = [name for name in holders(before) if name in (documents or (name,))]
        choices = list(edits(base))
        if not listed or not choices:
            return None
        edit = pick(draw, choices)
        chosen = listed if draw(st.booleans()) else [pick(draw, listed)]
        after, _ = before.edited()
        try:
            for holder in chosen:
                for block in held(after, holder):
                    edit.change(block)
        except (AttributeError, KeyError, TypeError):
            return None  # an earlier mutation has damaged what this one would change
        if after.documents == before.documents:
            return None
        believed = listed[0] in chosen or edit.stale is None
        expected = edit.expected if believed else edit.stale
        assert expected is not None
        where = "everywhere" if chosen == listed else f"in {chosen[0]}"
        return Mutation(name, f"{edit.detail} {where}", expected, after)

    return kind


def _set(block: Block, *keys: str, value: Any) -> None:
    for key in keys[:-1]:
        block = block.setdefault(key, {})
    block[keys[-1]] = value


def setting(*keys: str, value: Any) -> Callable[[Block], None]:
    """An edit that writes a value."""
    return lambda block: _set(block, *keys, value=copy.deepcopy(value))


def dropping(key: str) -> Callable[[Block], None]:
    """An edit that takes a key away."""
    return lambda block: block.pop(key, None) and None


def renaming(section: str, change: Callable[[str], str]) -> Callable[[Block], None]:
    """An edit that respells the keys of a section."""

    def edit(block: Block) -> None:
        if isinstance(block.get(section), dict):
            block[section] = {change(key): value for key, value in block[section].items()}

    return edit


def methods(base: Base) -> Iterator[Edit]:
    """Whose block it is, made unknown."""
    for name in ("nonesuch", "GPTQ2", "bitsandbytes", "aqlm", 4, ["gptq"]):
        codes = ("unknown-quant-method", "refused-format", "malformed-quantization")
        yield Edit(f"quant_method: {name}", setting("quant_method", value=name), fails(*codes))
    for name in ("awq", "fp8", "compressed-tensors", "gptq", "modelopt", "mxfp4"):
        yield Edit(f"quant_method: {name}", setting("quant_method", value=name), EITHER)
    yield Edit("no quant_method", dropping("quant_method"), EITHER)


def anything(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """Any value in any place of a block, or the place taken away."""
    listed = holders(before)
    if not listed:
        return None
    after, _ = before.edited()
    holder = pick(draw, listed)
    detail = disturb(draw, held(after, holder)[-1])
    return Mutation("any value anywhere", f"{holder}: {detail}", EITHER, after) if detail else None


# --- compressed-tensors ----------------------------------------------------------------------


def ct_paths(base: Base, part: str) -> list[str]:
    return [path for path in reference(base).truth if part in path.split(".")]


def _listed(base: Base, prefix: str) -> Callable[[Block], None]:
    def edit(block: Block) -> None:
        for group, part in (("group_0", "self_attn"), ("group_1", "mlp")):
            targets = [prefix + core(path) for path in ct_paths(base, part)]
            block["config_groups"][group]["targets"] = targets

    return edit


def ct_moved(base: Base) -> Iterator[Edit]:
    for prefix in PREFIXES:
        yield Edit(f"targets by path, {prefix}…", _listed(base, prefix), LOADS)
    regex = setting(
        "config_groups", "group_0", "targets", value=[r"re:model\.layers\.\d+\.self_attn"]
    )
    yield Edit("targets by anchored regex", regex, LOADS)
    linear = setting("config_groups", "group_1", "targets", value=["Linear"])
    yield Edit("targets by class", linear, LOADS)
    yield Edit("ignores what is not there", _ignoring("model.visual.blocks.0.attn"), STAYS)
    yield Edit("ignores a norm", _ignoring("model.norm"), STAYS)
    yield Edit("ignores nothing", setting("ignore", value=[]), STAYS)


def _ignoring(*names: str) -> Callable[[Block], None]:
    return lambda block: block.setdefault("ignore", []).extend(names)


def _weights(group: str, **fields: Any) -> Callable[[Block], None]:
    return lambda block: block["config_groups"][group]["weights"].update(fields)


def _swap(block: Block) -> None:
    groups = block["config_groups"]
    first, second = groups["group_0"], groups["group_1"]
    first["targets"], second["targets"] = second["targets"], first["targets"]


def ct_wrong(base: Base) -> Iterator[Edit]:
    for bits in (2, 3, 4, 6):
        expected = fails("contradiction", names="self_attn")
        yield Edit(f"num_bits {bits}", _weights("group_0", num_bits=bits), expected)
    for size in (16, 32, 64):
        expected = fails("contradiction", names="self_attn")
        yield Edit(f"group_size {size}", _weights("group_0", group_size=size), expected)
    yield Edit("targets swapped", _swap, fails("contradiction"))
    path = "layers.0.mlp.up_proj"
    ignored = fails("contradiction", names=path)
    for prefix in PREFIXES:
        yield Edit(f"ignores {prefix}{path}", _ignoring(prefix + path), ignored)
    yield Edit("ignores by regex", _ignoring(r"re:.*\.0\.mlp\.up_proj"), ignored)


def ct_lost(base: Base) -> Iterator[Edit]:
    for group in ("group_0", "group_1"):
        gone = group
        yield Edit(f"no {group}", lambda block, gone=gone: block["config_groups"].pop(gone), LOADS)
    yield Edit("no groups", setting("config_groups", value={}), LOADS)


def ct_damaged(base: Base) -> Iterator[Edit]:
    def targets(*names: Any) -> Callable[[Block], None]:
        return lambda block: block["config_groups"]["group_0"]["targets"].extend(names)

    missing = "model.layers.9.self_attn.q_proj"
    unmatched = "unmatched-override"
    yield Edit("unknown path", targets(missing), fails(unmatched, names=core(missing)))
    yield Edit("unknown regex", targets("re:.*nothing.*"), fails(unmatched, names="nothing"))
    yield Edit("unknown class", targets("NoSuchLinear"), LOADS)
    norm = fails("not-quantisable", names="norm")
    yield Edit("a norm's path", targets("model.norm"), norm)
    yield Edit("broken regex", targets("re:("), fails("malformed-pattern", names="re:("))
    yield Edit("a number", targets(4), fails("malformed-quantization", names="targets"))
    broken = "malformed-quantization"
    yield Edit("type posit", _weights("group_0", type="posit"), fails(broken, names="type"))
    yield Edit("bits in words", _weights("group_0", num_bits="8"), fails(broken, names="num_bits"))
    yield Edit("7 bits", _weights("group_0", num_bits=7), fails("unsupported-bits", names="7"))
    form = setting("config_groups", "group_0", "format", value="nonesuch")
    yield Edit("unknown format", form, fails("unknown-format", names="nonesuch"))
    form = setting("config_groups", "group_0", "format", value="float-quantized")
    yield Edit("another format", form, fails("contradicting-format", names="float-quantized"))
    yield Edit("groups a list", setting("config_groups", value=[1]), fails(broken, names="groups"))
    yield Edit("no groups key", dropping("config_groups"), fails(broken, names="config_groups"))


# --- ModelOpt --------------------------------------------------------------------------------


def _layer(base: Base, path: str, **fields: Any) -> Callable[[Block], None]:
    return lambda block: block["quantized_layers"][path].update(fields)


def mo_paths(base: Base) -> list[str]:
    return list(
        base.declarations.documents["hf_quant_config.json"]["quantization"]["quantized_layers"]
    )


def mo_moved(base: Base) -> Iterator[Edit]:
    for prefix in PREFIXES:
        respell = renaming("quantized_layers", lambda key, prefix=prefix: prefix + core(key))  # type: ignore[misc]
        yield Edit(f"layers under {prefix}…", respell, LOADS)
    yield Edit(
        "layers with .weight", renaming("quantized_layers", lambda key: key + ".weight"), LOADS
    )


def mo_wrong(base: Base) -> Iterator[Edit]:
    for path in mo_paths(base):
        algorithm = "FP8" if "mlp" in path.split(".") else "NVFP4"
        expected = fails("contradiction", names=core(path))
        change = setting("quantized_layers", path, value={"quant_algo": algorithm})
        yield Edit(f"{path}: {algorithm}", change, expected, LOADS)


def mo_lost(base: Base) -> Iterator[Edit]:
    for path in mo_paths(base)[::5]:
        gone = path
        yield Edit(
            f"no {path}", lambda block, gone=gone: block["quantized_layers"].pop(gone, None), LOADS
        )
    yield Edit("no layers", setting("quantized_layers", value={}), LOADS)
    yield Edit("global alone", setting("quant_algo", value="NVFP4"), LOADS)


def mo_damaged(base: Base) -> Iterator[Edit]:
    path = mo_paths(base)[0]
    layer = core(path)

    def said(**entry: Any) -> Callable[[Block], None]:
        return setting("quantized_layers", path, value=entry)

    unknown = fails("unknown-algorithm", names=layer)
    yield Edit("unknown algorithm", said(quant_algo="NVFP5"), unknown)
    refused = fails("unsupported-algorithm", names=layer)
    yield Edit("refused algorithm", said(quant_algo="NVFP4_AWQ", group_size=16), refused)
    size = fails("unsupported-group-size", names=layer)
    yield Edit("wrong group size", said(quant_algo="NVFP4", group_size=32), size)
    broken = "malformed-quantization"
    yield Edit(
        "size in words", said(quant_algo="NVFP4", group_size="16"), fails(broken, names=layer)
    )
    yield Edit("a name", setting("quantized_layers", path, value="FP8"), fails(broken, names=layer))
    missing = "model.layers.9.mlp.up_proj"
    entry = setting("quantized_layers", missing, value={"quant_algo": "FP8"})
    yield Edit("unknown path", entry, fails("unmatched-override", names=core(missing)))
    norm = setting("quantized_layers", "model.norm", value={"quant_algo": "FP8"})
    yield Edit("a norm's path", norm, fails("not-quantisable", names="norm"))
    yield Edit("unknown global", setting("quant_algo", value="NVFP5"), fails("unknown-algorithm"))
    yield Edit("layers a list", setting("quantized_layers", value=[]), fails(broken))


# --- GPTQ ------------------------------------------------------------------------------------

PLUS = r"+:.*model\.layers\.1\.mlp\.down_proj.*"
MINUS = r"-:.*model\.layers\.0\.self_attn\.q_proj.*"


def gptq_moved(base: Base) -> Iterator[Edit]:
    spellings = {
        PLUS: r"+:.*layers\.1\.mlp\.down_proj",
        MINUS: r"-:.*layers\.0\.self_attn\.q_proj",
    }
    anchored = {
        PLUS: r"model\.layers\.1\.mlp\.down_proj$",
        MINUS: r"-:model\.layers\.0\.self_attn\.q_proj$",
    }
    bare = {PLUS: r"+:layers\.1\.mlp\.down_proj", MINUS: r"-:layers\.0\.self_attn\.q_proj"}
    for detail, table in (("loose", spellings), ("anchored", anchored), ("bare", bare)):
        respell = renaming("dynamic", lambda key, table=table: table.get(key, key))  # type: ignore[misc]
        yield Edit(f"patterns {detail}", respell, LOADS)
    yield Edit("lm_head unsaid", dropping("lm_head"), STAYS)
    yield Edit("format said", setting("checkpoint_format", value="gptq"), STAYS)


def gptq_wrong(base: Base) -> Iterator[Edit]:
    for fields in ({"bits": 4}, {"bits": 2}, {"bits": 8, "group_size": 32}, {"group_size": 128}):
        expected = fails("contradiction", names="down_proj")
        yield Edit(f"dynamic {fields}", setting("dynamic", PLUS, value=fields), expected, LOADS)
    name = r"-:.*layers\.0\.mlp\.up_proj"
    expected = fails("contradiction", names="up_proj")
    yield Edit("dense, says dynamic", setting("dynamic", name, value={}), expected, None)


def gptq_lost(base: Base) -> Iterator[Edit]:
    yield Edit("no dynamic", dropping("dynamic"), LOADS)
    for bits in (2, 3, 8):
        yield Edit(f"top bits {bits}", setting("bits", value=bits), LOADS)
    for size in (32, 128, -1):
        yield Edit(f"top group size {size}", setting("group_size", value=size), LOADS)
    yield Edit("not sym", setting("sym", value=False), LOADS)
    yield Edit("desc_act", setting("desc_act", value=True), LOADS)


def gptq_damaged(base: Base) -> Iterator[Edit]:
    broken = "malformed-quantization"
    yield Edit("7 bits", setting("bits", value=7), fails("unsupported-bits", names="bits"))
    yield Edit("bits in words", setting("bits", value="4"), fails(broken, names="bits"))
    yield Edit("no bits", dropping("bits"), fails("missing-field", names="bits"))
    size = setting("group_size", value=0)
    yield Edit("groups of 0", size, fails(broken, names="group_size"))
    form = setting("checkpoint_format", value="gptq_v3")
    yield Edit("unknown format", form, fails("unknown-format", names="gptq_v3"))
    form = setting("checkpoint_format", value="marlin")
    yield Edit("refused format", form, fails("unsupported-format", names="marlin"))
    dense = setting("dynamic", "+:.*nothing.*", value={"bits": 8})
    yield Edit("unknown pattern", dense, fails("unmatched-override", names="nothing"))
    regex = setting("dynamic", "+:(", value={"bits": 8})
    yield Edit("broken pattern", regex, fails("malformed-pattern", names="+:("))
    yield Edit("dynamic a list", setting("dynamic", value=[PLUS]), fails(broken, names="dynamic"))
    yield Edit(
        "7 bits, says dynamic",
        setting("dynamic", PLUS, value={"bits": 7}),
        fails("unsupported-bits"),
    )


def gptq_variant(base: Base) -> Iterator[Edit]:
    """The format whose zero points mean something else."""
    form = setting("checkpoint_format", value="gptq_v2")
    yield Edit("format gptq_v2", form, fails("contradiction", names="gptq_v2"), LOADS)


# --- AutoRound -------------------------------------------------------------------------------

EXTRA = "model.layers.1.mlp.down_proj"


def ar_moved(base: Base) -> Iterator[Edit]:
    for prefix in PREFIXES:
        respell = renaming("extra_config", lambda key, prefix=prefix: prefix + core(key))  # type: ignore[misc]
        yield Edit(f"extra_config under {prefix}…", respell, LOADS)
        blocks = setting("block_name_to_quantize", value=f"{prefix}layers")
        yield Edit(f"blocks {prefix}layers", blocks, LOADS)
    regex = renaming("extra_config", lambda key: r".*layers\.1\.mlp\.down_proj")
    yield Edit("extra_config by regex", regex, LOADS)
    listed = setting("block_name_to_quantize", value=["model.layers.0", "model.layers.1"])
    yield Edit("blocks in a list", listed, LOADS)
    yield Edit("no blocks", dropping("block_name_to_quantize"), LOADS)


def ar_wrong(base: Base) -> Iterator[Edit]:
    for fields in ({"bits": 4}, {"bits": 2}, {"bits": 8, "group_size": 32}, {"bits": 16}):
        expected = fails("contradiction", names=core(EXTRA))
        yield Edit(
            f"extra_config {fields}", setting("extra_config", EXTRA, value=fields), expected, LOADS
        )


def ar_lost(base: Base) -> Iterator[Edit]:
    yield Edit("no extra_config", dropping("extra_config"), EITHER)
    for bits in (2, 3, 8):
        yield Edit(f"top bits {bits}", setting("bits", value=bits), EITHER)


def ar_damaged(base: Base) -> Iterator[Edit]:
    broken = "malformed-quantization"
    missing = "model.layers.9.mlp.up_proj"
    entry = setting("extra_config", missing, value={"bits": 8})
    yield Edit("unknown path", entry, fails("unmatched-override", names=core(missing)))
    norm = setting("extra_config", "model.norm", value={"bits": 8})
    yield Edit("a norm's path", norm, fails("not-quantisable", names="norm"))
    seven = setting("extra_config", EXTRA, value={"bits": 7})
    yield Edit("7 bits", seven, fails("unsupported-bits", names=core(EXTRA)))
    words = setting("extra_config", EXTRA, value={"bits": "8"})
    yield Edit("bits in words", words, fails(broken, names=core(EXTRA)))
    packing = setting("packing_format", value="auto_round:nonesuch")
    yield Edit("unknown packing", packing, fails("unknown-format", names="nonesuch"))
    numbers = setting("data_type", value="mx_fp")
    yield Edit("another data type", numbers, fails("unsupported-scheme"))
    extra = setting("extra_config", value=[EXTRA])
    yield Edit("extra_config a list", extra, fails(broken, names="extra_config"))


def ar_variant(base: Base) -> Iterator[Edit]:
    packing = setting("packing_format", value="auto_round")
    yield Edit("packing auto_round", packing, fails("contradiction", names="gptq_v2"), LOADS)


WRONG: dict[str, Edits] = {
    "compressed-tensors": ct_wrong,
    "modelopt": mo_wrong,
    "gptq": gptq_wrong,
    "autoround": ar_wrong,
}

_EVERY: tuple[Kind, ...] = (
    elsewhere,
    one_document,
    nowhere,
    own_block,
    contradicted,
    edited("another quant_method", methods, CONFIG),
    anything,
)


def _kinds(moved: Edits, wrong: Edits, lost: Edits, damaged: Edits) -> tuple[Kind, ...]:
    return (
        *_EVERY,
        edited("respelt", moved),
        edited("wrong declaration", wrong),
        edited("absent in part", lost),
        edited("damaged declaration", damaged),
    )


KINDS: dict[str, tuple[Kind, ...]] = {
    "other": (elsewhere, one_document, own_block, anything),
    "compressed-tensors": _kinds(ct_moved, ct_wrong, ct_lost, ct_damaged),
    "modelopt": _kinds(mo_moved, mo_wrong, mo_lost, mo_damaged),
    "gptq": (
        *_kinds(gptq_moved, gptq_wrong, gptq_lost, gptq_damaged),
        edited("other variant", gptq_variant),
    ),
    "autoround": (
        *_kinds(ar_moved, ar_wrong, ar_lost, ar_damaged),
        edited("other variant", ar_variant),
    ),
}
