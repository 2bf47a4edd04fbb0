"""`modules_to_not_convert`, as transformers' quantisers and AutoAWQ write it.

Its readers disagree. AutoAWQ takes an entry as a substring of the path (awq/utils/module.py,
exclude_layers_to_not_quantize), and so did vLLM (is_layer_skipped). transformers 5 takes it as a
regular expression from the start to a module boundary, or as a suffix
(quantizers/quantizers_utils.py, should_convert_module); transformers 4 as segments followed by a
dot. vLLM's FP8 takes whole paths.

Here a plain entry means whole segments anywhere in the path, so that `gate` does not hit
`gate_proj`, and an entry with the signs of a regular expression is one, up to a boundary. That is
the narrowest reading that still holds for every producer: too narrow a reading is harmless, since a
general claim gives way to tensors that are dense; too wide a one contradicts packed tensors.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlxpipe.errors import Origin
from mlxpipe.quant.claims import Claim, Reach
from mlxpipe.quant.dialects.fields import Fields, checked_regex

#: A plain path has none of these; a dot alone does not make a regular expression.
REGEX_SIGNS = frozenset("\\*+?[](){}|^$")

#: After a match: it ended with a dot, or a dot or the end follows.
BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"


def is_regex(name: str) -> bool:
    """Whether a name has the signs of a regular expression."""
    return not REGEX_SIGNS.isdisjoint(name)


def skipped(fields: Fields, key: str, source: str) -> Iterator[Claim]:
    """Dense claims for the list under `key`."""
    for name, origin in fields.names(key):
        yield _skip(name, origin, f"'{name}' in {key}", source)


def _skip(name: str, origin: Origin, note: str, source: str) -> Claim:
    if is_regex(name):
        pattern = checked_regex(f"(?:{name}){BOUNDARY}", origin, name)
        matcher = "regex-start"
    else:
        pattern, matcher = name, "segments"
    return Claim(source, None, Reach.PATTERN, pattern, origin, note, matcher, optional=True)
