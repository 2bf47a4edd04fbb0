"""How producers name the tensors of one layer: a table.

A convention says which tensor is the main one and which leaves hang on it as companions. A tensor
is a companion only by structure: the tensor it would belong to is there, and is packed. So the
parameter `router.scale` of Gemma 4 stays a parameter, because no tensor `router` exists.

A new producer is a new row. Canonical roles, whatever the producer calls them:

=============  =====================================================================
weight         the packed codes, or the dense weight
scales         scales of groups, rows, blocks or the whole tensor, by the layout
biases         the affine offsets β (never the layer's additive vector, `bias`)
zero_points    integer zero points, packed or not
amax           MLX's `global_scale`: a maximum, the multiplier being amax / 2688
multiplier     a factor on the whole tensor
divisor        the same, to divide by
order          the group of each input column (`g_idx`)
ignored        says nothing about the weights: scales of activations, a shape
=============  =====================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlxpipe.errors import UsageError, did_you_mean

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Convention:
    """One producer's names for the tensors of a layer at module path `X`.

    Attributes:
        name: What a spec calls it.
        title: Who writes it.
        bases: Names that the main tensor may have, `{}` being the companion's stem.
        companions: Leaf of a companion's name -> its role.
        dtypes: safetensors dtypes that a main tensor with companions has.
    """

    name: str
    title: str
    bases: tuple[str, ...]
    companions: Mapping[str, str]
    dtypes: frozenset[str]

    @property
    def scales(self) -> tuple[str, ...]:
        """The leaves of its scales: without them nothing else is its companion."""
        return tuple(leaf for leaf, role in self.companions.items() if role == "scales")


#: Order matters: where two rows could claim a companion, the first one does.
CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        name="mlx",
        title="mlx-lm, LM Studio, mlx.nn.quantize: X.weight, X.scales, X.biases",
        bases=("{}.weight", "{}"),
        companions={"scales": "scales", "biases": "biases", "global_scale": "amax"},
        dtypes=frozenset({"U32"}),
    ),
    Convention(
        name="ollama",
        title="Ollama blobs, W the main tensor's whole name: W, W.scale, W.bias",
        bases=("{}",),
        companions={"scale": "scales", "bias": "biases", "global_scale": "multiplier"},
        dtypes=frozenset({"U32"}),
    ),
    Convention(
        name="ollama-runtime",
        title="Ollama's names in memory: X.weight, X.weight_scale, X.weight_qbias",
        bases=("{}.weight",),
        companions={"weight_scale": "scales", "weight_qbias": "biases"},
        dtypes=frozenset({"U32"}),
    ),
    Convention(
        name="compressed-tensors",
        title="llm-compressor: X.weight_packed, X.weight_scale, X.weight_zero_point",
        bases=("{}.weight_packed",),
        companions={
            "weight_scale": "scales",
            "weight_zero_point": "zero_points",
            "weight_global_scale": "divisor",
            "weight_g_idx": "order",
            "weight_shape": "ignored",
            "input_global_scale": "ignored",
            "input_scale": "ignored",
            "input_zero_point": "ignored",
        },
        dtypes=frozenset({"I32", "U8"}),
    ),
    Convention(
        name="modelopt",
        title="ModelOpt, llm-compressor's FP8 and int8: X.weight, X.weight_scale, X.weight_scale_2",
        bases=("{}.weight",),
        companions={
            "weight_scale": "scales",
            "weight_scale_2": "multiplier",
            "weight_zero_point": "zero_points",
            "input_scale": "ignored",
            "input_zero_point": "ignored",
        },
        dtypes=frozenset({"U8", "I8", "F8_E4M3"}),
    ),
    Convention(
        name="block-fp8",
        title="DeepSeek and Qwen in FP8: X.weight, X.weight_scale_inv (to multiply by)",
        bases=("{}.weight",),
        companions={"weight_scale_inv": "scales", "input_scale": "ignored"},
        dtypes=frozenset({"F8_E4M3"}),
    ),
    Convention(
        name="gptq",
        title="GPTQ, AWQ and AutoRound: X.qweight, X.qzeros, X.scales, X.g_idx",
        bases=("{}.qweight",),
        companions={"scales": "scales", "qzeros": "zero_points", "g_idx": "order"},
        dtypes=frozenset({"I32"}),
    ),
)

#: Leaves of a main tensor's name.
MAIN_LEAVES = frozenset({"weight", "weight_packed", "qweight"})

BY_NAME: Mapping[str, Convention] = {row.name: row for row in CONVENTIONS}


def select(names: str | Iterable[str]) -> tuple[Convention, ...]:
    """The rows that a spec's `naming.conventions` asks for, in the table's order.

    Raises:
        UsageError: a name that no row has.
    """
    if names == AUTO:
        return CONVENTIONS
    wanted = [names] if isinstance(names, str) else list(names)
    for name in wanted:
        if name not in BY_NAME:
            raise UsageError(
                "unknown-convention",
                f"unknown naming convention '{name}'",
                expected="one of: " + ", ".join(BY_NAME),
                help=did_you_mean(name, BY_NAME),
            )
    return tuple(row for row in CONVENTIONS if row.name in wanted)
