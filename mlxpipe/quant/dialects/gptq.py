"""GPTQ: `quantization_config`, or quantize_config.json beside it.

Rules, in gptqmodel 7.7: quantization/config.py (_resolve_dynamic_override: regular expressions from
the start, the first match holds, `-:` leaves dense, `+:` or nothing quantises; the aliases in
QUANT_CONFIG_ARG_SYNONYMS; `checkpoint_format` before `format`) and utils/model.py (each field that
an override omits is the top one's). `lm_head` is packed only where it says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from mlxpipe.errors import did_you_mean
from mlxpipe.quant.claims import Block, Claim, Reach, Reading
from mlxpipe.quant.dialects.fields import Fields, Item, attempt, checked_regex, collect, refuse
from mlxpipe.quant.dialects.formats import Integers, affine, inherited, read_integers

#: checkpoint_format -> variant: what `qzeros` hold.
VARIANTS: Mapping[str, str] = {"gptq": "gptq", "gptq_v2": "gptq_v2"}

#: Formats whose packing belongs to one GPU kernel or another method.
REFUSED_FORMATS = frozenset({"marlin", "bitblas", "gptq_p", "qqq", "gguf", "exl3", "exl2"})

NEGATIVE, POSITIVE = "-:", "+:"


def read(block: Block, source: str) -> Reading:
    """The claims of one block."""
    return collect(_items, block, source)


def _items(fields: Fields, source: str) -> Iterator[Item]:
    variant = _variant(fields)
    top = read_integers(fields)
    scheme = affine(top, fields)
    yield Claim(source, scheme, Reach.GLOBAL, "", fields.at(), variant=variant if scheme else "")
    yield from overrides(fields, top, source, variant)
    if fields.has("lm_head") and not fields.flag("lm_head"):
        origin = fields.at("lm_head")
        yield Claim(source, None, Reach.PATH, "lm_head", origin, "lm_head: false", optional=True)


def _variant(fields: Fields) -> str:
    key = fields.key("checkpoint_format", "format")
    form = fields.text(key, "gptq").lower()
    if fields.has("is_marlin_format") and fields.flag("is_marlin_format"):
        key, form = "is_marlin_format", "marlin"
    if form in VARIANTS:
        return VARIANTS[form]
    known = form in REFUSED_FORMATS
    raise refuse(
        "unsupported-format" if known else "unknown-format",
        f"GPTQ's format '{form:.60}' {'cannot be read' if known else 'is unknown'}",
        fields.at(key),
        found=form[:60],
        expected=" or ".join(VARIANTS),
        help=did_you_mean(form, VARIANTS) or "export the checkpoint in one of these formats",
    )


def overrides(fields: Fields, top: Integers, source: str, variant: str) -> Iterator[Item]:
    """The claims of `dynamic`: the producer's first match is our last."""
    dynamic = fields.below("dynamic")
    for key in reversed(list(dynamic.block.data)):
        yield from attempt(_override, dynamic, key, top, source, variant)


def _override(
    dynamic: Fields, key: str, top: Integers, source: str, variant: str
) -> Iterator[Claim]:
    origin = dynamic.at(key)
    bare = key[2:] if key.startswith((NEGATIVE, POSITIVE)) else key
    pattern = checked_regex(bare, origin, key)
    entry = dynamic.below(key)
    base = Claim(source, None, Reach.PATTERN, pattern, origin, key, "regex-start", optional=True)
    if key.startswith(NEGATIVE):
        yield base
        return
    scheme = affine(read_integers(entry, top), entry)
    note = "; ".join(filter(None, (key, inherited(entry, "bits", "group_size"))))
    dense = scheme is None
    yield replace(base, scheme=scheme, note=note, optional=dense, variant="" if dense else variant)
