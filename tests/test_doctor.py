"""`mlxpipe doctor`: facts of this machine, and what to mend."""

import dataclasses
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest

from mlxpipe import blas, doctor
from mlxpipe.doctor import Device, Report, check_requirements, examine

SLOW = blas.BlasStatus("reference (bundled with MLX)", "", False, "no OpenBLAS found")


@pytest.fixture(scope="module")
def report() -> Report:
    return examine()


def test_the_facts(report: Report) -> None:
    assert report.versions["mlx"] == metadata.version("mlx")
    assert report.device.name in ("cpu", "gpu")
    assert report.mlx_lm_problem == ""
    assert report.cores >= 1
    assert report.gflops is not None
    assert report.gflops > 0
    assert report.blas == blas.status()


def test_json_is_plain(report: Report) -> None:
    told = json.loads(json.dumps(report.as_json()))

    assert told["versions"]["mlxpipe"]
    assert told["device"]["default"] == report.device.name
    assert told["blas"].keys() == {"name", "library", "fast", "reason"}
    assert told["matmul_gflops"] > 0
    assert told["mlx_lm_imports"] is True
    assert isinstance(told["findings"], list)


def test_the_text_fits_a_screen(report: Report) -> None:
    text = report.render()

    assert len(text.splitlines()) < 40
    assert f"mlx-lm        {report.versions['mlx-lm']}" in text
    assert "GFLOP/s measured" in text
    assert "\x1b" not in text


def test_a_slow_blas_is_marked_and_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "status", lambda: SLOW)
    monkeypatch.setattr(doctor, "_import_problem", lambda module: "")
    monkeypatch.setattr(doctor, "_device", lambda mx: Device("cpu", False, "CPU"))

    text = examine().render()

    assert "! CPU BLAS      reference (bundled with MLX)" in text
    assert "apt install libopenblas0-pthread" in text
    assert "dnf install openblas" in text


def test_a_chosen_slow_blas_needs_no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = dataclasses.replace(SLOW, reason="MLXPIPE_BLAS=bundled")
    (found,) = doctor._speed_findings(chosen, Device("cpu", False, "CPU"))

    assert found.help.startswith("unset MLXPIPE_BLAS")


def test_the_blas_does_not_matter_on_a_gpu() -> None:
    assert not list(doctor._speed_findings(SLOW, Device("gpu", True, "CUDA")))


def test_without_mlx_the_rest_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_mlx", lambda: (None, "libcuda.so.1: no such file"))

    report = examine()

    assert report.gflops is None
    assert [found.code for found in report.findings if found.severity == "error"] == ["no-mlx"]
    assert "! device        MLX does not import: libcuda.so.1: no such file" in report.render()


def test_mlx_lm_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_import_problem", lambda module: "ImportError: no torch")

    report = examine()

    assert "no-mlx-lm" in {found.code for found in report.findings}
    assert report.as_json()["mlx_lm_imports"] is False


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        ("json", ""),
        ("no_such_module_at_all", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
    ],
)
def test_imports_are_tried_elsewhere(module: str, problem: str) -> None:
    assert doctor._import_problem(module) == problem


def test_a_gpu_that_mlx_does_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "version").touch()
    monkeypatch.setattr(doctor, "_NVIDIA", tmp_path / "version")

    (found,) = doctor._mlx_findings(Device("cpu", False, "CPU"))

    assert found.help == "pip install 'mlxpipe[cuda]'"
    assert not list(doctor._mlx_findings(Device("gpu", True, "CUDA")))


REQUIRED = [
    "mlx>=0.32; sys_platform == 'darwin'",
    "mlx[cpu]>=0.32; sys_platform == 'linux'",
    "mlx-lm>=0.32",
    "pytest>=8.4; extra == 'test'",
]


@pytest.mark.parametrize(
    ("installed", "codes"),
    [
        ({"mlx": "0.32.4", "mlx-lm": "0.32"}, []),
        ({"mlx": "0.33.0.dev1", "mlx-lm": "1.0"}, []),
        ({"mlx": "0.31.9", "mlx-lm": "0.32.2"}, ["untested-version"]),
        ({"mlx": "0.32.4"}, ["missing-package"]),
        ({}, ["missing-package", "missing-package"]),
    ],
)
def test_requirements(installed: dict[str, str], codes: list[str]) -> None:
    assert [found.code for found in check_requirements(REQUIRED, installed.get)] == codes


def test_requirements_come_from_the_installed_distribution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=9999"])

    (found,) = doctor._requirement_findings()

    assert (found.code, found.expected) == ("untested-version", "numpy>=9999")


def test_a_source_tree_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)

    (found,) = doctor._requirement_findings()

    assert (found.code, found.severity) == ("not-installed", "note")


def test_the_ollama_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    assert doctor._ollama() == doctor.Store(str(tmp_path), None)

    tag = tmp_path / "manifests/registry.ollama.ai/library/tiny/latest"
    tag.parent.mkdir(parents=True)
    tag.touch()
    assert doctor._ollama().models == 1


@pytest.mark.parametrize("make", [lambda: None, lambda: 12_300_000_000])
def test_memory_in_words(make: Callable[[], int | None]) -> None:
    assert doctor._gigabytes(make()) in ("an unknown amount", "12.3 GB")
