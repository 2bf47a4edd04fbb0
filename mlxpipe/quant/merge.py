"""From claims to one verdict per module.

1. Whole records only: a scheme's fields are never mixed.
2. A claim on a path or pattern beats any global; among equals the declared precedence decides;
   within a source the later claim.
3. The tensors are the judge. A winner on a path that contradicts them is an error; a global that
   does is set aside, and the arithmetic decides if it leaves one answer.
4. A loser that contradicts them was stale; one that does not, yet differs, is a conflict.

Every claim keeps its fate, so that nothing decided here is silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from mlxpipe.errors import Diagnostic, Origin
from mlxpipe.quant.claims import Claim, Reach
from mlxpipe.quant.modes import Scheme
from mlxpipe.quant.verify import Evidence, arithmetic, contradiction, solutions

SHAPES = "shapes"

#: Sources in which no order of rules decides between two entries for one path.
DECLARED_ONCE = frozenset({"config", "metadata", "sidecar"})


class Fate(Enum):
    """What became of a claim."""

    WON = "won"
    AGREES = "agrees"
    OVERRULED = "overruled"
    GENERAL = "more general"
    STALE = "stale"
    CONFLICT = "conflict"
    SET_ASIDE = "set aside"
    CONTRADICTED = "contradicted"


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim with its fate and the reason in a few words."""

    claim: Claim
    fate: Fate
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was decided for one module, and why.

    Attributes:
        path: Module path.
        scheme: The scheme, None for dense or undecided.
        source: Who decided.
        origin: Where the deciding claim stands, None for the shapes.
        judged: Every claim that applied, the winner first.
        evidence: The tensors.
        open: Schemes left where nothing decided (only without an architecture).
        problem: The contradiction that ends the plan, None where all is well.
        warnings: A global set aside.
    """

    path: str
    scheme: Scheme | None
    source: str
    origin: Origin | None
    judged: tuple[Judged, ...]
    evidence: Evidence
    open: tuple[Scheme, ...] = ()
    problem: Diagnostic | None = None
    warnings: tuple[Diagnostic, ...] = ()

    @property
    def dense(self) -> bool:
        """Whether the weight stays in floating point."""
        return self.scheme is None and not self.open and self.problem is None

    def with_fate(self, fate: Fate) -> tuple[Judged, ...]:
        """The claims that had this fate."""
        return tuple(judged for judged in self.judged if judged.fate is fate)


def judge(
    path: str, claims: Sequence[Claim], evidence: Evidence, precedence: Sequence[str]
) -> Verdict:
    """Decide one module.

    Args:
        path: Module path, for messages.
        claims: Every claim that applies, in the order in which their sources declared them.
        evidence: The module's tensors.
        precedence: Names of the sources, the most trusted first; it must name every source of
            `claims`.
    """
    ranked = rank(claims, precedence)
    found = solutions(evidence)
    if ranked and _outranked_by_shapes(ranked[0], evidence, found, precedence):
        return _by_shapes(path, ranked, evidence, found)
    if not ranked:
        return _by_shapes(path, ranked, evidence, found)
    winner = ranked[0]
    reason = contradiction(winner.scheme, evidence)
    if not reason:
        return _by_claim(path, ranked, evidence)
    if evidence.dense and (winner.reach is Reach.GLOBAL or winner.optional):
        # A global and an allow-list speak of what is packed; producers leave dense what they like.
        return _by_shapes(path, ranked, evidence, found)
    if winner.reach is not Reach.GLOBAL:
        return _contradicted(path, ranked, evidence, reason)
    if len(found) == 1:
        verdict = _by_shapes(path, ranked, evidence, found)
        return replace(verdict, warnings=(_set_aside(path, winner, found[0], reason),))
    return _contradicted(path, ranked, evidence, reason)


def rank(claims: Sequence[Claim], precedence: Sequence[str]) -> list[Claim]:
    """Claims, the strongest first."""
    place = {source: number for number, source in enumerate(precedence)}
    numbered = list(enumerate(claims))
    numbered.sort(
        key=lambda item: (
            item[1].reach is Reach.GLOBAL,
            place[item[1].source],
            -item[0],
        )
    )
    return [claim for _, claim in numbered]


def _outranked_by_shapes(
    winner: Claim, evidence: Evidence, found: tuple[Scheme, ...], precedence: Sequence[str]
) -> bool:
    decided = evidence.dense or len(found) == 1
    order = list(precedence)
    return decided and SHAPES in order and order.index(SHAPES) < order.index(winner.source)


def _by_claim(path: str, ranked: list[Claim], evidence: Evidence) -> Verdict:
    winner = ranked[0]
    judged = [Judged(winner, Fate.WON)]
    judged += [_fate_of_loser(loser, winner, evidence) for loser in ranked[1:]]
    return Verdict(path, winner.scheme, winner.source, winner.origin, tuple(judged), evidence)


def _fate_of_loser(loser: Claim, winner: Claim, evidence: Evidence) -> Judged:
    if loser.scheme == winner.scheme:
        return _fate_of_agreement(loser, winner)
    if loser.reach is Reach.GLOBAL and winner.reach is not Reach.GLOBAL:
        return Judged(loser, Fate.GENERAL, f"the claim on this path ({winner.source}) is nearer")
    if loser.source == winner.source and not _names_one_path_twice(loser, winner):
        return Judged(loser, Fate.OVERRULED, "a later rule of the same source")
    if reason := contradiction(loser.scheme, evidence):
        return Judged(loser, Fate.STALE, reason)
    return Judged(loser, Fate.CONFLICT, f"{winner.source} takes precedence")


def _fate_of_agreement(loser: Claim, winner: Claim) -> Judged:
    """Equal schemes may still be stored in variants that decode differently."""
    if loser.variant and winner.variant and loser.variant != winner.variant:
        reason = f"stored as {loser.variant}, not as {winner.variant}"
        return Judged(loser, Fate.CONFLICT, reason)
    return Judged(loser, Fate.AGREES)


def _names_one_path_twice(loser: Claim, winner: Claim) -> bool:
    """Whether a checkpoint's declaration says two things of one path; in a spec the later wins."""
    return loser.reach is winner.reach is Reach.PATH and winner.source in DECLARED_ONCE


