"""From how many rows dequantising and multiplying beats MLX's quantised kernel on a CPU.

python tests/benchmarks/kernels.py
MLXPIPE_BLAS=bundled python tests/benchmarks/kernels.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

import mlxpipe.blas
from mlxpipe.quant.modes import MODES

# The BLAS first, or MLX keeps its own.
import mlx.core as mx  # isort: skip

SHAPES = ((576, 576), (1536, 576), (576, 1536), (2048, 2048))
ROWS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128)


def best_of(function: Callable[[], mx.array], repeats: int = 5) -> float:
    """Seconds of the fastest call."""
    mx.eval(function())
    best = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        mx.eval(function())
        best = min(best, time.perf_counter() - started)
    return best


def crossing(mode: str, bits: int, group_size: int, shape: tuple[int, int]) -> int | None:
    """The fewest rows for which dequantising wins, None if it never does."""
    scheme = {"mode": mode, "bits": bits, "group_size": group_size}
    packed = mx.quantize(mx.random.normal(shape), **scheme)
    mx.eval(packed)
    for rows in ROWS:
        x = mx.random.normal((rows, shape[1]))
        mx.eval(x)
        quantised = best_of(lambda x=x: mx.quantized_matmul(x, *packed, transpose=True, **scheme))
        dense = best_of(lambda x=x: x @ mx.dequantize(*packed, dtype=mx.float32, **scheme).T)
        if dense < quantised:
            return rows
    return None


def main() -> None:
    """Print a table: mode x shape -> rows."""
    mx.set_default_device(mx.cpu)
    print(f"BLAS: {mlxpipe.blas.status().name}")
    print(f"{'':22}" + "".join(f"{shape!s:>16}" for shape in SHAPES))
    for mode in MODES.values():
        size = mode.default_group_size
        found = [crossing(mode.name, mode.default_bits, size, shape) for shape in SHAPES]
        name = f"{mode.name} {mode.default_bits}-bit g{size}"
        print(f"{name:22}" + "".join(f"{rows or 'never':>16}" for rows in found), flush=True)


if __name__ == "__main__":
    main()
