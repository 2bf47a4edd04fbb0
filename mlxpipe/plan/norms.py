"""Norms that are trained around 0 and applied around 1: who adds the 1, and whether it is added.

Some models store a norm's weight w and apply 1 + w. mlx-lm adds the 1 in `sanitize`, once, if the
checkpoint looks like the original; a converted checkpoint holds 1 + w already. What it looks at is
something else than the norms: the axes of a convolution (qwen3_5), the names of the experts
(qwen3_next, step3p5). A converted checkpoint that carries one original tensor is shifted twice
then, and an original with packed experts, which are placed before `sanitize`, not at all.

The norms themselves tell: their means lie near 0 or near 1. They are a few kilobytes, and a sample
of them is read. Where they are silent the axes of the convolutions decide; where both are, what
`sanitize` does stands, with a warning. The parameter is then made from the stored tensor by us.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.tables import mean
from mlxpipe.errors import Diagnostic, Origin
from mlxpipe.naming.names import core
from mlxpipe.plan.plan import AS_STORED, PLUS_ONE, Parameter
from mlxpipe.quant.verify import Array

QWEN = frozenset({"input_layernorm", "post_attention_layernorm", "q_norm", "k_norm"})

#: Architecture -> last segments of the norms that its `sanitize` may shift; the model's last norm,
#: `norm`, is always among them.
SHIFTED: Mapping[str, frozenset[str]] = {
    "qwen3_5": QWEN,
    "qwen3_5_moe": QWEN,
    "qwen3_next": QWEN,
    "step3p5": QWEN,
}

#: The last norm.
LAST = "norm"

#: The median of the means below which norms are around 0, and above which they are around 1.
AROUND_ZERO, AROUND_ONE = 0.4, 0.6

#: How many norms are read.
SAMPLE = 32

#: Last segment of a depthwise convolution, whose axes PyTorch and MLX order differently.
CONVOLUTION = "conv1d"


@dataclass(frozen=True, slots=True)
class Norms:
    """What was decided of norms.

    Attributes:
        parameters: Parameter name -> where it comes from, for those that change.
        notes: Why.
    """

    parameters: Mapping[str, Parameter]
    notes: tuple[Diagnostic, ...] = ()


def settle_norms(
    architecture: str,
    checkpoint: Checkpoint,
    parameters: Mapping[str, Parameter],
    given: Mapping[str, Array],
) -> Norms:
    """Decide whether norms are shifted, by what they are rather than by what is beside them.

    Args:
        architecture: mlx-lm's module.
        checkpoint: The open checkpoint.
        parameters: Where each parameter comes from, as `sanitize` has it.
        given: What went into `sanitize`: name -> dtype and shape.
    """
    norms = {
        name: parameter
        for name, parameter in parameters.items()
        if _is_shifted(architecture, name) and len(parameter.tensors) == 1
    }
    if not norms:
        return Norms({})
    done = {name for name, parameter in norms.items() if "Add" in parameter.operations}
    by_values = _by_values(checkpoint, [norms[name].tensors[0] for name in sorted(norms)])
    by_axes = _by_axes(given)
    wanted = by_axes if by_values is None else by_values
    if wanted is None:
        return Norms({}, (_undecided(norms, bool(done)),))
    wrong = [name for name in norms if (name in done) != wanted]
    instead = PLUS_ONE if wanted else AS_STORED
    changed = {name: replace(norms[name], instead=instead) for name in wrong}
    notes = [_corrected(norms[wrong[0]], wanted, len(wrong))] if wrong else []
    if by_values is not None and by_axes is not None and by_values != by_axes:
        notes.append(_mixed(norms, wanted))
    return Norms(changed, tuple(notes))


def _is_shifted(architecture: str, name: str) -> bool:
    path, _, leaf = name.rpartition(".")
    segments = core(path).split(".")
    known = SHIFTED.get(architecture, frozenset())
    return leaf == "weight" and bool(known) and (segments == [LAST] or segments[-1] in known)


def _by_values(checkpoint: Checkpoint, tensors: list[str]) -> bool | None:
    """Whether norms want the 1 by their values; None where they are neither near 0 nor near 1."""
    step = -(-len(tensors) // SAMPLE)
    means = [value for name in tensors[::step] if (value := mean(checkpoint, name)) is not None]
    middle = median(means) if means else 0.5
    return True if middle < AROUND_ZERO else False if middle > AROUND_ONE else None


def _by_axes(given: Mapping[str, Array]) -> bool | None:
    """Whether all convolutions have PyTorch's axes [C, 1, K], or none; None where they tell not."""
    shapes = {
        array.shape
        for name, array in given.items()
        if name.split(".")[-2:] == [CONVOLUTION, "weight"] and len(array.shape) == 3
    }
    original = {shape[1] == 1 for shape in shapes if (shape[1] == 1) != (shape[2] == 1)}
    return original.pop() if len(original) == 1 else None


def _corrected(norm: Parameter, wanted: bool, count: int) -> Diagnostic:
    done = "adds 1 to them" if not wanted else "leaves them as they are"
    found = "around 0: they want the 1" if wanted else "around 1: they have it already"
    return Diagnostic(
        "norms-by-value",
        f"mlx-lm's renaming {done}, and {count} norms such as '{norm.name}' say otherwise",
        origin=Origin(norm.tensors[0]),
        found=f"weights {found}",
        help="nothing to do: mlxpipe goes by the norms, not by what is beside them",
        severity="note",
    )


def _mixed(norms: Iterable[str], wanted: bool) -> Diagnostic:
    one = next(iter(norms))
    return Diagnostic(
        "half-converted",
        "the norms and the convolutions of this checkpoint are of different origins",
        module=one.rpartition(".")[0],
        found=f"norms around {0 if wanted else 1}, convolutions with the axes of "
        + ("a converted checkpoint" if wanted else "the original"),
        expected="both from the original, or both converted by mlx-lm",
        help="norms are shifted by their values; compare the output with the original's",
        severity="warning",
    )


def _undecided(norms: Mapping[str, Parameter], done: bool) -> Diagnostic:
    one = next(iter(norms.values()))
    return Diagnostic(
        "undecided-norms",
        "whether the norms have their 1 cannot be told: "
        + ("mlx-lm adds it" if done else "mlx-lm adds none"),
        origin=Origin(one.tensors[0]),
        found=f"means neither below {AROUND_ZERO} nor above {AROUND_ONE}, and no convolution",
        help="compare the output with the original's",
        severity="warning",
    )
