"""The door to mlx-vlm, whose architectures read pictures beside text.

It is an extra: imported only where a spec's task has `images`. Unlike mlx-lm's, a model here has up
to four `sanitize`: its own, and those of its vision, language and audio parts. They run in the
order of `mlx_vlm.utils.load_model`, over the whole checkpoint each.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx

from mlxpipe.architecture.mlxlm import keep_file_limit
from mlxpipe.errors import ExecutionError, PlanError, missing_extra, nearest

PACKAGE = "mlx_vlm"

#: Parts with a `sanitize` of their own, in mlx-vlm's order -> the section that configures them.
PARTS = {
    "VisionModel": "vision_config",
    "LanguageModel": "text_config",
    "AudioModel": "audio_config",
}

#: Sections that mlx-vlm reads into classes of their own.
SECTIONS = ("text", "vision", "perceiver", "projector", "audio")

Arrays = dict[str, Any]


@dataclass(frozen=True, slots=True)
class VisionModel:
    """An architecture built for one config, with lazy random weights.

    Attributes:
        name: The module's name under `mlx_vlm.models`.
        model: Its `Model`.
        sanitize: Every `sanitize` that mlx-vlm's loader would call, one after the other.
    """

    name: str
    model: Any
    sanitize: Callable[[Arrays], Arrays]


def submodule(name: str) -> ModuleType:
    """`mlx_vlm.<name>`.

    Raises:
        ExecutionError: `no-mlx-vlm`; `broken-architecture`, where it cannot be imported.
    """
    if importlib.util.find_spec(PACKAGE) is None:
        raise missing_extra("mlx-vlm", "vision", "models that read pictures come from mlx-vlm")
    try:
        with keep_file_limit():
            return importlib.import_module(f"{PACKAGE}.{name}")
    except (ImportError, AttributeError, SystemExit) as error:
        raise ExecutionError(
            "broken-architecture",
            f"mlx-vlm's module '{name}' cannot be imported",
            found=f"{type(error).__name__}: {error}",
            help=f"it may need another package; `python -c 'import {PACKAGE}.{name}'` shows what",
        ) from error


def build(config: Mapping[str, Any]) -> VisionModel:
    """mlx-vlm's model for a config.json; the config is copied, because its classes change theirs.

    Raises:
        PlanError: `no-model-type`, `unknown-architecture`, `text-only-architecture`, `bad-config`.
        ExecutionError: `no-mlx-vlm`, `broken-architecture`.
    """
    name = module_name(config)
    module = module_of(config)
    try:
        with mx.stream(mx.cpu):
            settings = settings_of(config)
            model = module.Model(settings)
            return VisionModel(name, model, _chain(model, module, settings))
    except Exception as error:  # any class may raise anything on a config it does not expect
        raise _bad_config(name, error) from error


def _bad_config(name: str, error: Exception) -> PlanError:
    return PlanError(
        "bad-config",
        f"mlx-vlm's '{name}' cannot be built from this config.json",
        found=f"{type(error).__name__}: {error}",
        expected="the sizes and settings that the architecture needs",
        help="compare the checkpoint's config.json with its original's",
    )


def module_name(config: Mapping[str, Any]) -> str:
    """The architecture module that mlx-vlm would take for a config.json.

    Raises:
        PlanError: `no-model-type`; `bad-config`, where what it looks at has another form.
    """
    declared = config.get("model_type")
    if not isinstance(declared, str):
        raise PlanError(
            "no-model-type",
            "config.json names no architecture",
            found=f"model_type: {declared!r}",
            expected="a model_type such as 'qwen3_5_moe' or 'gemma3'",
        )
    utilities = submodule("utils")
    try:
        return str(utilities.get_model_type(dict(config)))
    except (AttributeError, TypeError, ValueError) as error:
        raise _bad_config(declared, error) from error


def module_of(config: Mapping[str, Any]) -> ModuleType:
    """The architecture's module, which reads pictures.

    Raises:
        PlanError, ExecutionError: as `build` does.
    """
    name = module_name(config)
    if name not in _names():
        near = nearest(name, known_architectures(), 3)
        raise PlanError(
            "unknown-architecture",
            f"mlx-vlm has no architecture '{name}'",
            found=f"model_type: {config.get('model_type')!r}",
            expected=f"one of its {len(known_architectures())} architectures that read pictures",
            help=("near names: " + ", ".join(near)) if near else "a newer mlx-vlm may have it",
        )
    module = submodule(f"models.{name}")
    if not hasattr(module, "VisionModel"):
        raise PlanError(
            "text-only-architecture",
            f"mlx-vlm's '{name}' reads no pictures, and a task has `images`",
            found=f"model_type: {config.get('model_type')!r}",
            expected="a vision-language checkpoint",
            help="without `images` its language model runs",
        )
    return module


@cache
def _names() -> frozenset[str]:
    """Names of mlx-vlm's architecture modules; a model_type that is none imports nothing."""
    folder = Path(submodule("models").__path__[0])
    return frozenset(path.parent.name for path in folder.glob("*/__init__.py"))


@cache
def known_architectures() -> frozenset[str]:
    """Names of the architectures that read pictures."""
    folder = Path(submodule("models").__path__[0])
    return frozenset(
        name
        for name in _names()
        if "VisionModel" in (folder / name / "__init__.py").read_text(encoding="utf-8")
    )


def settings_of(config: Mapping[str, Any]) -> Any:
    """The architecture's configuration object, made as `mlx_vlm.utils.load_model` makes it.

    Raises:
        Exception: whatever the architecture's class raises on a config that it refuses.
    """
    module = module_of(config)
    own = copy.deepcopy(dict(config))
    own.setdefault("text_config", own.pop("llm_config", {}))
    own.setdefault("vision_config", {})
    own.setdefault("audio_config", {})
    settings = module.ModelConfig.from_dict(own)
    return submodule("utils").update_module_configs(settings, module, own, list(SECTIONS))


def _chain(model: Any, module: ModuleType, settings: Any) -> Callable[[Arrays], Arrays]:
    """The `sanitize` of the model, then of each part that has one."""
    owners = [model] if hasattr(model, "sanitize") else []
    for part, section in PARTS.items():
        of_part: Any = getattr(module, part, None)
        if hasattr(of_part, "sanitize") and hasattr(settings, section):
            owners.append(of_part(getattr(settings, section)))

    def sanitize(arrays: Arrays) -> Arrays:
        for owner in owners:
            arrays = owner.sanitize(arrays)
        return arrays

    return sanitize
