"""What this machine computes with, what is slow or missing, and how to mend it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlxpipe._version import __version__
from mlxpipe.errors import Diagnostic, MlxpipeError

if TYPE_CHECKING:
    from mlxpipe.blas import BlasStatus

#: What decides how a model is read, computed and tokenised.
PACKAGES = (
    "mlx",
    "mlx-lm",
    "transformers",
    "tokenizers",
    "numpy",
    "safetensors",
    "huggingface_hub",
    "pydantic",
    "pyyaml",
    "rich",
)

_OPENBLAS = (
    "install a system OpenBLAS, nothing else is needed: apt install libopenblas0-pthread "
    "(Debian, Ubuntu), dnf install openblas (Fedora), pacman -S openblas (Arch)"
)

_UNSET = "unset MLXPIPE_BLAS, or name a library in it"

_SIDE = 512
_MEASURED_SECONDS = 0.2
_IMPORT_SECONDS = 60.0
_NVIDIA = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Device:
    """What MLX computes on.

    Attributes:
        name: The default device, `cpu` or `gpu`, "" where MLX does not import.
        gpu: Whether MLX sees a GPU.
        backend: `Metal`, `CUDA` or `CPU`.
        info: What MLX says about it.
        problem: Why MLX does not import, "" where it does.
    """

    name: str = ""
    gpu: bool = False
    backend: str = ""
    info: Mapping[str, str | int] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Store:
    """A place where models lie.

    Attributes:
        path: Where it is, or would be.
        models: How many models are in it, None where it does not exist.
    """

    path: str
    models: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """An examination's outcome.

    Attributes:
        versions: Package -> version, None where it is not installed.
        python: Python's version.
        platform: The system, in one line.
        cores: Processors that this process may use.
        memory_bytes: The machine's memory, None where that cannot be told.
        device: What MLX computes on.
        blas: What multiplies dense matrices on the CPU, None where that cannot be told.
        gflops: Measured on the default device, None where nothing could be measured.
        mlx_lm_problem: Why mlx-lm does not import, "" where it does.
        ollama: The Ollama store.
        hub: The Hugging Face Hub's cache.
        findings: What is wrong or slow, and how to mend it.
    """

    versions: Mapping[str, str | None]
    python: str
    platform: str
    cores: int
    memory_bytes: int | None
    device: Device
    blas: BlasStatus | None
    gflops: float | None
    mlx_lm_problem: str
    ollama: Store
    hub: Store
    findings: tuple[Diagnostic, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--format json`."""
        blas, device = self.blas, self.device
        return {
            "versions": {"python": self.python, "mlxpipe": __version__, **self.versions},
            "platform": self.platform,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "device": {"default": device.name, "gpu": device.gpu, "backend": device.backend}
            | {"info": dict(device.info), "problem": device.problem},
            "blas": blas
            and {name: getattr(blas, name) for name in ("name", "library", "fast", "reason")},
            "matmul_gflops": self.gflops and round(self.gflops, 1),
            "mlx_lm_imports": not self.mlx_lm_problem,
            "ollama_store": {"path": self.ollama.path, "models": self.ollama.models},
            "hub_cache": {"path": self.hub.path, "models": self.hub.models},
            "findings": [finding.as_json() for finding in self.findings],
        }

    def render(self) -> str:
        """A screen of text: a line for each fact, then what to mend."""
        head = f"mlxpipe {__version__} on Python {self.python}, {self.platform}"
        lines = [head, ""]
        lines += [f"{'✓' if fine else '!'} {name:<13} {told}" for fine, name, told in _facts(self)]
        lines += ["", *_findings_text(self.findings)]
        return "\n".join(line.rstrip() for line in lines)


def examine() -> Report:
    """Look at this machine; takes about two seconds, most of it mlx-lm's import."""
    blas, blas_problem = _blas()
    mx, problem = _mlx() if blas_problem is None else (None, blas_problem.message)
    device = _device(mx) if mx else Device(problem=problem)
    versions = {name: _version(name) for name in PACKAGES}
    mlx_lm_problem = _import_problem("mlx_lm") if mx else "it needs MLX"
    findings = [
        *([blas_problem] if blas_problem else _mlx_findings(device)),
        *_speed_findings(blas, device),
        *_mlx_lm_findings(mlx_lm_problem if mx else ""),
        *_requirement_findings(),
    ]
    return Report(
        versions=versions,
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.release()} {platform.machine()}",
        cores=_cores(),
        memory_bytes=_memory(),
        device=device,
        blas=blas,
        gflops=_measure(mx) if mx else None,
        mlx_lm_problem=mlx_lm_problem,
        ollama=_ollama(),
        hub=_hub(),
        findings=tuple(findings),
    )


