"""FP8 as DeepSeek, Qwen and transformers declare it: `quant_method: fp8`, and its relatives.

Rules, in transformers 5.23: utils/quantization_config.py (FineGrainedFP8Config: blocks of 128×128
where none are given, null for one scale per tensor; `ignored_layers` is an alias;
FbgemmFp8Config), integrations/finegrained_fp8.py (every linear and the experts) and
integrations/fbgemm_fp8.py (one scale per row). vLLM takes an omitted block size as one scale per
tensor: the shape of the scales tells. Skipped modules: see `skips`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlxpipe.quant.claims import Block, Claim, Reach, Reading
from mlxpipe.quant.dialects.fields import Fields, Item, attempt, collect, malformed, refuse
from mlxpipe.quant.dialects.formats import FP8, FP8_ROW, FP8_TENSOR, fp8_blocks, pair, whole_blocks
from mlxpipe.quant.dialects.skips import skipped

#: quant_method -> the note where no block size is read.
NOTES: Mapping[str, str] = {
    "fbgemm_fp8": FP8_ROW,
    "mxfp8": "MXFP8: an E8M0 scale per 32 columns",
}

NUMBERS = frozenset({"e4m3", "e4m3fn", "float8_e4m3fn"})
SCALES = frozenset({"float", "float32", "ue8m0"})


def read(block: Block, source: str) -> Reading:
    """The claims of one block."""
    return collect(_items, block, source)


def _items(fields: Fields, source: str) -> Iterator[Item]:
    _check_word(fields, "fmt", "e4m3", NUMBERS)
    _check_word(fields, "scale_fmt", "float", SCALES)
    _check_word(fields, "expert_dtype", "fp8", frozenset({"fp8"}))
    note = NOTES.get(fields.text("quant_method").lower()) or _note(fields)
    yield Claim(source, FP8, Reach.GLOBAL, "", fields.at(), note)
    for key in ("modules_to_not_convert", "ignored_layers"):
        yield from attempt(skipped, fields, key, source)


def _check_word(fields: Fields, key: str, default: str, known: frozenset[str]) -> None:
    word = fields.text(key, default).lower()
    if word not in known:
        raise refuse(
            "unsupported-format",
            f"FP8 with {key} '{word:.40}' has no counterpart in MLX",
            fields.at(key),
            found=word[:40],
            expected=" or ".join(sorted(known)),
        )


def _note(fields: Fields) -> str:
    if "weight_block_size" not in fields.block.data:
        return "FP8; no block size given: the shape of the scales tells"
    size = fields.block.data["weight_block_size"]
    if size is None:
        return FP8_TENSOR
    block = pair(size)
    origin = fields.at("weight_block_size")
    if block is not None:
        return fp8_blocks(*whole_blocks(block, origin))
    raise malformed(origin, "weight_block_size", size, "two positive whole numbers, or null")
