"""AWQ: `quantization_config` of transformers, or AutoAWQ's quant_config.json.

Rules, in autoawq 0.2.9: awq/models/_config.py (the two spellings of the fields) and
awq/utils/module.py (exclude_layers_to_not_quantize). How `modules_to_not_convert` is read here, and
why, is in `skips`. gptqmodel writes AWQ with its own `dynamic` overrides, read as GPTQ's.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlxpipe.quant.claims import Block, Claim, Reach, Reading
from mlxpipe.quant.dialects.fields import Fields, Item, attempt, collect, refuse
from mlxpipe.quant.dialects.formats import DENSE_BITS, affine, read_integers
from mlxpipe.quant.dialects.gptq import overrides
from mlxpipe.quant.dialects.skips import skipped

VARIANT = "awq"
PACKED_BITS = 4


def read(block: Block, source: str) -> Reading:
    """The claims of one block."""
    return collect(_items, block, source)


def _items(fields: Fields, source: str) -> Iterator[Item]:
    _check_packing(fields)
    fields.flag("zero_point", True)
    top = read_integers(fields)
    if top.bits != PACKED_BITS and top.bits < DENSE_BITS:
        raise refuse(
            "unsupported-bits",
            f"AWQ's layout holds {PACKED_BITS}-bit codes",
            fields.at(fields.key("bits", "w_bit")),
            found=str(top.bits),
            expected=str(PACKED_BITS),
        )
    scheme = affine(top, fields)
    yield Claim(source, scheme, Reach.GLOBAL, "", fields.at(), variant=VARIANT if scheme else "")
    yield from overrides(fields, top, source, VARIANT)
    yield from attempt(skipped, fields, "modules_to_not_convert", source)


def _check_packing(fields: Fields) -> None:
    key = fields.key("version", "checkpoint_format", "format")
    version = fields.text(key, "gemm").lower()
    if fields.text("backend").lower() == "llm-awq":
        key, version = "backend", "llm-awq"
    if version != "gemm":
        raise refuse(
            "unsupported-format",
            f"AWQ's packing '{version:.60}' cannot be read",
            fields.at(key),
            found=version[:60],
            expected="gemm",
            help="export the checkpoint with version: gemm",
        )
