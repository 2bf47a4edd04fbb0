"""Build small, quantise, save with mlx-lm; load with mlxpipe and with mlx-lm; compare the logits.

mlxpipe computes as mlx-lm does where both load the same bytes in the checkpoint's dtype, so the
logits must be equal bit for bit. So must be those of mlxpipe's export, which mlx-lm loads.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import mlxpipe  # before MLX, so that both loaders find the same BLAS

# isort: split
import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import load_model, quantize_model, save_config, save_model
from rows import ROWS, TIED_LIMITS, Row
from tiny import PACKAGE, VOCABULARY, tiny_config

SEED = 20

#: Architectures whose exports are refused, and why.
EXPORT_LIMITS = {
    "prism_hadamard_qwen35": "its class accepts one literal `quantization` in config.json, no other"
}
LENGTH = 8

#: What is added to the initial weights, many of which are zeros or ones: mean 0, this deviation.
NOISE = 0.02

#: The least standard deviation of logits that tell models apart.
LEAST_SPREAD = 1e-3

Scheme = Mapping[str, Any]
#: What a predicate of mlx-lm's answers: dense, the global scheme, or a scheme.
Choice = bool | Scheme


class Verdict(Enum):
    """How a round trip ended."""

    IDENTICAL = "identical"
    LIMIT = "mlx-lm cannot"
    DIFFERS = "mlxpipe differs"
    UNFIT = "no fair test"


@dataclass(frozen=True, slots=True)
class Outcome:
    """One architecture with one recipe.

    Attributes:
        architecture: mlx-lm's module.
        recipe: Name of the recipe.
        verdict: How it ended.
        detail: The reason, or what was compared.
    """

    architecture: str
    recipe: str
    verdict: Verdict
    detail: str

    def as_json(self) -> dict[str, str]:
        return asdict(self) | {"verdict": self.verdict.value}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Outcome:
        return cls(**{**data, "verdict": Verdict(data["verdict"])})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is quantised.

    Attributes:
        name: What reports call it.
        scheme: The global scheme, None where the layers come packed.
        choices: What modules get in turn; () asks the architecture's own predicate.
        tied: Whether the output projection is the embedding, where the architecture can.
    """

    name: str
    scheme: Scheme | None
    choices: tuple[Choice, ...] = ()
    tied: bool = False


AFFINE = {"mode": "affine", "bits": 4, "group_size": 64}
NVFP4 = {"mode": "nvfp4", "bits": 4, "group_size": 16}

RECIPES: tuple[Recipe, ...] = (
    Recipe("affine", AFFINE),
    Recipe("nvfp4", NVFP4),
    Recipe(
        "mixture",
        AFFINE,
        (
            True,
            {"mode": "affine", "bits": 8, "group_size": 32},
            False,
            NVFP4,
            {"bits": 6, "group_size": 64},
            {"mode": "mxfp8", "bits": 8, "group_size": 32},
            {"mode": "mxfp4", "bits": 4, "group_size": 32},
        ),
        tied=True,
    ),
)

AS_BUILT = Recipe("as built", None)


class StageError(Exception):
    """What one side raised, and where."""


class UnfitError(Exception):
    """The tiny model would prove nothing."""


def recipes_for(name: str) -> tuple[Recipe, ...]:
    """The recipes that an architecture can be tested with."""
    return (AS_BUILT,) if ROWS.get(name, Row("")).packed else RECIPES


def check_all(name: str) -> Iterator[Outcome]:
    """One architecture with each of its recipes."""
    for recipe in recipes_for(name):
        yield check(name, recipe)


def check(name: str, recipe: Recipe) -> Outcome:
    """One round trip; nothing is raised."""

    def outcome(verdict: Verdict, detail: object) -> Outcome:
        return Outcome(name, recipe.name, verdict, " ".join(str(detail).split()))

    with tempfile.TemporaryDirectory(prefix="conformance-") as folder:
        path = Path(folder) / "made"
        path.mkdir()
        try:
            packed = stage("build", lambda: make_checkpoint(name, recipe, path))
            expected = stage("load", lambda: logits_of(load_model(path)[0]))
            require_telling(expected)
        except StageError as error:
            return outcome(Verdict.LIMIT, error)
        except UnfitError as error:
            return outcome(Verdict.UNFIT, error)
        try:
            loaded, _ = mlxpipe.load(path, dtype="checkpoint", tokenizer=False)
            difference = compare(logits_of(loaded), expected)
            del loaded
            if name not in EXPORT_LIMITS:
                mlxpipe.export(path, Path(folder) / "exported")
                again = logits_of(load_model(Path(folder) / "exported")[0])
                difference = difference or compare(again, expected)
        except Exception as error:  # whatever mlxpipe raises on what mlx-lm loads is a finding
            return outcome(Verdict.DIFFERS, describe(error))
    if difference:
        return outcome(Verdict.DIFFERS, difference)
    return outcome(Verdict.IDENTICAL, f"{packed} packed layers")


def stage(words: str, step: Callable[[], Any]) -> Any:
    """A step of mlx-lm's, quiet, its exceptions told apart from mlxpipe's."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return step()
    except (UnfitError, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as error:  # modules raise and exit as they like
        raise StageError(f"{words}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """An exception in one line, with what mlxpipe's carry beside their message."""
    found = getattr(error, "found", "") or getattr(getattr(error, "diagnostic", None), "found", "")
    words = f"{type(error).__name__}: {error}"
    return f"{words} [{found}]" if found and found not in words else words


