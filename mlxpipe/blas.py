"""Which BLAS multiplies dense matrices on a CPU, and how to have a fast one.

MLX's wheel for Linux brings the reference BLAS, which multiplies dozens of times slower than
OpenBLAS (`mlxpipe doctor` measures it). Symbols of a library loaded globally win over those of one
loaded later, so a system OpenBLAS that is loaded before `mlx.core` serves MLX. Every module here
that imports MLX imports this one first; a program that imports MLX before mlxpipe keeps MLX's own.

`MLXPIPE_BLAS` chooses: `auto` (the default), `bundled` (MLX's own), or a library's path.

An OpenBLAS older than the processor may not know it and fall back to kernels of 2004 (`Prescott`),
four times slower or worse. So the kernels are named by what the processor can do, unless the user
names them with OpenBLAS's own variable.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlxpipe.errors import UsageError

VARIABLE = "MLXPIPE_BLAS"

#: What a loaded library's file name begins with -> what it is called.
_FAST = {
    "libopenblas": "OpenBLAS",
    "libmkl_rt": "MKL",
    "libblis": "BLIS",
    "libflexiblas": "FlexiBLAS",
}

#: Names that the dynamic linker may know OpenBLAS by.
_CANDIDATES = ("libopenblas.so.0", "libopenblas.so", "libopenblasp.so.0")


#: OpenBLAS's variable for the kernels to use.
KERNELS_VARIABLE = "OPENBLAS_CORETYPE"

#: What a processor can do -> OpenBLAS's name of the kernels for it, the fastest first.
_KERNELS = (
    (frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}), "SkylakeX"),
    (frozenset({"avx2", "fma"}), "Haswell"),
)


@dataclass(frozen=True, slots=True)
class BlasStatus:
    """The BLAS in use.

    Attributes:
        name: What it is called.
        library: Its file, "" where MLX brings it.
        fast: Whether dense products run near the processor's speed.
        reason: Why it is this one, for people.
    """

    name: str
    library: str
    fast: bool
    reason: str


def status() -> BlasStatus:
    """The BLAS that MLX's CPU back end uses in this process."""
    if sys.platform == "darwin":
        return BlasStatus("Accelerate", "", True, "MLX uses the system's on macOS")
    chosen, reason = preload()
    if chosen:
        return BlasStatus(_name(chosen), chosen, True, reason)
    return BlasStatus("reference (bundled with MLX)", "", False, reason)


@cache
def preload() -> tuple[str, str]:
    """Load the chosen library once: its file (or "") and the reason.

    Raises:
        UsageError: `MLXPIPE_BLAS` names a library that cannot be loaded.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if sys.platform != "linux":
        return "", "only Linux wheels of MLX bring a BLAS"
    if wanted == "bundled":
        return "", f"{VARIABLE}=bundled"
    if "mlx.core" in sys.modules:
        return "", "MLX was imported before mlxpipe"
    if wanted != "auto":
        return _load_named(wanted), f"{VARIABLE}={wanted}"
    for candidate in _CANDIDATES:
        if _load(candidate) is None:
            return _file_of(candidate), "found on this system"
    return "", "no OpenBLAS found; `mlxpipe doctor` says how to get one"


def _load_named(path: str) -> str:
    problem = _load(path)
    if problem is not None:
        raise UsageError(
            "no-blas",
            f"{VARIABLE} names a library that cannot be loaded",
            found=problem,
            expected="auto, bundled, or the path of a BLAS library",
        )
    return path


def _load(library: str) -> str | None:
    """Why a library cannot be loaded, None when it was."""
    try:
        with _kernels_named():
            found = ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        return str(error)
    return None if hasattr(found, "cblas_sgemm") else f"{library} has no cblas_sgemm"


@contextmanager
def _kernels_named() -> Iterator[None]:
    """OpenBLAS's variable set while the library is loaded, where the user has not set it."""
    kernels = next((name for needs, name in _KERNELS if needs <= _processor_flags()), None)
    if kernels is None or KERNELS_VARIABLE in os.environ:
        yield
        return
    os.environ[KERNELS_VARIABLE] = kernels
    try:
        yield
    finally:
        del os.environ[KERNELS_VARIABLE]


def _processor_flags() -> frozenset[str]:
    """What the processor can do, as Linux names it; nothing where it does not say."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def _file_of(library: str) -> str:
    """The file behind a name that the dynamic linker resolved."""
    maps = Path("/proc/self/maps")
    stem = library.partition(".so")[0]
    if not maps.exists():
        return library
    files = {line.split()[-1] for line in maps.read_text().splitlines() if stem in line}
    return min(files, default=library)


def _name(library: str) -> str:
    """The library's name, and the kernels it chose where it tells them."""
    stem = Path(library).name
    name = next((name for start, name in _FAST.items() if stem.startswith(start)), stem)
    ask = getattr(ctypes.CDLL(library), "openblas_get_corename", None)
    if ask is None:
        return name
    ask.restype = ctypes.c_char_p
    return f"{name} ({ask().decode()})"


preload()
