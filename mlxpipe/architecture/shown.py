"""A checkpoint's JSON and text files, in a folder of their own, for libraries that want a folder.

The files may lie in a store under digests, and a directory may hold Python files. So they are shown
under their own names, JSON and text only.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: What a tokenizer or processor may consist of.
SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken")

#: The key by which a config names code that transformers is to run.
CODE = "auto_map"


@contextmanager
def shown(files: Mapping[str, Path], *, without_code: bool = False) -> Iterator[Path]:
    """A temporary folder with the files that a tokenizer or processor may read.

    Args:
        files: The checkpoint's files by their own names.
        without_code: Leave `auto_map` out of them, for a library that might follow it.

    Raises:
        ValueError: a file to be rewritten is not JSON.
    """
    with tempfile.TemporaryDirectory(prefix="mlxpipe-files-") as folder:
        for name, path in files.items():
            if name.endswith(SUFFIXES) and Path(name).name == name:
                _show(path, Path(folder) / name, without_code=without_code)
        yield Path(folder)


def _show(path: Path, at: Path, *, without_code: bool) -> None:
    if without_code and at.suffix == ".json" and f'"{CODE}"'.encode() in path.read_bytes():
        at.write_text(json.dumps(_without_code(json.loads(path.read_bytes()))), encoding="utf-8")
        return
    try:
        at.symlink_to(path.resolve())
    except OSError:  # a file system without links
        shutil.copyfile(path, at)


def _without_code(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_code(item) for key, item in value.items() if key != CODE}
    return [_without_code(item) for item in value] if isinstance(value, list) else value
