"""Intel AutoRound: `quant_method: auto-round`, in config.json or quantization_config.json.

Rules, in auto-round 0.16: inference/convert_model.py (get_layer_config: the blocks' names are raw
prefixes; each field that `extra_config` omits is the top one's; the aliases of `packing_format`),
inference/utils.py (_expand_regex_config: a key that is no path is searched for as a regular
expression, the first one holds, a path beats it, an empty entry says nothing),
inference/backend.py (which packing stores z - 1) and utils/model.py (check_to_quantized).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mlxpipe.errors import Origin, did_you_mean
from mlxpipe.quant.claims import Block, Claim, Reach, Reading
from mlxpipe.quant.dialects.fields import (
    Fields,
    Item,
    UnreadableError,
    attempt,
    cache_note,
    checked_regex,
    collect,
    malformed,
    refuse,
    spell,
)
from mlxpipe.quant.dialects.formats import (
    DENSE_BITS,
    FP8,
    FP8_ROW,
    FP8_TENSOR,
    MXFP4,
    MXFP8,
    NVFP4,
    Integers,
    affine,
    inherited,
    read_integers,
)
from mlxpipe.quant.dialects.skips import is_regex
from mlxpipe.quant.modes import Scheme


class Packing(NamedTuple):
    """A packing format: which numbers it holds, and the claims' variant."""

    numbers: str
    variant: str = ""


class Record(NamedTuple):
    """What is declared for a layer, complete."""

    integers: Integers
    data_type: str


GPTQ, TRUE_ZEROS = Packing("int", "gptq"), Packing("int", "gptq_v2")
AWQ, FLOAT8 = Packing("int", "awq"), Packing("fp8")

#: packing_format -> what is packed. `auto_round` alone stores the true zero points.
PACKINGS: Mapping[str, Packing] = {
    "auto": GPTQ,
    "auto_round:gptq": GPTQ,
    "auto_round:auto_gptq": GPTQ,
    "auto_round": TRUE_ZEROS,
    "auto_round:gptqmodel": TRUE_ZEROS,
    "auto_round:awq": AWQ,
    "auto_round:auto_awq": AWQ,
    "auto_round:llm_compressor": Packing("micro"),
    "auto_round:fp8": FLOAT8,
    "auto_round:fp8_static": FLOAT8,
    "mlx": Packing("int"),
    "auto_round:mlx": Packing("int"),
}

#: What AutoRound takes where `packing_format` is omitted.
DEFAULT_PACKING = "auto_round:auto_gptq"

#: (start of data_type, bits, group size) -> scheme of a micro-scaled format.
MICRO: Mapping[tuple[str, int, int], Scheme] = {
    ("mx_fp", 4, 32): MXFP4,
    ("mx_fp", 8, 32): MXFP8,
    ("nv_fp", 4, 16): NVFP4,
}

INTEGER_TYPES = frozenset({"int", "int_sym", "int_asym"})
FP8_TYPES = frozenset({"fp", "fp8", "fp8_e4m3"})

#: (bits, group size) -> the note for FP8.
FP8_NOTES: Mapping[tuple[int, int], str] = {(8, -1): FP8_ROW, (8, 0): FP8_TENSOR}

#: Where blocks to quantise are listed; the first that is there holds.
ALLOW_LISTS = ("quant_block_list", "block_name_to_quantize", "to_quant_block_names")


def read(block: Block, source: str) -> Reading:
    """The claims of one block."""
    return collect(_items, block, source)


def _items(fields: Fields, source: str) -> Iterator[Item]:
    yield from cache_note(fields, "static_kv_dtype")
    _check_rotation(fields)
    packing = _packing(fields)
    top = _record(fields, None)
    scheme, note = _scheme(top, packing, fields)
    variant = packing.variant if scheme else ""
    base = Claim(source, scheme, Reach.GLOBAL, "", fields.at(), note, variant=variant)
    yield from attempt(_allowed, fields, base)
    yield from _extras(fields, top, packing, source)


def _check_rotation(fields: Fields) -> None:
    for key in ("rotation_config", "transform_config"):
        value = fields.block.data.get(key)
        if value not in (None, {}, [], ""):
            raise refuse(
                "transformed-weights",
                "the weights need rotations at run time, which are not supported",
                fields.at(key),
                found=spell(value),
                help="use an export without rotations",
            )