def _by_shapes(
    path: str, ranked: list[Claim], evidence: Evidence, found: tuple[Scheme, ...]
) -> Verdict:
    answer = found[0] if len(found) == 1 else None
    judged = tuple(_fate_before_shapes(claim, answer, evidence) for claim in ranked)
    verdict = Verdict(path, answer, SHAPES, None, judged, evidence)
    if evidence.dense or answer is not None:
        return verdict
    if found:
        return replace(verdict, open=found)
    return replace(verdict, problem=_no_scheme(path, evidence))


def _fate_before_shapes(claim: Claim, answer: Scheme | None, evidence: Evidence) -> Judged:
    if claim.scheme == answer:
        return Judged(claim, Fate.AGREES)
    reason = contradiction(claim.scheme, evidence)
    if claim.reach is not Reach.GLOBAL and not claim.optional:
        return Judged(claim, Fate.STALE if reason else Fate.CONFLICT, reason)
    if evidence.dense:
        return Judged(claim, Fate.GENERAL, "a global speaks of packed weights; this one is dense")
    return Judged(claim, Fate.SET_ASIDE, reason)


def _contradicted(path: str, ranked: list[Claim], evidence: Evidence, reason: str) -> Verdict:
    winner = ranked[0]
    judged = [Judged(winner, Fate.CONTRADICTED, reason)]
    judged += [_fate_beside_error(claim, evidence) for claim in ranked[1:]]
    return Verdict(
        path,
        None,
        winner.source,
        winner.origin,
        tuple(judged),
        evidence,
        problem=_contradiction(path, judged, evidence, reason),
    )


def _fate_beside_error(claim: Claim, evidence: Evidence) -> Judged:
    reason = contradiction(claim.scheme, evidence)
    return Judged(claim, Fate.STALE if reason else Fate.OVERRULED, reason or "fits the tensors")


def _contradiction(path: str, judged: list[Judged], evidence: Evidence, reason: str) -> Diagnostic:
    winner = judged[0].claim
    # A global would not win whatever the precedence says.
    fitting = next(
        (
            each.claim
            for each in judged[1:]
            if each.reason == "fits the tensors"
            and (each.claim.reach is not Reach.GLOBAL or winner.reach is Reach.GLOBAL)
        ),
        None,
    )
    return Diagnostic(
        "contradiction",
        f"'{path}' cannot be {winner}, as {winner.source} says: {reason}",
        origin=winner.origin,
        module=path,
        found="\n".join(arithmetic(evidence)),
        expected=f"{winner} ({winner.source}, {winner.origin})",
        help=_advice(path, winner, fitting, evidence),
        notes=tuple(
            f"also claimed: {each.claim} by {each.claim.source} at {each.claim.origin} "
            f"({each.reason})"
            for each in judged[1:]
        ),
    )


def _advice(path: str, winner: Claim, fitting: Claim | None, evidence: Evidence) -> str:
    if winner.source == "spec":
        return "correct or remove the rule; what the tensors are stands above"
    if fitting is not None and fitting.source != winner.source:
        return (
            f"trust {fitting.source} over {winner.source}: "
            f"quantization.precedence: {fitting.source} > {winner.source}"
        )
    found = solutions(evidence)
    if len(found) == 1:
        one = found[0]
        return (
            "override it in the spec: quantization.overrides: [{match: "
            f'"{path}", mode: {one.mode}, bits: {one.bits}, group_size: {one.group_size}}}]'
        )
    if found:
        schemes = " or ".join(str(one) for one in found)
        return f"by the tensors it is {schemes}: override it in the spec with the right one"
    if evidence.dense:
        return (
            f'override it in the spec: quantization.overrides: [{{match: "{path}", dense: true}}]'
        )
    return "the tensors fit no scheme of MLX; look for a damaged or half-converted checkpoint"


def _no_scheme(path: str, evidence: Evidence) -> Diagnostic:
    return Diagnostic(
        "no-scheme",
        f"the tensors of '{path}' fit no scheme of MLX",
        module=path,
        found="\n".join(arithmetic(evidence)),
        help="look for a damaged, truncated or half-converted checkpoint",
    )


def _set_aside(path: str, claim: Claim, answer: Scheme, reason: str) -> Diagnostic:
    return Diagnostic(
        "global-set-aside",
        f"'{path}' is {answer} by its tensors, not {claim} as {claim.source}'s global says",
        origin=claim.origin,
        module=path,
        found=reason,
        help="an override for this path would say so explicitly",
        severity="warning",
    )
