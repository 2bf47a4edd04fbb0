"""Which variant of a layout a module is stored in, where its shapes cannot tell.

GPTQ's two formats differ by one in the zero points and in nothing else. Symmetric weights have the
same zero point 2^(bits - 1) everywhere, so that what is stored tells the format: the first bytes of
the zero points are read. Asymmetric ones differ, and only a declaration can say.
"""

from __future__ import annotations

from collections.abc import Mapping

from mlxpipe.checkpoint import Checkpoint
from mlxpipe.checkpoint.tables import repeated_code
from mlxpipe.errors import Diagnostic
from mlxpipe.naming.groups import Group
from mlxpipe.plan.survey import Subject
from mlxpipe.quant.claims import ASYMMETRIC, Claim
from mlxpipe.quant.merge import Verdict

#: Variant -> what it stores less the zero point (gptqmodel/utils/model.py, convert_gptq_v1_to_v2).
STORED_OFFSET: Mapping[str, int] = {"gptq": -1, "gptq_v2": 0}


def settle(
    subject: Subject, verdict: Verdict, groups: Mapping[str, Group], checkpoint: Checkpoint
) -> tuple[str, Diagnostic | None]:
    """The variant, "" where the layout has none, and what is wrong with it."""
    if verdict.judged and verdict.judged[0].claim.variant == ASYMMETRIC:
        return "", _without_zero_points(subject, verdict)
    if subject.layout is None or not subject.layout.variants or verdict.scheme is None:
        return "", None
    claim = _declaring(verdict, subject.layout.variants)
    told = _told(subject, verdict.scheme.bits, groups, checkpoint)
    if claim is None:
        return told, None if told else _undeclared(subject, subject.layout.variants)
    if told and told != claim.variant:
        return claim.variant, _contradiction(subject, claim, told, verdict.scheme.bits)
    return claim.variant, None


def _declaring(verdict: Verdict, variants: tuple[str, ...]) -> Claim | None:
    claims = (judged.claim for judged in verdict.judged)
    return next((claim for claim in claims if claim.variant in variants), None)


def _told(subject: Subject, bits: int, groups: Mapping[str, Group], checkpoint: Checkpoint) -> str:
    """The variant that symmetric zero points tell, "" where they tell none."""
    points = groups[subject.group].parts.get("zero_points")
    if points is None:
        return ""
    code = repeated_code(checkpoint, points.names[0], bits)
    stored = {_symmetric(bits, variant): variant for variant in STORED_OFFSET}
    return stored.get(code, "")


def _symmetric(bits: int, variant: str) -> int | None:
    """What a variant stores for the zero point of symmetric weights."""
    return (1 << (bits - 1)) + STORED_OFFSET[variant]


def _contradiction(subject: Subject, claim: Claim, told: str, bits: int) -> Diagnostic:
    code = _symmetric(bits, told)
    return Diagnostic(
        "contradiction",
        f"'{subject.path}' is not stored as {claim.variant}, as {claim.source} says: "
        f"its zero points are those of {told}",
        origin=claim.origin,
        module=subject.path,
        found=f"the stored zero points repeat {code}, and {told} stores {code} for "
        f"{1 << (bits - 1)}, the zero point of symmetric {bits}-bit weights",
        expected=f"{_symmetric(bits, claim.variant)}, if it were {claim.variant}",
        help="correct checkpoint_format (in AutoRound's declarations packing_format)",
    )


def _without_zero_points(subject: Subject, verdict: Verdict) -> Diagnostic | None:
    if "zero_points" in subject.roles or subject.layout is None:
        return None
    return Diagnostic(
        "missing-zero-points",
        f"'{subject.path}' is declared asymmetric, and the checkpoint has no zero points for it",
        origin=verdict.origin,
        module=subject.path,
        found="; ".join(subject.tensors),
        help="a shard may be missing, or the declaration is wrong",
    )


def _undeclared(subject: Subject, variants: tuple[str, ...]) -> Diagnostic:
    layout = subject.layout.name if subject.layout else ""
    return Diagnostic(
        "undeclared-variant",
        f"nobody says which variant of {layout} '{subject.path}' is stored in",
        module=subject.path,
        found="; ".join(subject.tensors[:2]),
        expected="one of " + ", ".join(variants),
        help="config.json or quantize_config.json has it: quant_method and checkpoint_format",
    )
