"""gpt-oss: `quant_method: mxfp4`, which speaks of the experts alone.

Rule, in transformers 5.23: integrations/mxfp4.py (replace_with_mxfp4_linear: the experts of each
MLP unless `modules_to_not_convert` has them). Skipped modules: see `skips`.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlxpipe.quant.claims import Block, Claim, Reach, Reading
from mlxpipe.quant.dialects.fields import Fields, Item, attempt, collect
from mlxpipe.quant.dialects.formats import MXFP4
from mlxpipe.quant.dialects.skips import skipped

EXPERTS = "experts"


def read(block: Block, source: str) -> Reading:
    """The claims of one block."""
    return collect(_items, block, source)


def _items(fields: Fields, source: str) -> Iterator[Item]:
    origin = fields.at("quant_method")
    note = "quant_method: mxfp4 speaks of the experts"
    yield Claim(source, MXFP4, Reach.PATTERN, EXPERTS, origin, note, "segments")
    yield from attempt(skipped, fields, "modules_to_not_convert", source)
