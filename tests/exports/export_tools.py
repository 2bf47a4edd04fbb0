"""Sources of exports, and what they answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
from builders import DATA, QWEN, spec, zoo_store_spec

import mlxpipe
from mlxpipe import load
from mlxpipe.exports.request import Exported
from mlxpipe.spec import LoadedSpec, parse_spec

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "model"

#: Every producer's checkpoint of the zoo.
DIRECTORIES = sorted(path.parent for path in DATA.glob("*/config.json"))

ENTRY = "exported:tiny"


def zoo_tokens(folder: Path = QWEN) -> mx.array:
    return mx.load(str(folder / "reference.safetensors"))["tokens"]


def entry_spec(store: Path, name: str = ENTRY, **sections: Any) -> LoadedSpec:
    """A spec for an entry of a store."""
    source = {"ollama": name, "store": str(store)}
    return parse_spec(json.dumps({"version": 1, "source": source, **sections}), "entry.yaml")


def answer(source: Any, tokens: mx.array, kernels: str = "dense", dtype: str = "float32") -> Any:
    """Logits of a directory, or of what a function makes a spec of for `model`."""
    model = {"kernels": kernels, "dtype": dtype}
    loaded = spec(source, model=model) if isinstance(source, Path) else source(model=model)
    logits = load(loaded, tokenizer=False)[0](tokens)
    mx.eval(logits)
    return logits


def same(one: mx.array, other: mx.array) -> bool:
    return one.dtype == other.dtype and mx.array_equal(one, other).item()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones included."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


#: A format, and what becomes of modules that it cannot hold.
Way = tuple[str, str]


class Made(NamedTuple):
    """An export: where it is, a function to a spec of it, and the report."""

    folder: Path
    spec: Callable[..., Any]
    report: Exported


def make(source: Any, target: Path, way: Way, **options: Any) -> Made:
    """Export in one of the ways."""
    form, unsupported = way
    named = {"name": ENTRY} if form == "ollama" else {}
    report = mlxpipe.export(
        source, target, format=form, unsupported=unsupported, **named, **options
    )
    return Made(target, partial(entry_spec if form == "ollama" else spec, target), report)


__all__ = [
    "DIRECTORIES",
    "ENTRY",
    "QUICKSTART",
    "QWEN",
    "Made",
    "Way",
    "answer",
    "contents",
    "entry_spec",
    "make",
    "same",
    "zoo_store_spec",
    "zoo_tokens",
]
