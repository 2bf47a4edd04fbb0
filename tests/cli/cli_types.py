"""What the fixtures of these tests give, and how they start a process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]

#: Buffered as for a user, from this source tree, and without a colour or width of our terminal.
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "NO_COLOR": "1",
    "COLUMNS": "80",
}


class Result(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on stdout; anything before or after it is an error."""
        return json.loads(self.out)


Command = Callable[..., Result]


def start_process(
    folder: Path, *arguments: object, python: Sequence[str] = ("-m", "mlxpipe")
) -> subprocess.Popen[str]:
    """Start a command line in a process of its own, in `folder`."""
    return subprocess.Popen(
        [sys.executable, *python, *map(str, arguments)],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_process(folder: Path, *arguments: object, **options: Any) -> Result:
    """Run a command line in a process of its own, to its end."""
    with start_process(folder, *arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return Result(process.returncode, out, err)


def write_spec(folder: Path, name: str = "spec.yaml", **sections: object) -> Path:
    """Write a spec; keyword arguments are its sections."""
    # JSON is YAML, and its strings need no thought about quotes.
    path = folder / name
    path.write_text(json.dumps({"version": 1, **sections}, indent=1), encoding="utf-8")
    return path
