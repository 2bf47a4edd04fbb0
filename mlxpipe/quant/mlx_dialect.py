"""What mlx-lm writes: `quantization` in config.json, and override files of the same form.

Scalars are the global scheme; a module path -> a dictionary, `false` (dense) or `true` (the global
scheme, said of this path). A dictionary is handed to `Module.to_quantized` as it stands, so what it
omits is MLX's default and never the global's value: `mlx_lm.utils.load_model`, `mlx.nn.quantize`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlxpipe.errors import Diagnostic, Origin
from mlxpipe.naming.names import is_pattern
from mlxpipe.quant.claims import Block, Claim, Reach, Reading
from mlxpipe.quant.modes import MODES, Scheme, complete

FIELDS = ("mode", "bits", "group_size")

#: Keys of a block or an override that say nothing about the scheme.
HARMLESS = frozenset({"linear_class", "quant_method", "global_scale", "quantize_input"})

#: Where config.json may hold a block, the one that mlx-lm itself reads last: it wins.
PLACES = (
    ("text_config", "quantization_config"),
    ("text_config", "quantization"),
    ("quantization_config",),
    ("quantization",),
)

MAX_NESTING = 16


def read_config(config: Block, source: str = "config") -> Reading:
    """The claims of every MLX block in a config.json.

    A `quantization_config` with a `quant_method` belongs to another producer's dialect. Two blocks
    that say different things of one key are a conflict; the block that mlx-lm reads wins.
    """
    readings = [
        read_block(block, source)
        for path in PLACES
        if (block := _find_block(config, path)) is not None
    ]
    return _reconcile(readings)


def is_foreign(data: Mapping[str, Any]) -> bool:
    """Whether a block is another producer's."""
    return data.get("quant_method") is not None or data.get("method") is not None


def _find_block(config: Block, path: tuple[str, ...]) -> Block | None:
    value: Any = config.data
    for segment in path:
        value = value.get(segment) if isinstance(value, Mapping) else None
    if value is None or (isinstance(value, Mapping) and is_foreign(value)):
        return None
    return Block(value, lambda below: config.locate((*path, *below)))


@dataclass(frozen=True, slots=True)
class _Entry:
    """A key of a block, with what was nested flattened into it."""

    key: str
    value: Any
    place: tuple[str, ...]


def read_block(block: Block, source: str, *, patterns: bool = False) -> Reading:
    """The claims of one block.

    Args:
        block: The mapping and its place.
        source: What the claims are called.
        patterns: Whether keys may be globs or `re:` regexes; in config.json they are exact paths.
    """
    if not isinstance(block.data, Mapping):
        return Reading(findings=(_malformed(block.locate(()), block.data, "a mapping"),))
    claims: list[Claim] = []
    findings: list[Diagnostic] = []
    scalars = {key: block.data[key] for key in FIELDS if key in block.data}
    general: Scheme | None = None
    if scalars:
        outcome = _scheme(scalars, block.locate(()))
        if isinstance(outcome, Diagnostic):
            findings.append(outcome)
        else:
            general = outcome
            note = _completion(scalars, general)
            claims.append(Claim(source, general, Reach.GLOBAL, "", block.locate(()), note))
    for entry in _entries(block.data, ()):
        claim = _claim(entry, source, block.locate(entry.place), general, patterns)
        (findings if isinstance(claim, Diagnostic) else claims).append(claim)  # type: ignore[arg-type]
    return Reading(tuple(claims), tuple(findings))


def _entries(data: Mapping[str, Any], place: tuple[str, ...]) -> Iterator[_Entry]:
    for key, value in data.items():
        if not place and (key in FIELDS or key in HARMLESS):
            continue
        below = (*place, key)
        if _is_container(value) and len(below) < MAX_NESTING:
            yield from _entries(value, below)
        else:
            yield _Entry(".".join(below), value, below)


