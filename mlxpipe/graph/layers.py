"""Quantised layers over MLX's kernels, with what producers need beyond MLX's own.

Each is a subclass of MLX's or mlx-lm's quantised layer, so that code which asks `isinstance` finds
what it expects; built from tensors rather than by quantising random weights. They add

* a `multiplier` on the output: the exact form of a producer's tensor scale. It is applied before
  the additive bias. Folding it into one-byte block scales would be lossy.
* a `permutation` of the inputs, for weights whose columns were sorted (GPTQ's `desc_act`).
* a dtype for what an embedding returns: MLX's one-byte modes would give bfloat16 whatever the
  activations are.
* a choice of kernel: from `dense_rows` rows of input on, dequantising and multiplying is faster
  than the quantised kernel on a CPU (`graph.numerics` holds the measured numbers).

Shapes: weight U32 [o, i * bits / 32], scales and biases [o, i / group_size], bias [o]; experts have
a leading E on each.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from mlxpipe.architecture.mlxlm import submodule
from mlxpipe.quant.modes import Scheme

QuantizedSwitchLinear: Any = submodule("models.switch_layers").QuantizedSwitchLinear


class SealedLinear(nn.Module):
    """y = (x[..., permutation] @ dequantise(weight).T) * multiplier + bias.

    Args:
        scheme: How the weight is packed.
        arrays: Parameter name -> array: weight, scales; biases, bias, multiplier (a scalar or [o])
            and permutation [i] where there are.
        dense_rows: Rows of input from which the weight is dequantised first; None: never.
    """

    def __init__(
        self, scheme: Scheme, arrays: dict[str, mx.array], dense_rows: int | None = None
    ) -> None:
        nn.Module.__init__(self)
        _adopt(self, scheme, arrays, dense_rows)

    def __call__(self, x: mx.array) -> mx.array:
        """[..., i] -> [..., o]."""
        order = self.get("permutation")
        y = _matmul(self, x if order is None else x[..., order])
        return y + self["bias"] if "bias" in self else y


class PackedLinear(SealedLinear, nn.QuantizedLinear):
    """The same, and MLX's quantised layer to code that asks `isinstance`.

    mlx-vlm multiplies short inputs with the weight of whatever is one, past our `__call__`: there
    a layer with a multiplier or a permutation must stay sealed.
    """


class PackedEmbedding(nn.QuantizedEmbedding):
    """Rows of a packed table, or the table as an output projection.

    Args:
        scheme: How the weight is packed.
        arrays: As for `PackedLinear`.
        dense_rows: As for `PackedLinear`.
        dtype: What rows are returned in; None: MLX's choice.
    """

    def __init__(
        self,
        scheme: Scheme,
        arrays: dict[str, mx.array],
        dense_rows: int | None = None,
        dtype: mx.Dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        _adopt(self, scheme, arrays, dense_rows)
        self.num_embeddings = arrays["weight"].shape[0]
        self.dims = arrays["weight"].shape[-1] * 32 // scheme.bits
        self._dtype = dtype

    def __call__(self, x: mx.array) -> mx.array:
        """Token ids [...] -> rows [..., dims]."""
        biases = self.get("biases")
        rows = mx.dequantize(
            self["weight"][x],
            scales=self["scales"][x],
            biases=None if biases is None else biases[x],
            group_size=self.group_size,
            bits=self.bits,
            mode=self.mode,
            dtype=self._dtype,
        )
        factor = self.get("multiplier")
        if factor is None:
            return rows
        return _times(rows, factor if factor.size == 1 else factor[x][..., None])

    def as_linear(self, x: mx.array) -> mx.array:
        """[..., dims] -> logits [..., num_embeddings]."""
        return _matmul(self, x)


class PackedExperts(QuantizedSwitchLinear):
    """One packed matrix per expert, chosen by index.

    Args:
        scheme: How the weights are packed.
        arrays: As for `PackedLinear`, each with a leading axis of experts; multiplier [E] or
            [E, o], no permutation.
        dense_rows: Rows of input per expert from which the weights are dequantised first.
    """

    def __init__(
        self, scheme: Scheme, arrays: dict[str, mx.array], dense_rows: int | None = None
    ) -> None:
        nn.Module.__init__(self)
        _adopt(self, scheme, arrays, dense_rows)

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        """[..., n, i] with indices [...] -> [..., n, o]."""
        dtype, x = x.dtype, _widened(self, x)
        rows_per_expert = indices.size * x.shape[-2] // self["weight"].shape[0]
        # On a CPU `gather_mm` knows nothing but float32.
        if _many(self, rows_per_expert) and x.dtype == mx.float32:
            y = mx.gather_mm(
                x,
                dequantise(self, x.dtype).swapaxes(-1, -2),
                rhs_indices=indices,
                sorted_indices=sorted_indices,
            )
        else:
            y = mx.gather_qmm(
                x,
                self["weight"],
                self["scales"],
                self.get("biases"),
                rhs_indices=indices,
                transpose=True,
                group_size=self.group_size,
                bits=self.bits,
                mode=self.mode,
                sorted_indices=sorted_indices,
            )
        factor = self.get("multiplier")
        if factor is not None:
            chosen = factor[indices]
            y = _times(y, chosen[..., None, None] if factor.ndim == 1 else chosen[..., None, :])
        y = y.astype(dtype) if dtype == mx.float16 else y
        if "bias" in self:
            y = y + mx.expand_dims(self["bias"][indices], -2)
        return y


def _adopt(layer: Any, scheme: Scheme, arrays: dict[str, mx.array], dense_rows: int | None) -> None:
    layer.group_size, layer.bits, layer.mode = scheme.group_size, scheme.bits, scheme.mode
    layer._dense_rows = dense_rows
    layer.biases = None  # MLX's own layers have the attribute in every mode
    for name, array in arrays.items():
        setattr(layer, name, array)
    layer.freeze()


def dequantise(layer: Any, dtype: mx.Dtype) -> mx.array:
    """The dense weight [..., o, i] of a packed layer, its multiplier left out."""
    return mx.dequantize(
        layer["weight"],
        scales=layer["scales"],
        biases=layer.get("biases"),
        group_size=layer.group_size,
        bits=layer.bits,
        mode=layer.mode,
        dtype=dtype,
    )


def _many(layer: Any, rows: int) -> bool:
    return layer._dense_rows is not None and rows >= layer._dense_rows


def _matmul(layer: Any, x: mx.array) -> mx.array:
    dtype, x = x.dtype, _widened(layer, x)
    if _many(layer, x.size // x.shape[-1]):
        y = x @ dequantise(layer, x.dtype).T
    else:
        y = mx.quantized_matmul(
            x,
            layer["weight"],
            scales=layer["scales"],
            biases=layer.get("biases"),
            transpose=True,
            group_size=layer.group_size,
            bits=layer.bits,
            mode=layer.mode,
        )
    factor = layer.get("multiplier")
    y = y if factor is None else _times(y, factor)
    return y.astype(dtype) if dtype == mx.float16 else y


def _widened(layer: Any, x: mx.array) -> mx.array:
    """The inputs in float32 where float16 would overflow before a multiplier makes results small.

    Producers normalise block scales to 448, so that products before the multiplier are of
    thousands times the weights' size.
    """
    return x.astype(mx.float32) if "multiplier" in layer and x.dtype == mx.float16 else x


def _times(y: mx.array, factor: mx.array) -> mx.array:
    """The product in the dtype of `y`, the factor not being rounded to it."""
    return (y * factor).astype(y.dtype)
