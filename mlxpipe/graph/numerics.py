"""On which device, in which dtype and with which kernels a model computes.

None of it changes what a weight is; each choice changes rounding, speed or memory, so plans and
records name them. The numbers below were measured with `tests/benchmarks/kernels.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx

from mlxpipe import blas
from mlxpipe.errors import ExecutionError
from mlxpipe.plan.plan import Plan
from mlxpipe.spec import LoadedSpec

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}

#: With a fast BLAS: rows of the input from which dequantising and multiplying beats MLX's
#: quantised CPU kernel. It depends on the mode, because dequantising some modes is slow there.
ROWS_FAST_BLAS: Mapping[str, int] = {"affine": 6, "mxfp4": 32, "mxfp8": 2, "nvfp4": 32}

#: The same with the reference BLAS, whose products are no faster than the quantised kernel's (from
#: 32 rows on by a few per cent in affine), except where that one is slow.
ROWS_SLOW_BLAS: Mapping[str, int] = {"mxfp8": 2}

FLOAT32_BYTES = 4

#: dtypes in which MLX's CPU back end cannot choose among dense experts (`gather_mm`).
SHORT = frozenset({"bfloat16", "float16"})


@dataclass(frozen=True, slots=True)
class Numerics:
    """The choices and their reasons.

    Attributes:
        device: `cpu` or `gpu`.
        dtype: A name in `DTYPES`, or `checkpoint`: as stored.
        kernels: `packed` or `dense`.
        blas: What multiplies dense matrices on a CPU, "" on a GPU.
        reason: Why, for people.
    """

    device: str
    dtype: str
    kernels: str
    blas: str
    reason: str

    @property
    def mlx_dtype(self) -> mx.Dtype | None:
        """What floating-point tensors are cast to, None for no cast."""
        return DTYPES.get(self.dtype)

    @property
    def dense(self) -> bool:
        """Whether packed weights are dequantised once, when loaded."""
        return self.kernels == "dense"

    @property
    def dense_rows(self) -> Mapping[str, int]:
        """Mode -> rows from which a packed layer dequantises and multiplies; none: never."""
        if self.device != "cpu" or self.dtype == "checkpoint":
            return {}
        return ROWS_FAST_BLAS if blas.status().fast else ROWS_SLOW_BLAS

    def as_json(self) -> dict[str, Any]:
        """For plans and records."""
        return asdict(self)

    def __str__(self) -> str:
        parts = [f"{self.dtype} on {self.device}", f"{self.kernels} weights"]
        return ", ".join([*parts, self.blas] if self.blas else parts)


def choose(loaded: LoadedSpec, plan: Plan) -> Numerics:
    """What a spec's `model` asks for, on this machine.

    `auto` is float32 on a CPU, because MLX's 16-bit kernels there are slow and coarse, and the
    checkpoint's own dtype on a GPU.

    Raises:
        ExecutionError: `no-gpu`, `no-16-bit-experts`.
    """
    wanted = loaded.spec.model
    device = _device(wanted.device, loaded)
    dtype, why = wanted.dtype, "dtype as the spec says"
    if dtype == "auto" and device == "cpu":
        dtype, why = "float32", "16-bit kernels are slow and coarse on a CPU"
    elif dtype == "auto":
        dtype, why = "checkpoint", "the checkpoint's own dtype on a GPU"
    kernels, reason = _kernels(wanted.kernels, device, dtype, plan)
    if device == "cpu" and dtype in SHORT and _has_dense_experts(plan, kernels):
        raise _no_short_experts(loaded, dtype)
    used = blas.status().name if device == "cpu" else ""
    return Numerics(device, dtype, kernels, used, f"{why}; {reason}")


def _kernels(wanted: str, device: str, dtype: str, plan: Plan) -> tuple[str, str]:
    if wanted != "auto":
        return wanted, "kernels as the spec says"
    if device != "cpu" or dtype != "float32":
        return "packed", "MLX's packed kernels"
    if not blas.status().fast:
        return "packed", "without a fast BLAS dense products are slow"
    needed = plan.totals.weights * FLOAT32_BYTES
    if needed > memory_bytes() // 2:
        return "packed", "dense weights would take more than half of the memory"
    return "dense", "dense float32 weights fit and are faster with this BLAS"


def _has_dense_experts(plan: Plan, kernels: str) -> bool:
    return any(
        module.kind == "experts" and (kernels == "dense" or module.landing is None)
        for module in plan.modules.values()
    )


def _no_short_experts(loaded: LoadedSpec, dtype: str) -> ExecutionError:
    return ExecutionError(
        "no-16-bit-experts",
        f"MLX multiplies dense experts on a CPU in float32 only, not in {dtype}",
        origin=loaded.origin("model", "dtype"),
        help="set model.dtype to float32, or model.kernels to packed where experts are packed",
    )


def memory_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _device(wanted: str, loaded: LoadedSpec) -> str:
    if wanted == "gpu" and not mx.is_available(mx.gpu):
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