# --- facts -----------------------------------------------------------------------------------


def _blas() -> tuple[BlasStatus | None, Diagnostic | None]:
    # Before MLX: the module makes MLX use the BLAS that it reports.
    try:
        from mlxpipe.blas import status
    except MlxpipeError as error:
        return None, error.diagnostics[0]
    return status(), None


def _mlx() -> tuple[ModuleType | None, str]:
    """`mlx.core`, or why it does not import."""
    try:
        import mlx.core as mx
    except ImportError as error:
        return None, str(error)
    return mx, ""


def _device(mx: Any) -> Device:
    gpu = bool(mx.is_available(mx.gpu))
    backend = next((name for name in ("Metal", "CUDA") if _has(mx, name.lower())), "CPU")
    on_gpu = mx.default_device().type == mx.gpu
    info = mx.device_info() if hasattr(mx, "device_info") else {}
    return Device("gpu" if on_gpu else "cpu", gpu, backend, dict(sorted(info.items())))


def _has(mx: Any, backend: str) -> bool:
    module = getattr(mx, backend, None)
    return module is not None and bool(module.is_available())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _import_problem(module: str) -> str:
    """Why a module does not import, tried in a process of its own: it may exit or change limits."""
    command = [sys.executable, "-c", f"import mlxpipe.blas, {module}"]
    path = os.pathsep.join(each for each in sys.path if each)
    environment = {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_IMPORT_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"exit code {done.returncode}"


def _ollama() -> Store:
    root = Path(os.environ.get("OLLAMA_MODELS") or "~/.ollama/models")
    return Store(str(root), _count(root.expanduser() / "manifests", "*/*/*/*", Path.is_file))


def _hub() -> Store:
    from huggingface_hub.constants import HF_HUB_CACHE

    root = Path(HF_HUB_CACHE)
    return Store(_short(root), _count(root, "models--*", Path.is_dir))


def _count(root: Path, pattern: str, kind: Callable[[Path], bool]) -> int | None:
    if not root.is_dir():
        return None
    return sum(kind(each) and not each.name.startswith(".") for each in root.glob(pattern))


def _short(path: Path) -> str:
    """The path with the home directory as `~`."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)


def _measure(mx: Any) -> float:
    """GFLOP/s of a float32 product of two square matrices on the default device."""
    matrix = mx.random.uniform(shape=(_SIDE, _SIDE))
    mx.eval(matrix @ matrix)
    products, started = 0, time.perf_counter()
    while (seconds := time.perf_counter() - started) < _MEASURED_SECONDS or not products:
        mx.eval(matrix @ matrix)
        products += 1
    return 2 * _SIDE**3 * products / seconds / 1e9


# --- findings --------------------------------------------------------------------------------


def _mlx_findings(device: Device) -> Iterator[Diagnostic]:
    if device.problem:
        yield Diagnostic(
            "no-mlx",
            "MLX does not import: only check, show, init and schema will work",
            found=device.problem,
            help="pip install mlx (macOS), 'mlx[cpu]' or 'mlx[cuda]' (Linux)",
        )
    elif not device.gpu and _NVIDIA.exists():
        yield Diagnostic(
            "unused-gpu",
            "this machine has an NVIDIA GPU, and this MLX does not use it",
            help="pip install 'mlxpipe[cuda]'",
            severity="warning",
        )


def _speed_findings(blas: BlasStatus | None, device: Device) -> Iterator[Diagnostic]:
    if blas is not None and not blas.fast and device.name == "cpu":
        yield Diagnostic(
            "slow-blas",
            "dense products on this CPU are dozens of times slower than need be",
            found=f"{blas.name}: {blas.reason}",
            help=_UNSET if "MLXPIPE_BLAS" in blas.reason else _OPENBLAS,
            severity="warning",
        )


def _mlx_lm_findings(problem: str) -> Iterator[Diagnostic]:
    if problem:
        yield Diagnostic(
            "no-mlx-lm",
            "mlx-lm does not import: plan may work, run will not generate",
            found=problem,
            help="pip install --upgrade mlx-lm",
        )


def _requirement_findings() -> Iterator[Diagnostic]:
    """Installed packages below the versions that mlxpipe was tested with."""
    try:
        required = metadata.requires("mlxpipe") or []
    except metadata.PackageNotFoundError:
        yield Diagnostic(
            "not-installed",
            "mlxpipe runs from a source tree, so its requirements were not checked",
            help="pip install -e .",
            severity="note",
        )
        return
    yield from check_requirements(required, _version)


def check_requirements(
    required: list[str], version: Callable[[str], str | None]
) -> Iterator[Diagnostic]:
    """What is missing or not of the versions required, extras left aside.

    Args:
        required: As in `Requires-Dist`.
        version: The installed version of a package, None where it is not there.
    """
    # Here: whoever has the hub's library has it, and only this command needs it.
    from packaging.requirements import Requirement

    for line in required:
        need = Requirement(line)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        found = version(need.name)
        if found is not None and need.specifier.contains(found, prereleases=True):
            continue
        yield Diagnostic(
            "missing-package" if found is None else "untested-version",
            f"{need.name} is {'not installed' if found is None else 'not of a tested version'}",
            found=found or "",
            expected=f"{need.name}{need.specifier}",
            help=f"pip install --upgrade '{need.name}{need.specifier}'",
            severity="error" if found is None else "warning",
        )


# --- text ------------------------------------------------------------------------------------


def _facts(report: Report) -> Iterator[tuple[bool, str, str]]:
    """Lines of the report: whether all is well, what it is, what was found."""
    for name in PACKAGES[:3]:
        version = report.versions[name]
        yield version is not None, name, version or "not installed"
    others = [f"{name} {report.versions[name] or '–'}" for name in PACKAGES[3:]]
    yield all(report.versions[name] for name in PACKAGES[3:]), "beside them", ", ".join(others)
    if report.versions["mlx-lm"]:
        yield not report.mlx_lm_problem, "mlx-lm import", report.mlx_lm_problem or "works"
    memory = _gigabytes(report.memory_bytes)
    yield True, "machine", f"{report.cores} cores, {memory} of memory"
    yield not report.device.problem, "device", _device_text(report.device)
    if report.blas is not None:
        library = f" ({report.blas.library})" if report.blas.library else ""
        yield report.blas.fast, "CPU BLAS", f"{report.blas.name}{library}: {report.blas.reason}"
    if report.gflops is not None:
        told = f"{report.gflops:.1f} GFLOP/s measured, {_SIDE}×{_SIDE} float32 on the "
        yield True, "dense product", told + report.device.name
    yield True, "Ollama store", _store_text(report.ollama)
    yield True, "hub cache", _store_text(report.hub)


def _device_text(device: Device) -> str:
    if device.problem:
        return f"MLX does not import: {device.problem}"
    name = str(device.info.get("device_name", "")).strip()
    told = f"{device.name} ({device.backend}{', ' + name if name else ''})"
    limit = device.info.get("max_recommended_working_set_size")
    if isinstance(limit, int):
        told += f", up to {_gigabytes(limit)} for a model"
    return told if device.gpu else f"{told}; MLX sees no GPU"


def _store_text(store: Store) -> str:
    if store.models is None:
        return f"none at {store.path}"
    return f"{store.path}, {store.models} model{'' if store.models == 1 else 's'}"


def _gigabytes(nbytes: int | None) -> str:
    return "an unknown amount" if nbytes is None else f"{nbytes / 1e9:.1f} GB"


def _findings_text(findings: tuple[Diagnostic, ...]) -> Iterator[str]:
    if not findings:
        yield "Nothing to mend."
    for finding in findings:
        mark = "·" if finding.severity == "note" else "!"
        yield f"{mark} {finding.severity}: {finding.message}"
        for name in ("found", "expected", "help"):
            if told := getattr(finding, name):
                yield f"    {name}: {told}"
