"""Prompts and texts from the files that a spec names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlxpipe.errors import Origin, UsageError
from mlxpipe.exports.draft import check_target
from mlxpipe.spec import (
    BenchmarkTask,
    CompareTask,
    EvaluateTask,
    ExportTask,
    GenerateTask,
    LoadedSpec,
    TextTask,
)
from mlxpipe.tasks.picture_files import check_pictures
from mlxpipe.tasks.reference import reference_spec


def check_inputs(loaded: LoadedSpec) -> None:
    """Read every file that the tasks name, so that a wrong one is known before a model is loaded.

    Raises:
        UsageError: as the readers and `check_pictures` do, and `target-exists` for an export.
        ExecutionError: `no-mlx-vlm`.
    """
    for number, task in enumerate(loaded.spec.tasks):
        if isinstance(task, GenerateTask) and task.prompt_file is not None:
            origin = loaded.origin("tasks", number, "prompt_file")
            read_prompts(loaded.resolve(task.prompt_file), origin)
        check_pictures(loaded, number)
        if isinstance(task, TextTask):
            read_text(loaded.resolve(task.data), loaded.origin("tasks", number, "data"))
        if isinstance(task, CompareTask):
            reference_spec(loaded, number, task)
        if isinstance(task, BenchmarkTask) and task.prompt_file is not None:
            origin = loaded.origin("tasks", number, "prompt_file")
            read_text(loaded.resolve(task.prompt_file), origin)
        if isinstance(task, EvaluateTask) and task.include is not None:
            _check_directory(loaded, number, task.include)
        if isinstance(task, ExportTask) and task.format == "mlx":
            origin = loaded.origin("tasks", number, "path")
            check_target(loaded.resolve(task.path), overwrite=task.overwrite, origin=origin)


def _check_directory(loaded: LoadedSpec, number: int, include: str) -> None:
    if not loaded.resolve(include).is_dir():
        raise UsageError(
            "missing-directory",
            f"{include} is not a directory",
            origin=loaded.origin("tasks", number, "include"),
            expected="a directory with the harness's task files, *.yaml",
            help="paths are relative to the spec",
        )


def read_prompts(path: Path, origin: Origin) -> list[str]:
    """One prompt per line, or `prompt` of each JSON line; blank lines are skipped.

    Raises:
        UsageError: the file is missing, is not UTF-8, has no prompt, or a line is malformed.
    """
    if path.suffix == ".jsonl":
        prompts = list(_field(path, "prompt", origin))
    else:
        prompts = [line for line in _read(path, origin).splitlines() if line.strip()]
    if not prompts:
        raise UsageError("empty-file", f"{path.name} holds no prompt", origin=origin)
    return prompts


def read_text(path: Path, origin: Origin) -> str:
    """A whole text file, or `text` of each JSON line with an empty line between.

    Raises:
        UsageError: as `read_prompts`.
    """
    if path.suffix == ".jsonl":
        text = "\n\n".join(_field(path, "text", origin))
    else:
        text = _read(path, origin)
    if not text.strip():
        raise UsageError("empty-file", f"{path.name} holds no text", origin=origin)
    return text


def _read(path: Path, origin: Origin) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            "not-utf8",
            f"{path.name} is not UTF-8 text",
            origin=origin,
            found=f"byte {error.object[error.start]:#04x} at offset {error.start}",
        ) from None
    except OSError as error:
        raise UsageError(
            "missing-file",
            f"{path.name} cannot be read",
            origin=origin,
            found=error.strerror or str(error),
            help="paths are relative to the spec",
        ) from None


def _field(path: Path, key: str, origin: Origin) -> Iterator[str]:
    for number, line in enumerate(_read(path, origin).splitlines(), 1):
        if not line.strip():
            continue
        value = _parsed(line, path.name, number).get(key)
        if not isinstance(value, str):
            raise UsageError(
                "malformed-line",
                f"line {number} of {path.name} has no text under '{key}'",
                origin=Origin(path.name, number),
                expected=f'{{"{key}": "…"}}',
            )
        yield value


def _parsed(line: str, name: str, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            "malformed-line",
            f"line {number} of {name} is not JSON",
            origin=Origin(name, number),
            found=str(error),
        ) from None
    return value if isinstance(value, dict) else {}
