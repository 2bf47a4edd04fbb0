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
print(time.perf_counter() - started, file=sys.stderr)
"""

PLAN = """
import sys, time
from mlxpipe.api import make_plan
started = time.perf_counter()
make_plan(sys.argv[1])
print(time.perf_counter() - started, file=sys.stderr)
"""

COMMAND = "import sys; from mlxpipe.cli import main; sys.exit(main(['plan', sys.argv[1], '-q']))"

IMPORT = "import mlx_lm"


def inner(program: str, checkpoint: str) -> float:
    """Seconds that a program took by its own account, the interpreter's start apart."""
    command = [sys.executable, "-c", program, checkpoint]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stderr)


def whole(program: str, checkpoint: str) -> float:
    """Seconds that a whole process takes."""
    started = time.perf_counter()
    command = [sys.executable, "-c", program, checkpoint]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure in turn and print medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rounds = [
        (
            inner(HEADERS, options.checkpoint),
            inner(PLAN, options.checkpoint),
            whole(COMMAND, options.checkpoint),
            whole(IMPORT, options.checkpoint),
        )
        for _ in range(options.repeats)
    ]
    headers, plan, command, imported = map(statistics.median, zip(*rounds, strict=True))
    ratios = sorted(row[1] / row[0] for row in rounds)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"json.loads of the headers    {headers:.2f} s")
    print(
        f"make_plan                    {plan:.2f} s, paired ratio {ratios[0]:.1f} / "
        f"{statistics.median(ratios):.1f} / {ratios[-1]:.1f} (min, median, max)"
    )
    print(f"mlxpipe plan, whole process  {command:.2f} s")
    print(f"import mlx_lm, whole process {imported:.2f} s")
    print(f"peak memory of any of them   {peak:.0f} MB")


if __name__ == "__main__":
    main()
