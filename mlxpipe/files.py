"""Writing files: whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

#: What a run directory holds beside its outputs: the record, the decisions, the spec in full.
RUN_FILE = "run.json"
PLAN_FILE = "plan.json"
RESOLVED_FILE = "spec.resolved.yaml"


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, even if the power fails."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
