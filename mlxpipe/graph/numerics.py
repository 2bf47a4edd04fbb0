"""In which dtype and on which device a model computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxpipe.errors import ExecutionError
from mlxpipe.spec import LoadedSpec

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


@dataclass(frozen=True, slots=True)
class Numerics:
    """The choice and its reason.

    Attributes:
        device: `cpu` or `gpu`.
        dtype: A name in `DTYPES`, or `checkpoint`: as stored.
        reason: Why, for people.
    """

    device: str
    dtype: str
    reason: str

    @property
    def mlx_dtype(self) -> mx.Dtype | None:
        """What floating-point tensors are cast to, None for no cast."""
        return DTYPES.get(self.dtype)

    def as_json(self) -> dict[str, Any]:
        """For records."""
        return {"device": self.device, "dtype": self.dtype, "reason": self.reason}


def choose(loaded: LoadedSpec) -> Numerics:
    """The numerics that a spec's `model` asks for, on this machine.

    `auto` is float32 on a CPU, because MLX's bfloat16 kernels there are slow and coarse, and the
    checkpoint's own dtype on a GPU.

    Raises:
        ExecutionError: `no-gpu`.
    """
    wanted = loaded.spec.model
    device = _device(wanted.device, loaded)
    if wanted.dtype != "auto":
        return Numerics(device, wanted.dtype, "as the spec says")
    if device == "cpu":
        return Numerics(device, "float32", "auto: MLX's 16-bit CPU kernels are slow and coarse")
    return Numerics(device, "checkpoint", "auto: the checkpoint's own on a GPU")


def _device(wanted: str, loaded: LoadedSpec) -> str:
    has_gpu = mx.is_available(mx.gpu)
    if wanted == "gpu" and not has_gpu:
        raise ExecutionError(
            "no-gpu",
            "the spec asks for a GPU, and MLX sees none",
            origin=loaded.origin("model", "device"),
            help="set model.device to auto or cpu, or install MLX's back end for your GPU",
        )
    if wanted != "auto":
        return wanted
    return "gpu" if mx.default_device().type == mx.gpu else "cpu"


def use(numerics: Numerics) -> None:
    """Make the device MLX's default, for the whole process."""
    mx.set_default_device(mx.cpu if numerics.device == "cpu" else mx.gpu)
