"""What an architecture says about quantising itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlxpipe.architecture.skeleton import Skeleton

#: What mlx-lm's predicates answer: quantise, do not, or quantise so.
Choice = bool | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Advice:
    """What recipes ask an architecture.

    Attributes:
        names: Paths of all its modules, containers included, in mlx-lm's order.
        layers: How many layers it has, 0 where it does not say.
        choices: Path -> the answer of its `quant_predicate`, for quantisable modules; empty where
            it has none.
        affine_only: Paths of modules whose own packed form knows no other mode.
    """

    names: tuple[str, ...]
    layers: int
    choices: Mapping[str, Choice]
    affine_only: frozenset[str]


def advise(skeleton: Skeleton) -> Advice:
    """Ask a skeleton's model."""
    model = skeleton.model
    predicate = getattr(model, "quant_predicate", None)
    named = dict(model.named_modules())
    quantisable = {path: named[path] for path, each in skeleton.modules.items() if each.quantisable}
    return Advice(
        names=tuple(named),
        layers=len(getattr(model, "layers", ())),
        choices={path: predicate(path, each) for path, each in quantisable.items()}
        if predicate
        else {},
        affine_only=frozenset(path for path, each in quantisable.items() if not _knows_modes(each)),
    )


def _knows_modes(module: Any) -> bool:
    return "mode" in inspect.signature(module.to_quantized).parameters
