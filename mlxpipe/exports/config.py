"""config.json and the other documents of an export."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlxpipe.architecture.config_keys import SECTIONS, TAG, TAGGED, normalise
from mlxpipe.architecture.shown import SUFFIXES
from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.index import INDEX
from mlxpipe.exports.forms import Form
from mlxpipe.graph.arrays import AMAX
from mlxpipe.plan.plan import Plan
from mlxpipe.quant.dialects import SIDECARS
from mlxpipe.quant.modes import Scheme

CONFIG = "config.json"

#: Keys under which mlx-lm reads the quantisation; it looks for the first, others for the second.
KEYS = ("quantization", "quantization_config")

#: Keys that describe the source's packing or its code, neither of which the export has.
FOREIGN = frozenset({*KEYS, "compression_config", "model_file"})

#: Files that are kept without being read: the first word of their names, in capitals.
LEGAL = frozenset({"LICENSE", "LICENCE", "NOTICE"})


def exported_config(
    source: Mapping[str, Any], plan: Plan, forms: Mapping[str, Form]
) -> dict[str, Any]:
    """config.json of an export, its keys sorted as mlx-lm sorts them.

    Names that transformers 5 introduced are joined by those that mlx-lm's classes read. Every
    module that differs from the global scheme has a complete entry of its own.
    """
    config = {key: value for key, value in normalise(source).items() if key not in FOREIGN}
    for section in SECTIONS:
        if isinstance(config.get(section), dict):
            config[section] = {
                key: value for key, value in config[section].items() if key not in FOREIGN
            }
    block = quantization(plan, forms)
    tagged: dict[str, Any] = _tag(config | (dict.fromkeys(KEYS, block) if block else {}))
    return dict(sorted(tagged.items()))


def quantization(plan: Plan, forms: Mapping[str, Form]) -> dict[str, Any]:
    """mlx-lm's block: the global scheme is the one that most weights have; {} if all is dense."""
    sizes: Counter[Scheme] = Counter()
    for path, form in forms.items():
        if form.scheme is not None:
            sizes[form.scheme] += plan.modules[path].weights
    if not sizes:
        return {}
    general = max(sorted(sizes), key=lambda scheme: sizes[scheme])
    block = _fields(general)
    for path, form in forms.items():
        if form.scheme is None:
            block[path] = False
        elif form.factor == AMAX:
            block[path] = {**_fields(form.scheme), AMAX: True}
        elif form.scheme != general:
            block[path] = _fields(form.scheme)
    return block


def _fields(scheme: Scheme) -> dict[str, Any]:
    return {"group_size": scheme.group_size, "bits": scheme.bits, "mode": scheme.mode}


def _tag(value: Any) -> Any:
    """Numbers that JSON does not have, as transformers writes them."""
    if isinstance(value, float) and not math.isfinite(value):
        names = {repr(number): name for name, number in TAGGED.items()}
        return {TAG: names[repr(value)]}
    if isinstance(value, dict):
        return {key: _tag(item) for key, item in value.items()}
    return [_tag(item) for item in value] if isinstance(value, list) else value


def documents(checkpoint: Checkpoint) -> dict[str, Path]:
    """The files that go along unchanged: the tokenizer's, the generation's, licences.

    Code does not, nor does what declares the source's packing.
    """
    left_out = {CONFIG, INDEX, *SIDECARS}
    return {
        name: path
        for name, path in sorted(checkpoint.files.items())
        if name not in left_out and Path(name).name == name and _is_document(name)
    }


def _is_document(name: str) -> bool:
    return name.endswith(SUFFIXES) or is_legal(name)


def is_legal(name: str) -> bool:
    """Whether a file is a licence or a notice, by its name."""
    return name.partition(".")[0].upper() in LEGAL
