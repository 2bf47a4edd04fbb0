"""The one door to mlx-lm: its architectures without its import, and its import without its effects.

`import mlx_lm` takes over a second, because its `__init__` brings transformers, and it lowers the
process's limit of open files. One architecture module needs neither. So a package object that has
only its `__path__` stands in for `mlx_lm` until somebody asks it for more; then the real
`__init__` runs in it. Code that imports mlx_lm before or after sees an ordinary package.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mlxpipe.errors import ExecutionError, PlanError, nearest

PACKAGE = "mlx_lm"

#: Assignments of mlx_lm.utils that map a config to a module.
_TABLES = ("MODEL_REMAPPING", "MODEL_ARCHITECTURE_REMAPPING")

#: A model_type becomes a module name, so it may hold nothing that a path could use.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class _DeferredPackage(ModuleType):
    """`mlx_lm` without its `__init__`, which runs at the first missing attribute."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__all__", "__version__"):
            raise AttributeError(name)
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec = self.__spec__
        assert spec is not None and spec.loader is not None
        with keep_file_limit():
            spec.loader.exec_module(self)
        return getattr(self, name)


@contextmanager
def keep_file_limit() -> Iterator[None]:
    """Let nothing inside change the limit of open files, as mlx-lm does when it is imported.

    Undoing it afterwards would not do: it lowers the hard limit too, and an unprivileged process
    cannot raise that again.
    """
    import resource

    real = resource.setrlimit

    def guarded(which: int, limits: tuple[int, int]) -> None:
        if which != resource.RLIMIT_NOFILE:
            real(which, limits)

    resource.setrlimit = guarded
    try:
        yield
    finally:
        resource.setrlimit = real


def _defer() -> None:
    # transformers tells every caller without PyTorch that models will not work; none is wanted.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if PACKAGE in sys.modules:
        return
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        raise ExecutionError("no-mlx-lm", "mlx-lm is not installed", help="pip install mlx-lm")
    package = _DeferredPackage(PACKAGE)
    package.__spec__ = spec
    package.__path__ = list(spec.submodule_search_locations or ())
    package.__file__ = spec.origin
    package.__loader__ = spec.loader
    package.__package__ = PACKAGE
    sys.modules[PACKAGE] = package


def submodule(name: str) -> ModuleType:
    """`mlx_lm.<name>`, running mlx_lm's own `__init__` only if that module needs it."""
    _defer()
    with keep_file_limit():
        return importlib.import_module(f"{PACKAGE}.{name}")


def _folder() -> Path:
    _defer()
    return Path(next(iter(sys.modules[PACKAGE].__path__)))


@cache
def _tables() -> Mapping[str, Mapping[Any, str]]:
    """mlx-lm's tables of aliases, read from its source: importing it would bring transformers."""
    tree = ast.parse((_folder() / "utils.py").read_text(encoding="utf-8"))
    found: dict[str, Mapping[Any, str]] = {name: {} for name in _TABLES}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in found:
                found[name] = ast.literal_eval(node.value)
    return found


def _exists(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and (_folder() / "models" / f"{name}.py").is_file()


@cache
def known_architectures() -> frozenset[str]:
    """Names that mlx-lm gives its architecture modules, aliases included."""
    files = (_folder() / "models").glob("*.py")
    modules = {path.stem for path in files if "class ModelArgs" in path.read_text(encoding="utf-8")}
    return frozenset(modules | set(_tables()["MODEL_REMAPPING"]))


def module_name(config: Mapping[str, Any]) -> str:
    """The architecture module that mlx-lm would take for a config.json.

    Raises:
        PlanError: `no-model-type`.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not _NAME.fullmatch(model_type):
        raise PlanError(
            "no-model-type",
            "config.json names no architecture",
            found=f"model_type: {model_type!r}",
            expected="a model_type such as 'llama' or 'qwen3_5_moe'",
        )
    declared = config.get("architectures") or ()
    classes = (declared,) if isinstance(declared, str) else tuple(declared)
    by_class = _tables()["MODEL_ARCHITECTURE_REMAPPING"]
    for name in classes:
        if (model_type, name) in by_class:
            return by_class[(model_type, name)]
    return _tables()["MODEL_REMAPPING"].get(model_type, model_type)


@dataclass(frozen=True, slots=True)
class ModelClasses:
    """An architecture's classes.

    Attributes:
        name: The module's name under `mlx_lm.models`.
        model: Its `Model`.
        args: Its `ModelArgs`.
    """

    name: str
    model: type[Any]
    args: type[Any]


def model_classes(config: Mapping[str, Any]) -> ModelClasses:
    """The classes for a config.json.

    Raises:
        PlanError: `unknown-architecture`, with the nearest names that exist.
        ExecutionError: `broken-architecture`, where mlx-lm's module cannot be imported.
    """
    name = module_name(config)
    if not _exists(name):
        near = nearest(name, known_architectures(), 3)
        raise PlanError(
            "unknown-architecture",
            f"mlx-lm has no architecture '{name}'",
            found=f"model_type: {config.get('model_type')!r}",
            expected="one of its " + str(len(known_architectures())) + " architectures",
            help=("near names: " + ", ".join(near)) if near else "a newer mlx-lm may have it",
        )
    try:
        module = submodule(f"models.{name}")
        return ModelClasses(name, module.Model, module.ModelArgs)
    except (ImportError, AttributeError, SystemExit) as error:
        raise ExecutionError(
            "broken-architecture",
            f"mlx-lm's module for '{name}' cannot be imported",
            found=f"{type(error).__name__}: {error}",
            help="it may need another package; `python -c 'import mlx_lm.models."
            f"{name}'` shows what",
        ) from error
