"""Small files for the tests of mlxpipe.checkpoint, written byte by byte."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from mlxpipe.errors import SourceError

DATA = Path(__file__).parent.parent / "data"


def blob(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def weights(*names: str, metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of one-byte tensors."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    for i, name in enumerate(names):
        header[name] = {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]}
    return blob(header, bytes(len(names)))


def write(root: Path, files: dict[str, bytes | Any]) -> Path:
    """Write files; what is not bytes becomes JSON."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return root


def digest(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Refused:
    """`with Refused(code) as refused:` expects a SourceError; `refused.text` is its rendering."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.text = ""

    def __enter__(self) -> Refused:
        self._raises = pytest.raises(SourceError)
        self._info = self._raises.__enter__()
        return self

    def __exit__(self, *problem: Any) -> bool:
        caught = self._raises.__exit__(*problem)
        self.error = self._info.value
        self.text = str(self.error)
        assert self.error.code == self.code, self.text
        return bool(caught)