def _is_container(value: Any) -> bool:
    """Whether a dictionary nests further paths rather than describing a scheme."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and not any(key in FIELDS for key in value)
        and all(isinstance(item, Mapping | bool) for item in value.values())
    )


def _claim(
    entry: _Entry, source: str, origin: Origin, general: Scheme | None, patterns: bool
) -> Claim | Diagnostic:
    reach = Reach.PATTERN if patterns and is_pattern(entry.key) else Reach.PATH
    base = Claim(source, None, reach, entry.key, origin)
    if entry.value is False:
        return replace(base, note="false: dense")
    if entry.value == {}:
        return replace(base, note="an empty override: MLX leaves the module dense")
    if entry.value is True:
        if general is None:
            return Diagnostic(
                "no-global-scheme",
                f"'{entry.key}' is true, but there is no global scheme to take",
                origin=origin,
                help="write mode, bits and group_size for this path",
            )
        return replace(base, scheme=general, note="true: the global scheme")
    if not isinstance(entry.value, Mapping):
        return _malformed(origin, entry.value, "a mapping, true or false", entry.key)
    outcome = _scheme(entry.value, origin)
    if isinstance(outcome, Diagnostic):
        return replace(outcome, module=entry.key)
    return replace(base, scheme=outcome, note=_completion(entry.value, outcome))


def _scheme(fields: Mapping[str, Any], origin: Origin) -> Scheme | Diagnostic:
    unknown = [key for key in fields if key not in FIELDS and key not in HARMLESS]
    if unknown:
        return Diagnostic(
            "unknown-key",
            f"unknown key '{unknown[0]}' in a quantisation scheme",
            origin=origin,
            expected="mode, bits and group_size",
        )
    for key, kind, words in (
        ("mode", str, "one of " + ", ".join(MODES)),
        ("bits", int, "a whole number"),
        ("group_size", int, "a whole number"),
    ):
        value = fields.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            return _malformed(origin, value, words, key)
    try:
        return complete(fields.get("mode"), fields.get("bits"), fields.get("group_size"))
    except ValueError as problem:
        return Diagnostic(
            "unknown-scheme",
            str(problem),
            origin=origin,
            found=", ".join(f"{key}: {fields[key]}" for key in FIELDS if key in fields),
            help="correct it with a rule in the spec's quantization.overrides",
        )


def _completion(fields: Mapping[str, Any], scheme: Scheme) -> str:
    omitted = [key for key in FIELDS if fields.get(key) is None]
    if not omitted:
        return ""
    given = ", ".join(f"{key} omitted -> {getattr(scheme, key)}" for key in omitted)
    return f"{given} (MLX's default)"


def _malformed(origin: Origin, value: Any, expected: str, key: str = "quantization") -> Diagnostic:
    return Diagnostic(
        "malformed-quantization",
        f"'{key}' does not describe a scheme",
        origin=origin,
        found=f"{value!r:.60}",
        expected=expected,
    )


def _reconcile(readings: list[Reading]) -> Reading:
    """One reading: equal claims once, unequal ones on the same key as conflicts."""
    claims: dict[str, Claim] = {}
    conflicts: list[Diagnostic] = []
    for reading in readings:
        for claim in reading.claims:
            earlier = claims.pop(claim.pattern, None)
            if earlier is not None and earlier.scheme != claim.scheme:
                conflicts.append(_disagreement(earlier, claim))
            claims[claim.pattern] = claim
    findings = tuple(finding for reading in readings for finding in reading.findings)
    return Reading(tuple(claims.values()), findings, tuple(conflicts))


def _disagreement(loser: Claim, winner: Claim) -> Diagnostic:
    subject = f"'{winner.pattern}'" if winner.pattern else "the global scheme"
    return Diagnostic(
        "disagreeing-blocks",
        f"config.json declares {subject} twice, differently",
        origin=winner.origin,
        found=f"{winner} at {winner.origin.pointer}, {loser} at {loser.origin.pointer}",
        help="mlx-lm reads the former; say which is right in the spec's quantization.overrides",
        module=winner.pattern,
        severity="warning",
    )
