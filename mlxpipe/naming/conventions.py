"""How producers name the tensors of one layer: a table.

A convention says which tensor is the main one and which leaves hang on it as companions. A tensor
is a companion only by structure: the tensor it would belong to is there, and is packed. So the
parameter `router.scale` of Gemma 4 stays a parameter, because no tensor `router` exists.

A new producer is a new row. Canonical roles, whatever the producer calls them:

=============  =====================================================================
weight         the packed codes, or the dense weight
scales         one scale per group of a row
biases         the affine offsets β (never the layer's additive vector, `bias`)
amax           MLX's `global_scale`: a maximum, the multiplier being amax / 2688
multiplier     a factor on the whole tensor
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
)

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
