"""The versions of what decides what a run computes."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlxpipe
from mlxpipe._version import __version__

#: Recorded with every run.
PACKAGES = (
    "mlx",
    "mlx-lm",
    "mlx-vlm",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
)

#: Those that a lock binds: arithmetic, architectures, and how texts become tokens.
LOCKED = ("mlxpipe", "mlx", "mlx-lm", "transformers", "tokenizers")

#: What a lock binds as well where pictures are read.
LOCKED_FOR_PICTURES = ("mlx-vlm", "pillow")


def versions() -> dict[str, str]:
    """Name -> version of Python, mlxpipe and the packages that are installed."""
    found = {"python": platform.python_version(), "mlxpipe": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def locked_versions(*, vision: bool = False) -> dict[str, str]:
    """Those that a lock binds; `vision`: of a plan whose architecture reads pictures."""
    found = versions()
    bound = (*LOCKED, *LOCKED_FOR_PICTURES) if vision else LOCKED
    return {name: found[name] for name in bound if name in found}


@cache
def code_digest() -> str:
    """The SHA-256 of mlxpipe's own modules: between two releases the version says nothing."""
    root = Path(mlxpipe.__file__).parent
    whole = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        whole.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()
