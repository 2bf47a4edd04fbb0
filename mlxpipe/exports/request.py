"""What is asked of an export, and what it says when done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlxpipe.errors import Origin

if TYPE_CHECKING:
    from mlxpipe.exports.forms import Form

#: How many modules a remark lists.
LISTED = 4

Format = Literal["mlx", "ollama"]

#: Called with (bytes written, bytes in all).
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Request:
    """An export.

    Attributes:
        target: The directory, or the store.
        format: `mlx` or `ollama`.
        name: The entry's name in a store, "" for a directory.
        unsupported: What to do with modules that the format cannot hold: `dense`, `keep`, `error`.
        dtype: `exact`, or `checkpoint` for 16 bits where they round.
        max_shard_bytes: Bytes of tensors in one file, a larger tensor excepted.
        overwrite: Replace an earlier export.
        origin: Where the spec asks for it.
    """

    target: Path
    format: Format = "mlx"
    name: str = ""
    unsupported: Literal["dense", "keep", "error"] = "dense"
    dtype: Literal["exact", "checkpoint"] = "exact"
    max_shard_bytes: int = 5 << 30
    overwrite: bool = False
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: The directory, or the store.
        nbytes: Bytes of tensors.
        tensors: How many there are.
        files: How many files or blobs hold them.
        modules: Path -> what is held of each module that could be quantised.
    """

    path: Path
    nbytes: int
    tensors: int
    files: int
    modules: Mapping[str, Form]

    def count(self, fidelity: str) -> int:
        """How many modules have a fidelity: identical, dequantised, rounded."""
        return sum(form.fidelity == fidelity for form in self.modules.values())

    @property
    def metrics(self) -> dict[str, int]:
        """The task's metrics."""
        counts = ("identical", "dequantised", "rounded")
        return {
            "bytes": self.nbytes,
            "tensors": self.tensors,
            "shards": self.files,
            **{f"modules_{fidelity}": self.count(fidelity) for fidelity in counts},
        }

    def as_json(self) -> dict[str, Any]:
        """The contracted form of `mlxpipe export --format json`."""
        modules = {path: form.as_json() for path, form in self.modules.items()}
        return {"path": str(self.path), **self.metrics, "modules": modules}


def remarks(done: Exported) -> list[str]:
    """What a person should know: modules that are not as the source has them, by the reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for path, form in done.modules.items():
        if form.reason:
            reasons.setdefault((form.fidelity, form.reason), []).append(path)
    return [_remark(paths, *key) for key, paths in reasons.items()]


def _remark(paths: list[str], fidelity: str, reason: str) -> str:
    listed = ", ".join(paths[:LISTED]) + (", …" if len(paths) > LISTED else "")
    return f"{len(paths)} module{'s' * (len(paths) != 1)} {fidelity}: {reason} ({listed})"
