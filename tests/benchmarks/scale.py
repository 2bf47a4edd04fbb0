"""`plan` of a large checkpoint against parsing its headers and against `import mlx_lm`.

    python tests/benchmarks/scale.py CHECKPOINT [--repeats 5]

Whole processes, in turn, medians: a busy machine then slows all of them alike.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time

HEADERS = """
import json, struct, sys, time
from pathlib import Path
started = time.perf_counter()
for path in Path(sys.argv[1]).glob("*.safetensors"):
    with path.open("rb") as file:
        json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
print(time.perf_counter() - started)
"""

PLAN = "import sys; from mlxpipe.cli import main; sys.exit(main(['plan', sys.argv[1], '-q']))"

IMPORT = "import mlx_lm"


def seconds(program: str, checkpoint: str) -> float:
    """How long a whole process takes."""
    started = time.perf_counter()
    command = [sys.executable, "-c", program, checkpoint]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def header_seconds(checkpoint: str) -> float:
    """How long the standard library takes to parse all headers, without the interpreter's start."""
    command = [sys.executable, "-c", HEADERS, checkpoint]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rounds = [
        (
            header_seconds(options.checkpoint),
            seconds(PLAN, options.checkpoint),
            seconds(IMPORT, options.checkpoint),
        )
        for _ in range(options.repeats)
    ]
    headers, plan, imported = (statistics.median(column) for column in zip(*rounds, strict=True))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"json.loads of the headers  {headers:.2f} s")
    print(f"mlxpipe plan, whole        {plan:.2f} s  ({plan / headers:.1f}x)")
    print(f"import mlx_lm, whole       {imported:.2f} s")
    print(f"peak memory of any of them {peak:.0f} MB")


if __name__ == "__main__":
    main()