def _packing(fields: Fields) -> Packing:
    # Versions before `packing_format` named a kernel in `backend`; what it packed is not told.
    key = fields.key("packing_format", "backend")
    name = fields.text(key, DEFAULT_PACKING).lower()
    if name in PACKINGS:
        return PACKINGS[name]
    raise refuse(
        "unknown-format",
        f"AutoRound's packing '{name:.60}' cannot be read",
        fields.at(key),
        found=name[:60],
        expected=", ".join(PACKINGS),
        help=did_you_mean(name, PACKINGS) or "export the checkpoint with one of these",
    )


# --- the allow-list --------------------------------------------------------------------------


def _allowed(fields: Fields, top: Claim) -> Iterator[Claim]:
    """The top scheme for the listed blocks, for all modules where none are listed."""
    key = fields.key(*ALLOW_LISTS)
    names = list(_blocks(fields.block.data.get(key), (key,), fields))
    if not names:
        yield top
    for name, origin in names:
        yield Claim(
            top.source,
            top.scheme,
            Reach.PATTERN,
            name,
            origin,
            "; ".join(filter(None, (f"listed in {key}", top.note))),
            "prefix",
            optional=True,
            variant=top.variant,
        )


def _blocks(value: Any, place: tuple[str, ...], fields: Fields) -> Iterable[tuple[str, Origin]]:
    """Names in a string with commas, a list, or lists of lists."""
    origin = fields.at(*place)
    if value is None and len(place) == 1:
        return
    if isinstance(value, str):
        for name in value.split(","):
            if name.strip():
                yield name.strip(), origin
    elif isinstance(value, list) and len(place) < 4:
        for number, item in enumerate(value):
            yield from _blocks(item, (*place, str(number)), fields)
    else:
        raise malformed(origin, place[0], value, "names of blocks")


# --- overrides -------------------------------------------------------------------------------


def _extras(fields: Fields, top: Record, packing: Packing, source: str) -> Iterator[Item]:
    """Patterns before paths, and the first pattern last: the later claim wins."""
    extras = fields.below("extra_config")
    keys = list(extras.block.data)
    patterns = [key for key in reversed(keys) if is_regex(key)]
    for key in (*patterns, *(key for key in keys if not is_regex(key))):
        yield from attempt(_extra, extras, key, top, packing, source)


def _extra(extras: Fields, key: str, top: Record, packing: Packing, source: str) -> Iterator[Claim]:
    entry, origin = extras.below(key), extras.at(key)
    pattern, reach = key, Reach.PATH
    if is_regex(key):
        pattern = "re:" + checked_regex(key, origin, key)
        reach = Reach.PATTERN
        if not entry.block.data:
            return
    scheme, note = _scheme(_record(entry, top), packing, entry)
    left = inherited(entry, "bits", "group_size", "data_type")
    yield Claim(
        source,
        scheme,
        reach,
        pattern,
        origin,
        "; ".join(filter(None, (note, left))),
        optional=scheme is None,
        variant=packing.variant if scheme else "",
    )


# --- schemes ---------------------------------------------------------------------------------


def _record(fields: Fields, top: Record | None) -> Record:
    integers = read_integers(fields, top.integers if top else None)
    return Record(integers, fields.text("data_type", top.data_type if top else "int").lower())


def _scheme(record: Record, packing: Packing, fields: Fields) -> tuple[Scheme | None, str]:
    bits, size = record.integers
    if bits >= DENSE_BITS:
        return None, f"{bits} bits: dense"
    if packing.numbers == "int" and record.data_type in INTEGER_TYPES:
        return affine(record.integers, fields), ""
    micro = MICRO.get((record.data_type[:5], bits, size))
    if packing.numbers == "micro" and micro is not None:
        return micro, ""
    note = FP8_NOTES.get((bits, size), "")
    if packing.numbers == "fp8" and record.data_type in FP8_TYPES and note:
        return FP8, note
    raise _unsupported(record, fields.at())


def _unsupported(record: Record, origin: Origin) -> UnreadableError:
    bits, size = record.integers
    return refuse(
        "unsupported-scheme",
        f"AutoRound's {record.data_type:.40} with {bits} bits in groups of {size} cannot be read "
        "in this packing",
        origin,
        help="export the checkpoint with another scheme or packing_format",
    )
