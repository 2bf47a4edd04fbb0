"""The plan: a frozen value that says what every module is, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxpipe.errors import Diagnostic, PlanError
from mlxpipe.naming.groups import Group
from mlxpipe.quant.merge import Fate, Judged, Verdict
from mlxpipe.quant.modes import Scheme


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One module with a weight that could be quantised.

    Attributes:
        path: Module path.
        kind: `linear`, `embedding`, `experts`, or `weight` where no architecture told.
        verdict: The decision and its grounds; its scheme is what the checkpoint has.
        layout: The row of `quant.layouts`, "" for a dense weight.
        landing: What MLX computes, None for a dense weight.
        variant: The declared variant of the layout.
        group: Path of the group that holds it in the checkpoint.
        grade: `exact`, `exact_codes` or `lossy`.
        tensors: The checkpoint's tensors that make it.
        nbytes: Bytes of its weight and companions in the checkpoint.
        weights: How many weights it has, 0 where that is unknown.
    """

    path: str
    kind: str
    verdict: Verdict
    layout: str
    landing: Scheme | None
    variant: str
    group: str
    grade: str
    tensors: tuple[str, ...]
    nbytes: int
    weights: int

    @property
    def scheme(self) -> Scheme | None:
        """The scheme, None for dense or undecided."""
        return self.verdict.scheme

    def as_json(self) -> dict[str, Any]:
        """The contracted form: mode, bits, group_size or dense, with grade, source and origin."""
        scheme = self.landing
        fields: dict[str, Any] = (
            {"mode": scheme.mode, "bits": scheme.bits, "group_size": scheme.group_size}
            if scheme
            else {"dense": True}
        )
        if self.verdict.open:
            fields = {"open": [str(one) for one in self.verdict.open]}
        if self.verdict.problem:
            fields = {"problem": self.verdict.problem.message}
        origin = str(self.verdict.origin) if self.verdict.origin else None
        if self.verdict.scheme is not None and self.verdict.scheme != self.landing:
            fields["stored"] = str(self.verdict.scheme)
        if self.layout not in ("", "mlx"):
            fields["layout"] = self.layout
        return {**fields, "grade": self.grade, "source": self.verdict.source, "origin": origin}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the model and where it comes from.

    Attributes:
        name: The parameter's name in the model.
        output: The name that `sanitize` gives it, which differs where wrappers differed.
        inputs: Canonical names that `sanitize` made it from.
        operations: What `sanitize` did to them.
        tensors: The checkpoint's tensors behind the inputs.
    """

    name: str
    output: str
    inputs: tuple[str, ...]
    operations: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over a plan.

    Attributes:
        tensors: Tensors in the checkpoint.
        loaded: Tensors that the model uses.
        nbytes: Bytes of the loaded ones.
        weights: Weights in quantisable modules.
        weight_bytes: Their bytes, companions included.
        schemes: How many modules have each scheme, `dense` included.
        grades: How many modules have each grade.
    """

    tensors: int
    loaded: int
    nbytes: int
    weights: int
    weight_bytes: int
    schemes: Mapping[str, int]
    grades: Mapping[str, int]

    @property
    def bits_per_weight(self) -> float | None:
        """Mean bits of a weight in a quantisable module, scales and biases included."""
        return 8 * self.weight_bytes / self.weights if self.weights else None

    def as_json(self) -> dict[str, Any]:
        """The contracted form."""
        bits = self.bits_per_weight
        return {
            "tensors": self.tensors,
            "loaded_tensors": self.loaded,
            "bytes": self.nbytes,
            "weights": self.weights,
            "bits_per_weight": round(bits, 4) if bits is not None else None,
            "schemes": dict(self.schemes),
            "grades": dict(self.grades),
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that was decided before a weight byte was read.

    Attributes:
        name: The spec's name.
        source: What the checkpoint is called.
        architecture: mlx-lm's module, None where the plan was made without it (`check`).
        precedence: Sources, the most trusted first.
        modules: Path -> module that could be quantised.
        parameters: Every parameter of the model; empty without an architecture.
        groups: The checkpoint's tensors as they go to the architecture.
        problems: What keeps this plan from running.
        conflicts: Claims that fit the tensors and yet differ from what was decided.
        stale: Claims that the tensors contradict and that lost.
        unmatched: Overrides that fit no module.
        notes: Warnings and notes.
        unloaded: Tensors that the architecture leaves out, and those the spec drops.
        ignored: Companions that say nothing about the weights, such as scales of activations.
        unverified: Why no architecture could be asked: the plan can be read, but not run.
        total_tensors: Tensors in the checkpoint.
        nbytes: Bytes of the tensors that are loaded.
    """

    name: str
    source: str
    architecture: str | None
    precedence: tuple[str, ...]
    modules: Mapping[str, PlannedModule]
    parameters: Mapping[str, Parameter] = field(repr=False)
    groups: Mapping[str, Group] = field(repr=False)
    problems: tuple[Diagnostic, ...]
    conflicts: tuple[Diagnostic, ...]
    stale: tuple[Diagnostic, ...]
    unmatched: tuple[Diagnostic, ...]
    notes: tuple[Diagnostic, ...]
    unloaded: tuple[str, ...] = field(repr=False)
    ignored: tuple[str, ...] = field(repr=False)
    unverified: tuple[Diagnostic, ...] = ()
    total_tensors: int = 0
    nbytes: int = 0

    def require_sound(self) -> Plan:
        """The plan itself, if it can run.

        Raises:
            PlanError: with every problem, and why no architecture could be asked.
        """
        if found := (*self.unverified, *self.problems):
            raise PlanError.several(found)
        return self

    @property
    def totals(self) -> Totals:
        """Counts and sizes."""
        modules = self.modules.values()
        return Totals(
            tensors=self.total_tensors,
            loaded=self.total_tensors - len(self.unloaded) - len(self.ignored),
            nbytes=self.nbytes,
            weights=sum(module.weights for module in modules),
            weight_bytes=sum(module.nbytes for module in modules if module.weights),
            schemes=dict(Counter(_scheme_name(module.verdict) for module in modules)),
            grades=dict(Counter(module.grade for module in modules)),
        )

    def as_json(self) -> dict[str, Any]:
        """The contracted JSON of `mlxpipe plan --format json`."""
        return {
            "name": self.name,
            "source": self.source,
            "architecture": self.architecture,
            "precedence": list(self.precedence),
            "modules": {path: module.as_json() for path, module in self.modules.items()},
            "problems": [item.as_json() for item in self.problems],
            "conflicts": [item.as_json() for item in self.conflicts],
            "stale": [item.as_json() for item in self.stale],
            "unmatched": [item.as_json() for item in self.unmatched],
            "notes": [item.as_json() for item in self.notes],
            "unloaded": len(self.unloaded),
            "ignored": len(self.ignored),
            "unverified": [item.as_json() for item in self.unverified],
            "totals": self.totals.as_json(),
        }


def _scheme_name(verdict: Verdict) -> str:
    if verdict.problem:
        return "contradiction"
    if verdict.open:
        return "undecided"
    return str(verdict.scheme) if verdict.scheme else "dense"


def describe_loser(path: str, verdict: Verdict, judged: Judged) -> Diagnostic:
    """A stale claim or a conflict as a finding."""
    stale = judged.fate is Fate.STALE
    claim = judged.claim
    return Diagnostic(
        "stale-claim" if stale else "conflict",
        f"{claim.source} says '{path}' is {claim}, "
        f"{verdict.source} says {verdict.scheme or 'dense'}",
        origin=claim.origin,
        module=path,
        found=judged.reason,
        help="" if stale else "say which is right in quantization.overrides or precedence",
        severity="note" if stale else "warning",
    )
