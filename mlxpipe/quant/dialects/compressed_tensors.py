"""compressed-tensors, as llm-compressor writes it: `config_groups` with targets, and `ignore`.

Rules, in compressed-tensors 0.20: utils/match.py (match_name: `re:` patterns from the start, else
equality; match_targets: a name before a pattern before a class, alphabetically within each)
and quantization/lifecycle/apply.py (apply_quantization_config: of two groups with one target the
later holds; the first matched target's scheme is taken; `ignore` is matched as targets are). Names
of vLLM's fused modules are not expanded: checkpoints hold the parts. What a group's arguments mean
is in `compressed_numbers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace

from mlxpipe.errors import Diagnostic, Origin, Severity
from mlxpipe.quant.claims import Block, Claim, Reach, Reading
from mlxpipe.quant.dialects.compressed_numbers import meaning_of
from mlxpipe.quant.dialects.fields import (
    Fields,
    Item,
    attempt,
    cache_note,
    checked_regex,
    collect,
    malformed,
    refuse,
    spell,
)

#: Class name -> (reach, pattern) of the modules that have it.
CLASSES: Mapping[str, tuple[Reach, str]] = {
    "Linear": (Reach.GLOBAL, ""),
    "Embedding": (Reach.PATTERN, "embed_tokens"),
}

CLASS_NAME = re.compile(r"[A-Z]\w*")

STATUSES = ("initialized", "calibration", "frozen", "compressed", "decompressed")


def read(block: Block, source: str) -> Reading:
    """The claims of one block."""
    return collect(_items, block, source)


def _items(fields: Fields, source: str) -> Iterator[Item]:
    yield from cache_note(fields, "kv_cache_scheme")
    for check in (_check_status, _check_sparsity, _check_transform):
        yield from attempt(check, fields)
    if not fields.has("config_groups"):
        raise malformed(fields.at(), "config_groups", None, "a mapping of groups")
    groups = fields.below("config_groups")
    claims: dict[tuple[int, str], Claim] = {}
    for name in groups.block.data:
        for item in attempt(_group, fields, groups, name, source):
            if isinstance(item, Claim):
                claims[_rank(item), item.pattern] = item
            else:
                yield item
    alphabetical = sorted(claims.values(), key=lambda claim: claim.pattern, reverse=True)
    yield from sorted(alphabetical, key=_rank)
    for name, origin in fields.names("ignore"):
        yield from attempt(_ignored, name, origin, source)


def _rank(claim: Claim) -> int:
    """How specific a target is: a class, a pattern, a path."""
    if claim.matcher == "regex-start":
        return 1
    return 2 if claim.reach is Reach.PATH else 0


# --- targets ---------------------------------------------------------------------------------


def _group(fields: Fields, groups: Fields, name: str, source: str) -> Iterator[Item]:
    if isinstance(groups.block.data[name], list):
        raise refuse(
            "preset-scheme",
            f"the group '{name:.60}' names a preset and has no arguments",
            groups.at(name),
            help="save the checkpoint with compressed-tensors, which writes the arguments",
        )
    group = groups.below(name)
    meaning = meaning_of(group, fields)
    severity = "note" if meaning.scheme is None else "warning"
    for target, origin in group.names("targets"):
        base = Claim(source, meaning.scheme, Reach.PATH, target, origin, meaning.note)
        base = replace(base, variant=meaning.variant)
        yield from attempt(_aimed, base, severity)


def _ignored(name: str, origin: Origin, source: str) -> Iterator[Item]:
    base = Claim(source, None, Reach.PATH, name, origin, "in ignore", optional=True)
    yield from _aimed(base, "note")


def _aimed(base: Claim, severity: Severity) -> Iterator[Item]:
    """A claim on an exact path, turned to what its target really is."""
    target = base.pattern
    if target.startswith("re:"):
        pattern = checked_regex(target.removeprefix("re:"), base.origin, target)
        yield replace(base, reach=Reach.PATTERN, pattern=pattern, matcher="regex-start")
    elif target in CLASSES:
        reach, pattern = CLASSES[target]
        yield replace(base, reach=reach, pattern=pattern, matcher="segments", optional=True)
    elif CLASS_NAME.fullmatch(target):
        yield Diagnostic(
            "unknown-class",
            f"which modules are of class '{target:.60}' cannot be told from a checkpoint",
            origin=base.origin,
            expected=", ".join((*CLASSES, "a path or re: and a pattern")),
            help="their tensors decide; a rule in the spec's quantization.overrides can say it",
            severity=severity,
        )
    else:
        yield base


# --- checks ----------------------------------------------------------------------------------


def _check_status(fields: Fields) -> None:
    status = fields.text("quantization_status", STATUSES[0]).lower()
    if status not in STATUSES:
        origin = fields.at("quantization_status")
        raise malformed(origin, "quantization_status", status, ", ".join(STATUSES))


def _check_sparsity(fields: Fields) -> None:
    sparsity = fields.below("sparsity_config")
    form = sparsity.text("format", "dense")
    if form != "dense":
        raise refuse(
            "sparse-weights",
            f"the weights are stored sparse ({form:.40}), which is not supported",
            sparsity.at("format"),
            help="save the checkpoint with dense weights",
        )


def _check_transform(fields: Fields) -> None:
    transform = fields.below("transform_config")
    rest = {key: value for key, value in transform.block.data.items() if value not in (None, {})}
    if rest:
        raise refuse(
            "transformed-weights",
            "the weights need transforms at run time (rotations), which are not supported",
            fields.at("transform_config"),
            found=spell(rest),
            help="use an export without transforms, or with all of them fused into the weights",
        )
