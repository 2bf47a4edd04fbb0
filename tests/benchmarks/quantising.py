"""What quantising costs for each weight: time, and memory beside the weight, whole and in slices.

python tests/benchmarks/quantising.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlxpipe.graph.recipe import apply
from mlxpipe.quant.modes import MODES, Scheme

ROWS, WIDTH = 4096, 1024


def measure(step: Callable[[], Any]) -> str:
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    start = time.perf_counter()
    result = step()
    mx.eval(result)
    seconds = time.perf_counter() - start
    weights = ROWS * WIDTH
    used = (mx.get_peak_memory() - before) / weights
    return f"{1e9 * seconds / weights:7.1f} ns  {used:5.1f} bytes"


def main() -> None:
    weight = mx.random.normal((ROWS, WIDTH), scale=0.05).astype(mx.bfloat16)
    mx.eval(weight)
    print(f"{'':18} {'whole':>22} {'in slices':>24}   per weight")
    for mode in MODES.values():
        scheme = Scheme(mode.name, mode.default_bits, mode.default_group_size)
        numbers = (scheme.group_size, scheme.bits)
        whole = measure(
            lambda numbers=numbers, name=mode.name: mx.quantize(weight, *numbers, mode=name)
        )
        sliced = measure(
            lambda scheme=scheme: list(apply({"weight": weight}, None, scheme).values())
        )
        print(f"{scheme!s:18} {whole}   {sliced}")


if __name__ == "__main__":
    main()
