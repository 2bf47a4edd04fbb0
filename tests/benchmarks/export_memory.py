"""Peak memory of exporting a checkpoint against the bytes of its weights.

    python tests/benchmarks/export_memory.py [--megabytes 1000]

Makes a llama in each format from random bytes (see memory.py), exports it in a process of its own
as a directory and as an entry of a store, and reads that process's peak. What the interpreter, MLX
and mlxpipe take without a model is taken off.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from memory import FORMATS, HIDDEN, INNER, make

EXPORT = """
import sys, resource
import mlxpipe
import mlxpipe.exports.export, mlxpipe.tasks.export, mlxpipe.architecture.skeleton
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source, target, kind = sys.argv[1:]
options = {"format": "ollama", "name": "llama"} if kind == "ollama" else {}
mlxpipe.export(source, target, **options)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024)
"""

#: Bytes of the largest weight, packed in 4 bits.
LARGEST = INNER * HIDDEN // 2


def main() -> None:
    """Measure each format both ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1000)
    options = parser.parse_args()
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source"
            source.mkdir()
            # In a process of its own, for a child's peak begins with that of its parent.
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                total = pool.submit(make, source, name, options.megabytes).result()
            for kind in ("mlx", "ollama"):
                target = Path(folder) / kind
                command = [sys.executable, "-c", EXPORT, str(source), str(target), kind]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                peak = int(float(output.split()[-1]))
                print(
                    f"{name:20} {kind:7} {total / 1e6:7.0f} MB of weights, peak {peak / 1e6:5.0f} "
                    f"MB ({peak / total:.3f}x, {peak / LARGEST:.0f} times the largest weight)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
