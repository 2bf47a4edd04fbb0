"""What mlx-lm's `sanitize` does to names and tensors, without a byte of weights.

Every architecture has a `sanitize` that renames, stacks, transposes, shifts and drops what a
checkpoint holds. It is run over placeholders of the header's shapes while MLX records the graph, so
the lineage of each parameter is exact, whatever `sanitize` did: which tensors it came from, and by
which operations. (`mlx.core.export_function` with a callback gives the graph.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxpipe.errors import Origin, PlanError

#: safetensors dtype -> what `mx.load` makes of it.
DTYPES: Mapping[str, mx.Dtype] = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "U64": mx.uint64,
    "I64": mx.int64,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "F32": mx.float32,
    "F64": mx.float64,
    "C64": mx.complex64,
    "F8_E4M3": mx.uint8,
    "F8_E5M2": mx.uint8,
    "F8_E8M0": mx.uint8,
}

NAMES: Mapping[mx.Dtype, str] = {
    dtype: name for name, dtype in DTYPES.items() if not name.startswith("F8")
}

#: Primitives that move values about and change none.
MOVES = frozenset(
    {
        "AsStrided", "Broadcast", "Concatenate", "Contiguous", "Copy", "ExpandDims", "Flatten",
        "Gather", "GatherAxis", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unflatten",
        "View",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Lineage:
    """Where one parameter comes from.

    Attributes:
        inputs: Names that went into `sanitize`, in order of first use.
        operations: MLX primitives applied, each once, in order; () for a mere renaming.
        dtype: safetensors dtype of the result.
        shape: Shape of the result.
    """

    inputs: tuple[str, ...]
    operations: tuple[str, ...]
    dtype: str
    shape: tuple[int, ...]

    @property
    def changes_values(self) -> bool:
        """Whether the values are computed rather than moved (a norm's +1, a dequantisation)."""
        return any(operation not in MOVES for operation in self.operations)


def trace_sanitize(
    model: Any, tensors: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, Lineage]:
    """Run a model's `sanitize` over placeholders.

    Args:
        model: A skeleton, or a model.
        tensors: Name -> (safetensors dtype, shape).

    Returns:
        Parameter name -> lineage, for everything that `sanitize` returns.

    Raises:
        PlanError: `sanitize` fails on these names and shapes.
    """
    sanitize = getattr(model, "sanitize", None)
    _require_readable(tensors)
    # Ones rather than zeros: a `sanitize` may check what it renames, a sign being 1 or -1 say.
    placeholders = {name: mx.ones(shape, DTYPES[dtype]) for name, (dtype, shape) in tensors.items()}
    outputs = placeholders if sanitize is None else _call(sanitize, dict(placeholders))
    names = {id(array): name for name, array in placeholders.items()}
    # mlx-vlm's add in place (`value += 1`): what is the same object need not be the same value.
    in_place = getattr(model, "vision", False)
    moved = [name for name, array in outputs.items() if in_place or id(array) not in names]
    computed = _record(sanitize, placeholders, moved) if moved and sanitize else {}
    return {
        name: computed[name]
        if name in computed and (computed[name].operations or id(array) not in names)
        else Lineage((names[id(array)],), (), tensors[names[id(array)]][0], tuple(array.shape))
        for name, array in outputs.items()
    }


def _require_readable(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    for name, (dtype, _) in tensors.items():
        if dtype not in DTYPES:
            raise PlanError(
                "unsupported-dtype",
                f"MLX cannot read '{name}': it has no type {dtype}",
                origin=Origin(name),
                expected="one of " + ", ".join(DTYPES),
                help="convert the tensor, or drop it with naming.drop if nothing wants it",
            )


def _call(sanitize: Callable[[dict[str, Any]], Any], weights: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(sanitize(weights))
    except Exception as error:  # a sanitize may raise anything on names it does not expect
        raise PlanError(
            "sanitize-failed",
            "the library's renaming of this architecture's tensors failed",
            found=f"{type(error).__name__}: {error}",
            expected="the tensors that the architecture's original checkpoint has",
            help="a tensor is missing, misnamed or misshapen; naming.rules can rename it",
        ) from error


def _record(
    sanitize: Callable[[dict[str, Any]], Any], placeholders: Mapping[str, Any], wanted: list[str]
) -> dict[str, Lineage]:
    """The lineage of outputs that are new arrays, from MLX's own graph."""
    events: list[dict[str, Any]] = []

    def outputs(**weights: Any) -> list[Any]:
        result = sanitize(dict(weights))
        return [result[name] for name in wanted]

    try:
        with without_contiguous():
            mx.export_function(events.append, outputs, (), dict(placeholders))
    except (RuntimeError, ValueError) as error:  # MLX refuses to evaluate what it records
        raise PlanError(
            "sanitize-evaluates",
            "the renaming of this architecture's tensors looks at values, headers do not suffice",
            found=str(error),
        ) from error
    return _read_graph(events, wanted)


@contextmanager
def without_contiguous() -> Iterator[None]:
    """Make `mx.contiguous` a no-op: MLX cannot record it, and it changes no value and no shape."""
    original = mx.contiguous
    mx.contiguous = lambda array, *_, **__: array
    try:
        yield
    finally:
        mx.contiguous = original


def _read_graph(events: list[dict[str, Any]], wanted: list[str]) -> dict[str, Lineage]:
    sources: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    results: list[tuple[str, tuple[int, ...], mx.Dtype]] = []
    for event in events:
        if event["type"] == "keyword_inputs":
            sources.update((node, ((name,), ())) for name, node in event["keywords"])
        elif event["type"] == "outputs":
            results = event["outputs"]
        elif event["type"] == "primitive":
            before = [sources.get(node, ((), ())) for node, *_ in event["inputs"]]
            inputs = _merge(each[0] for each in before)
            operations = _merge([*(each[1] for each in before), (event["name"],)])
            sources.update((node, (inputs, operations)) for node, *_ in event["outputs"])
    return {
        name: Lineage(*sources.get(node, ((), ())), NAMES[dtype], tuple(shape))
        for name, (node, shape, dtype) in zip(wanted, results, strict=True)
    }


def _merge(sequences: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for sequence in sequences for item in sequence))
