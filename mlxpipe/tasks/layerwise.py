"""Where two models part: the output error of every layer and module, on one stretch of tokens.

    error = ‖y_candidate - y_reference‖ / ‖y_reference‖        Frobenius norms, in float32

*Own* error: the candidate's module is given the reference's input, so what came before does not
count. *Accumulated* error: each model runs on its own activations. A layer of experts has no
accumulated error of its own, because each model routes its own tokens; its decoder layer has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import mlx.core as mx

from mlxpipe.plan.plan import Plan
from mlxpipe.tasks.divergence import total
from mlxpipe.tasks.listening import call, listening


@dataclass(frozen=True, slots=True)
class LayerError:
    """One decoder layer.

    Attributes:
        path: Module path.
        own_error: On the reference's input; None where the reference gives only zeros.
        accumulated_error: On each model's own activations.
    """

    path: str
    own_error: float | None
    accumulated_error: float | None


@dataclass(frozen=True, slots=True)
class ModuleError(LayerError):
    """One module whose weight could be quantised.

    Attributes:
        scheme: The candidate's.
        reference_scheme: The reference's.
    """

    scheme: str
    reference_scheme: str


@dataclass(frozen=True, slots=True)
class Errors:
    """What was measured; layers in the model's order, modules with the worst first."""

    layers: tuple[LayerError, ...]
    modules: tuple[ModuleError, ...]

    def as_json(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of layers and of modules."""
        return [asdict(each) for each in self.layers], [asdict(each) for each in self.modules]


@dataclass(slots=True)
class _Sums:
    """Squares of a module's differences and outputs, over all of its calls."""

    difference: float = 0.0
    output: float = 0.0
    kept: list[mx.array] = field(default_factory=list)

    def add(self, candidate: Any, reference: Any) -> None:
        """One more call."""
        ours, theirs = (_array(each).astype(mx.float32) for each in (candidate, reference))
        self.difference += total(mx.square(ours - theirs))
        self.output += total(mx.square(theirs))

    @property
    def error(self) -> float | None:
        """The relative error; None where it has no finite value."""
        if self.difference == 0:
            return 0.0
        error = math.sqrt(self.difference / self.output) if self.output else math.inf
        return error if math.isfinite(error) else None


def measure_errors(
    reference: tuple[Any, Plan], candidate: tuple[Any, Plan], tokens: mx.array
) -> Errors:
    """Run both models on tokens [1, T] and compare what their modules give.

    Each module is evaluated as it is called. The reference's outputs are kept until the candidate
    has run (T · 4 bytes per output feature), the rest of the memory is that of one module.

    Args:
        reference: The model and its plan.
        candidate: The same; modules that only one of them has are left out.
        tokens: Token ids.
    """
    own: dict[str, _Sums] = {}
    accumulated: dict[str, _Sums] = {}
    common = _common(reference[1], candidate[1])
    alone = {path for path in common if candidate[1].modules[path].kind == "experts"}
    layers = _layers(reference[0])
    theirs = _modules(reference[0], (*common, *layers))
    ours = _modules(candidate[0], theirs)
    theirs = {path: theirs[path] for path in ours}

    def compare_one(name: str, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        own.setdefault(name, _Sums()).add(call(ours, name, args, kwargs), result)
        if name not in alone:
            output = _array(result)
            mx.eval(output)
            accumulated.setdefault(name, _Sums()).kept.append(output)

    def compare_all(name: str, args: tuple[Any, ...], kwargs: Any, result: Any) -> None:
        sums = accumulated.get(name)
        if sums is not None and sums.kept:
            sums.add(result, sums.kept.pop(0))

    with listening(theirs, compare_one):
        mx.eval(reference[0](tokens))
    with listening(ours, compare_all):
        mx.eval(candidate[0](tokens))
    return _errors(own, accumulated, layers, reference[1], candidate[1])


def _errors(
    own: Mapping[str, _Sums],
    accumulated: Mapping[str, _Sums],
    layers: Iterable[str],
    reference: Plan,
    candidate: Plan,
) -> Errors:
    def both(name: str) -> tuple[float | None, float | None]:
        return own[name].error, accumulated[name].error if name in accumulated else None

    paths = {name: name.removesuffix(".as_linear") for name in own}
    modules = [
        ModuleError(name, *both(name), _scheme(candidate, path), _scheme(reference, path))
        for name, path in paths.items()
        if path in candidate.modules
    ]
    return Errors(
        tuple(LayerError(name, *both(name)) for name in layers if name in own),
        tuple(sorted(modules, key=_badness)),
    )


def _badness(module: ModuleError) -> tuple[float, str]:
    """What modules are sorted by: an error that is no number is the worst."""
    return (-math.inf if module.own_error is None else -module.own_error, module.path)


def _scheme(plan: Plan, path: str) -> str:
    return str(plan.modules[path].final_scheme or "dense")


def _common(reference: Plan, candidate: Plan) -> tuple[str, ...]:
    """Paths that could be quantised in both, with weights of one shape as far as is known."""
    return tuple(
        path
        for path, module in candidate.modules.items()
        if path in reference.modules and reference.modules[path].weights == module.weights
    )


def _layers(model: Any) -> tuple[str, ...]:
    """Paths of the decoder layers, in order; none where the architecture does not say."""
    layers = getattr(model, "layers", None)
    if not isinstance(layers, list | tuple):
        return ()
    wanted = [id(layer) for layer in layers]
    paths = {id(module): path for path, module in model.named_modules()}
    return tuple(paths[each] for each in wanted if each in paths)


def _modules(model: Any, paths: Iterable[str]) -> dict[str, Any]:
    wanted = set(paths)
    return {path: module for path, module in model.named_modules() if path in wanted}


def _array(output: Any) -> mx.array:
    """A module's output; the first one where it gives several."""
    while isinstance(output, list | tuple):
        output = output[0]
    array: mx.array = output
    return array
