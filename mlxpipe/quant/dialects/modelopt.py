"""NVIDIA ModelOpt: `quantization_config` in config.json, and hf_quant_config.json.

Rules, in nvidia-modelopt 0.47: modelopt/torch/export/quant_utils.py (process_layer_quant_config:
the algorithms, `quantized_layers` by exact path, `exclude_modules` as globs made by
_prefix_wildcard_summarize_exclude_modules) and convert_hf_config.py (the spelling in config.json:
`ignore`, `kv_cache_scheme`). What each algorithm stores: to_quantized_weight in quant_utils.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mlxpipe.errors import Origin, did_you_mean
from mlxpipe.naming.names import is_pattern
from mlxpipe.quant.claims import Block, Claim, Reach, Reading
from mlxpipe.quant.dialects.fields import (
    Fields,
    Item,
    attempt,
    cache_note,
    checked_regex,
    collect,
    malformed,
    refuse,
)
from mlxpipe.quant.dialects.formats import FP8, FP8_ROW, FP8_TENSOR, MXFP4, MXFP8, NVFP4
from mlxpipe.quant.modes import Scheme

MIXED = "MIXED_PRECISION"


class Algorithm(NamedTuple):
    """What an algorithm stores for a weight.

    Attributes:
        scheme: The scheme.
        note: For `explain`.
        grouped: Whether a declared `group_size` must be the scheme's.
    """

    scheme: Scheme
    note: str = ""
    grouped: bool = True


#: quant_algo in capitals -> what it stores. Only the weights matter here.
ALGORITHMS: Mapping[str, Algorithm] = {
    "NVFP4": Algorithm(NVFP4),
    "W4A16_NVFP4": Algorithm(NVFP4, "weights alone in NVFP4"),
    "MXFP4": Algorithm(MXFP4),
    "W4A8_MXFP4_FP8": Algorithm(MXFP4, "weights in MXFP4, activations in FP8"),
    "MXFP8": Algorithm(MXFP8),
    "FP8": Algorithm(FP8, FP8_TENSOR, grouped=False),
    "FP8_PER_CHANNEL_PER_TOKEN": Algorithm(FP8, FP8_ROW, grouped=False),
}

#: quant_algo -> why it is not read.
REFUSED: Mapping[str, str] = {
    "W4A16_AWQ": "it scales the inputs (pre_quant_scale) and packs integers in a layout of its own",
    "W4A8_AWQ": "it scales the inputs (pre_quant_scale) and packs integers in a layout of its own",
    "NVFP4_AWQ": "it scales the inputs (pre_quant_scale)",
    "NVFP4_SVD": "it adds a low-rank product (svdquant_lora_a, svdquant_lora_b)",
    "W4A8_NVFP4_FP8": "its E4M3 scales stand for groups of 32, and MLX's nvfp4 has groups of 16",
    "FP8_PB_WO": "its scales have four axes, a layout that is not supported",
    "FP8_PB_REAL": "its scales have four axes, a layout that is not supported",
    "W8A16": "its codes are signed bytes, a layout that is not supported",
    "W8A8_SQ_PER_CHANNEL": "it scales the inputs (pre_quant_scale)",
}


def read(block: Block, source: str) -> Reading:
    """The claims of either spelling."""
    return collect(_items, block, source)


def _items(outer: Fields, source: str) -> Iterator[Item]:
    fields = outer.below("quantization") if outer.has("quantization") else outer
    yield from cache_note(fields, "kv_cache_quant_algo", "kv_cache_scheme")
    name = fields.text("quant_algo").upper()
    if name == MIXED:
        yield from attempt(_layers, fields, source)
    elif name:
        origin = fields.at("quant_algo")
        scheme, note = _algorithm(name, fields, origin)
        yield Claim(source, scheme, Reach.GLOBAL, "", origin, note)
    elif "quant_algo" not in fields.block.data:
        raise malformed(fields.at(), "quant_algo", None, "the name of an algorithm, or null")
    for key in ("exclude_modules", "ignore"):
        yield from attempt(_excluded, fields, key, source)


def _layers(fields: Fields, source: str) -> Iterator[Item]:
    """The allow-list of a mixed checkpoint: exact paths, each with a whole record."""
    if not fields.has("quantized_layers"):
        raise malformed(fields.at(), "quantized_layers", None, "a mapping of paths to algorithms")
    layers = fields.below("quantized_layers")
    for path in layers.block.data:
        yield from attempt(_layer, layers, path, source)


def _layer(layers: Fields, path: str, source: str) -> Iterator[Claim]:
    entry = layers.below(path)
    scheme, note = _algorithm(entry.text("quant_algo").upper(), entry, entry.at())
    yield Claim(source, scheme, Reach.PATH, path, entry.at(), note)


def _algorithm(name: str, fields: Fields, origin: Origin) -> tuple[Scheme, str]:
    row = ALGORITHMS.get(name)
    if row is None:
        raise _unsupported(name, origin)
    size = fields.integer("group_size", 0)
    # The exporter writes 0 where there are no groups.
    if row.grouped and size not in (0, row.scheme.group_size):
        raise refuse(
            "unsupported-group-size",
            f"{name} in groups of {size} has no counterpart in MLX",
            fields.at("group_size"),
            found=str(size),
            expected=str(row.scheme.group_size),
        )
    return row.scheme, row.note


def _unsupported(name: str, origin: Origin) -> Exception:
    if name in REFUSED:
        return refuse(
            "unsupported-algorithm",
            f"ModelOpt's {name} cannot be read: {REFUSED[name]}",
            origin,
            help="use another export of the model, or convert the unquantised checkpoint",
        )
    return refuse(
        "unknown-algorithm",
        f"unknown quant_algo '{name:.60}'",
        origin,
        expected=", ".join((*ALGORITHMS, MIXED)),
        help=did_you_mean(name, (*ALGORITHMS, *REFUSED, MIXED)),
    )


def _excluded(fields: Fields, key: str, source: str) -> Iterator[Claim]:
    for name, origin in fields.names(key):
        if name.startswith("re:"):
            checked_regex(name.removeprefix("re:"), origin, name)
        reach = Reach.PATTERN if is_pattern(name) else Reach.PATH
        yield Claim(source, None, reach, name, origin, f"in {key}", optional=True)