# --- a checkpoint ----------------------------------------------------------------------------


def make_checkpoint(name: str, recipe: Recipe, folder: Path) -> int:
    """Build, quantise and save a tiny model as mlx-lm does; how many layers are packed."""
    config = tiny_config(name, tied=recipe.tied and name not in TIED_LIMITS)
    model = build(name, config)
    if recipe.scheme is not None:
        model, config = quantise(model, config, recipe)
    packed = sum(name.endswith(".scales") for name, _ in tree_flatten(model.parameters()))
    if not packed:
        raise UnfitError("no layer was quantised")
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return packed


def build(name: str, config: Mapping[str, Any]) -> Any:
    """A model with random weights, in bfloat16 where the architecture lets mlx-lm cast."""
    mx.random.seed(SEED)
    module = importlib.import_module(f"{PACKAGE}.{name}")
    model = module.Model(module.ModelArgs.from_dict(copy.deepcopy(dict(config))))
    casts = getattr(model, "cast_predicate", lambda _: True)
    weights = [
        (name, _random(name, array, casts(name)))
        for name, array in tree_flatten(model.parameters())
    ]
    model.update(tree_unflatten(weights))
    model.eval()
    return model


def _random(name: str, array: mx.array, cast: bool) -> mx.array:
    """An array like the one that the architecture starts from, but telling."""
    if name.rpartition(".")[2] == "signs":
        return mx.where(mx.random.bernoulli(shape=array.shape), 1.0, -1.0)
    if array.dtype == mx.uint32:
        return mx.random.randint(-(2**31), 2**31 - 1, array.shape).view(mx.uint32)
    if not mx.issubdtype(array.dtype, mx.floating):
        return array
    noisy = array + NOISE * mx.random.normal(array.shape)
    return noisy.astype(mx.bfloat16 if cast else mx.float32)


def quantise(model: Any, config: dict[str, Any], recipe: Recipe) -> tuple[Any, dict[str, Any]]:
    """`mlx_lm.convert`'s quantisation; explicit `false` entries are written, as users do."""
    assert recipe.scheme is not None
    scheme = dict(recipe.scheme)
    choose = _in_turn(recipe) if recipe.choices else _own_choice(model)
    dense: list[str] = []

    def predicate(path: str, module: Any) -> Any:
        choice = choose(path, module)
        if choice is False:
            dense.append(path)
        return choice if choice is False or _takes(module, scheme, choice) else False

    model, config = quantize_model(
        model, config, scheme["group_size"], scheme["bits"], scheme["mode"], False, predicate
    )
    if recipe.choices:
        config["quantization"].update(dict.fromkeys(dense, False))
    return model, config


def _in_turn(recipe: Recipe) -> Callable[[str, Any], Any]:
    choices = itertools.cycle(recipe.choices)

    def choose(path: str, module: Any) -> Any:
        choice = next(choices)
        while choice is False and not _computes_dense(module):
            choice = next(choices)
        return copy.copy(choice)

    return choose


def _computes_dense(module: Any) -> bool:
    """Whether a layer works unquantised: MLX's CPU multiplies gathered experts in float32 only."""
    return mx.default_device() == mx.gpu or type(module).__name__ != "SwitchLinear"


def _own_choice(model: Any) -> Callable[[str, Any], Any]:
    own = getattr(model, "quant_predicate", None)
    return own if own is not None else lambda path, module: True


def _takes(module: Any, scheme: Scheme, choice: Choice) -> bool:
    """Whether a module can be packed so; some know fewer modes, some have odd widths."""
    wanted = scheme if choice is True else choice
    try:
        module.to_quantized(**wanted)
    except (TypeError, ValueError):
        return False
    return True


# --- logits ----------------------------------------------------------------------------------


def logits_of(model: Any) -> mx.array:
    """[1, T, V], evaluated."""
    tokens = mx.random.randint(0, VOCABULARY, (1, LENGTH), key=mx.random.key(SEED))
    logits = model(tokens)
    mx.eval(logits)
    return logits


def require_telling(logits: mx.array) -> None:
    """Refuse logits that could be equal although the weights are not.

    Raises:
        UnfitError: logits that overflow or are constant. Minus infinity is how an architecture
            masks tokens.
    """
    values = logits.astype(mx.float32)
    if (mx.isnan(values) | mx.isposinf(values)).any().item():
        raise UnfitError("the logits are not finite")
    finite = mx.where(mx.isneginf(values), 0.0, values)
    if finite.std().item() < LEAST_SPREAD:
        raise UnfitError("the logits are constant")


def compare(ours: mx.array, theirs: mx.array) -> str:
    """What differs, "" for nothing."""
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return f"{ours.dtype} {list(ours.shape)} for {theirs.dtype} {list(theirs.shape)}"
    if mx.array_equal(ours, theirs).item():
        return ""
    difference = mx.abs(ours.astype(mx.float32) - theirs.astype(mx.float32))
    where = (difference > 0).astype(mx.float32).mean().item()
    return f"{where:.0%} of the logits differ, by up to {difference.max().item():.3g}"
