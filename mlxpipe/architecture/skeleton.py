"""What an architecture expects, as a frozen table: module path -> kind and sizes.

mlx-lm's model class (mlx-vlm's, where there are pictures) is built once from config.json. MLX
arrays cost nothing until they are evaluated, so a 700 GB model's skeleton takes milliseconds and no
memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from mlxpipe.architecture import mlxvlm
from mlxpipe.architecture.config_keys import normalise
from mlxpipe.architecture.mlxlm import ModelClasses, model_classes
from mlxpipe.errors import PlanError


class Kind(Enum):
    """What a module is to quantisation."""

    LINEAR = "linear"
    EMBEDDING = "embedding"
    EXPERTS = "experts"
    OTHER = "other quantisable"
    PLAIN = "not quantisable"


@dataclass(frozen=True, slots=True)
class Module:
    """One leaf module.

    Attributes:
        path: Where it is in the model.
        kind: What quantisation can do with it.
        weight: Shape of its dense weight, [..., out_features, in_features] where it can be
            quantised; () if it has none.
        parameters: Names of its parameters -> shapes.
        class_name: mlx-lm's or MLX's class.
    """

    path: str
    kind: Kind
    weight: tuple[int, ...]
    parameters: Mapping[str, tuple[int, ...]]
    class_name: str

    @property
    def quantisable(self) -> bool:
        """Whether MLX has a packed form of it."""
        return self.kind is not Kind.PLAIN

    @property
    def in_features(self) -> int | None:
        """Columns of the dense weight."""
        return self.weight[-1] if self.quantisable and self.weight else None


@dataclass(frozen=True, slots=True)
class Skeleton:
    """An architecture built for one config.

    Attributes:
        name: mlx-lm's module, or mlx-vlm's.
        modules: Path -> module, for every module that holds parameters.
        model: The unevaluated model, the base of a graph.
        sanitize: What the library does to a checkpoint's names and arrays; None for nothing.
        vision: Whether it is mlx-vlm's, of several parts.
    """

    name: str
    modules: Mapping[str, Module]
    model: Any
    sanitize: Callable[[dict[str, Any]], dict[str, Any]] | None
    vision: bool = False

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Every parameter the dense model has: name -> shape."""
        return {
            f"{path}.{leaf}" if path else leaf: shape
            for path, module in self.modules.items()
            for leaf, shape in module.parameters.items()
        }

    def parts_without(self, fed: Iterable[str]) -> tuple[str, ...]:
        """Parts with mlx-vlm, a tower say, none of whose parameters is among those `fed`."""
        if not self.vision:
            return ()
        parts = {name.partition(".")[0] for name in self.parameters}
        return tuple(sorted(parts - {name.partition(".")[0] for name in fed}))


def build_skeleton(config: Mapping[str, Any], *, vision: bool = False) -> Skeleton:
    """The architecture that a config.json asks for, unevaluated.

    Args:
        config: The parsed config.json; it is copied, because `from_dict` may change it.
        vision: The whole vision-language model, by mlx-vlm, rather than the language model alone.

    Raises:
        PlanError: an unknown architecture, or a config that its class refuses.
        ExecutionError: the library is not installed, or its module is broken.
    """
    if vision:
        built = mlxvlm.build(config)
        return Skeleton(built.name, _modules(built.model), built.model, built.sanitize, vision)
    config = normalise(config)
    classes = model_classes(config)
    model = build_model(classes, config)
    return Skeleton(classes.name, _modules(model), model, getattr(model, "sanitize", None))


def build_model(classes: ModelClasses, config: Mapping[str, Any]) -> Any:
    """mlx-lm's model for a config, with lazy random weights.

    Raises:
        PlanError: `bad-config`, where the class refuses the config.
    """
    try:
        with mx.stream(mx.cpu):
            return classes.model(classes.args.from_dict(copy.deepcopy(dict(config))))
    except Exception as error:  # any class may raise anything on a config it does not expect
        raise PlanError(
            "bad-config",
            f"mlx-lm's '{classes.name}' cannot be built from this config.json",
            found=f"{type(error).__name__}: {error}",
            expected="the sizes and settings that the architecture needs",
            help="compare the checkpoint's config.json with its original's",
        ) from error


def _modules(model: Any) -> dict[str, Module]:
    modules: dict[str, Module] = {}
    for path, module in model.named_modules():
        own = {
            name: tuple(value.shape)
            for name, value in _own_arrays(module)
            if not name.startswith("_")
        }
        if own or hasattr(module, "to_quantized"):
            modules[path] = Module(
                path, _kind(module), own.get("weight", ()), own, type(module).__name__
            )
    return dict(sorted(modules.items()))


def _own_arrays(module: Any) -> list[tuple[str, Any]]:
    """A module's parameters that belong to none of its child modules, dotted where nested."""
    own = {name: value for name, value in module.items() if not _holds_modules(value)}
    return [(name, value) for name, value in tree_flatten(own) if isinstance(value, mx.array)]


def _holds_modules(value: Any) -> bool:
    if isinstance(value, nn.Module):
        return True
    children = value.values() if isinstance(value, dict) else value
    return isinstance(value, dict | list | tuple) and any(_holds_modules(each) for each in children)


def _kind(module: Any) -> Kind:
    if not hasattr(module, "to_quantized"):
        return Kind.PLAIN
    if type(module) is nn.Linear:
        return Kind.LINEAR
    if type(module) is nn.Embedding:
        return Kind.EMBEDDING
    return Kind.EXPERTS if type(module).__name__ == "SwitchLinear" else Kind.OTHER
