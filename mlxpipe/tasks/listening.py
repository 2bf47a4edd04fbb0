"""Listening to what modules compute while a model runs.

MLX's modules have no hooks. Python looks `__call__` up on the class, so for as long as somebody
listens each module is an instance of a subclass of its own class; its state, its attributes and
what `isinstance` says of it stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

#: What a module may be asked to compute; an embedding's second use is that of an output projection.
METHODS = ("__call__", "as_linear")

#: Told of a call: name of the module (with `.as_linear` for that method), args, kwargs, result.
Listener = Callable[[str, tuple[Any, ...], dict[str, Any], Any], None]


@contextmanager
def listening(modules: Mapping[str, Any], listener: Listener) -> Iterator[None]:
    """While inside, `listener` is told of each call of the modules, after it.

    Args:
        modules: Name -> module; one under two names is listened to under the first.
        listener: Told; what it raises is raised by the call.
    """
    before: list[tuple[Any, type[Any]]] = []
    seen: set[int] = set()
    try:
        for name, module in modules.items():
            if id(module) not in seen:
                seen.add(id(module))
                before.append((module, type(module)))
                _become(module, _subclass(type(module), name, listener))
        yield
    finally:
        for module, kind in before:
            _become(module, kind)


def call(modules: Mapping[str, Any], name: str, args: tuple[Any, ...], kwargs: Any) -> Any:
    """The same call on another model's module of that name."""
    if name in modules:
        return modules[name](*args, **kwargs)
    path, _, method = name.rpartition(".")
    return getattr(modules[path], method)(*args, **kwargs)


def _become(module: Any, kind: type[Any]) -> None:
    # Past MLX's own __setattr__, which would look at the value.
    object.__setattr__(module, "__class__", kind)


def _subclass(kind: type[Any], name: str, listener: Listener) -> type[Any]:
    methods = {
        method: _told(getattr(kind, method), name if method == "__call__" else f"{name}.{method}")
        for method in METHODS
        if hasattr(kind, method)
    }
    namespace = {method: told(listener) for method, told in methods.items()}
    return type(kind.__name__, (kind,), namespace)


def _told(method: Any, name: str) -> Callable[[Listener], Any]:
    def bind(listener: Listener) -> Any:
        def called(module: Any, *args: Any, **kwargs: Any) -> Any:
            result = method(module, *args, **kwargs)
            listener(name, args, kwargs, result)
            return result

        return called

    return bind
