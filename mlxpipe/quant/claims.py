"""Claims: who says what about which modules, and where they say it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mlxpipe.errors import Diagnostic, Origin
from mlxpipe.quant.modes import Scheme

#: The variant of integers that need zero points.
ASYMMETRIC = "asymmetric"


class Reach(Enum):
    """What a claim is about. A claim on a path or a pattern beats any source's global."""

    GLOBAL = "global"
    PATTERN = "pattern"
    PATH = "path"


@dataclass(frozen=True, slots=True)
class Claim:
    """One source's word on the modules that its pattern fits.

    Within a source, a dialect orders its claims so that the later one wins.

    Attributes:
        source: `spec`, `config`, `metadata`, `sidecar`, `shapes` or a file source's name.
        scheme: The whole scheme, or None for dense.
        reach: Whether it is about all modules, those of a pattern, or one.
        pattern: The key as the source spells it, "" for a global.
        origin: File and JSON pointer, or YAML line.
        note: How the record was completed, for `explain`.
        matcher: How `pattern` is matched where `reach` is PATTERN: a name in
            `mlxpipe.naming.names.MATCHERS`, because producers match by rules of their own.
        optional: Whether it is fine that the pattern fits no module (producers' ignore lists).
        variant: Which variant of a layout the producer declares (`gptq_v2`), where the tensors
            alone cannot tell; "" elsewhere.
    """

    source: str
    scheme: Scheme | None
    reach: Reach
    pattern: str
    origin: Origin
    note: str = ""
    matcher: str = "glob"
    optional: bool = False
    variant: str = ""

    def __str__(self) -> str:
        return str(self.scheme) if self.scheme else "dense"


@dataclass(frozen=True, slots=True)
class Reading:
    """What a dialect read.

    Attributes:
        claims: In the order that lets the later one win.
        findings: Malformed or unknown declarations; those of severity `error` end the plan.
        conflicts: Two places of one source that disagree.
    """

    claims: tuple[Claim, ...] = ()
    findings: tuple[Diagnostic, ...] = ()
    conflicts: tuple[Diagnostic, ...] = ()


def join(readings: Iterable[Reading]) -> Reading:
    """Several readings as one, in order."""
    listed = list(readings)
    return Reading(
        tuple(claim for reading in listed for claim in reading.claims),
        tuple(finding for reading in listed for finding in reading.findings),
        tuple(conflict for reading in listed for conflict in reading.conflicts),
    )


@dataclass(frozen=True, slots=True)
class Block:
    """A mapping that declares schemes, and how to name a place inside it.

    Attributes:
        data: The mapping.
        locate: Segments below the mapping -> their origin.
    """

    data: Mapping[str, Any]
    locate: Callable[[tuple[str, ...]], Origin]
