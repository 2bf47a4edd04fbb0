"""The plan: a frozen value that says what every module is, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mlxpipe.errors import Diagnostic, Origin, PlanError
from mlxpipe.naming.groups import Group
from mlxpipe.quant.merge import Fate, Judged, Verdict
from mlxpipe.quant.modes import Scheme


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a rule of the spec's `quantize` makes of a module.

    Attributes:
        label: The rule in short: its scheme, `dense`, `keep` or its preset.
        origin: Where the rule stands.
        before: What MLX would compute without it, None for a dense weight.
        grade: How faithful that would be.
        nbytes: Bytes of the weight and its companions afterwards.
    """

    label: str
    origin: Origin
    before: Scheme | None
    grade: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class PlannedModule:
    """One module with a weight that could be quantised.

    Attributes:
        path: Module path.
        kind: `linear`, `embedding`, `experts`, or `weight` where no architecture told.
        verdict: The decision and its grounds; its scheme is what the checkpoint has.
        layout: The row of `quant.layouts`, "" for a dense weight.
        landing: What MLX computes, after the recipe; None for a dense weight.
        variant: The declared variant of the layout.
        group: Path of the group that holds it in the checkpoint.
        grade: `exact`, `exact_codes` or `lossy`, the recipe included.
        tensors: The checkpoint's tensors that make it.
        nbytes: Bytes of its weight and companions in the checkpoint.
        weights: How many weights it has, 0 where that is unknown.
        recipe: The rule of `quantize` that decided what it becomes, None where none matches.
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
    recipe: Recipe | None = None

    @property
    def converted(self) -> Scheme | None:
        """What the stored bytes are converted to, before the recipe; None for a dense weight."""
        return self.recipe.before if self.recipe else self.landing

    @property
    def converted_grade(self) -> str:
        """How faithful that conversion is."""
        return self.recipe.grade if self.recipe else self.grade

    @property
    def changed(self) -> bool:
        """Whether the recipe makes something else of the weight."""
        return self.converted != self.landing

    @property
    def final_scheme(self) -> Scheme | None:
        """What the module is after the recipe, in the producer's terms where nothing changes."""
        return self.landing if self.changed else self.scheme

    @property
    def outcome(self) -> str:
        """The scheme after the recipe in words: `dense`, `undecided` and `contradiction` too."""
        if self.verdict.problem:
            return "contradiction"
        if self.verdict.open:
            return "undecided"
        return str(self.final_scheme or "dense")

    @property
    def final_bytes(self) -> int:
        """Bytes of its weight and companions after the recipe."""
        return self.recipe.nbytes if self.recipe else self.nbytes

    @property
    def scheme(self) -> Scheme | None:
        """What the checkpoint has, None for dense or undecided."""
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
        elif self.changed:
            fields["stored"] = "dense"
        if self.recipe is not None:
            fields["recipe"] = str(self.recipe.origin)
        if self.layout not in ("", "mlx"):
            fields["layout"] = self.layout
        return {**fields, "grade": self.grade, "source": self.verdict.source, "origin": origin}


#: What may be done with a tensor instead of what `sanitize` does: nothing; 1 is added; the axes
#: [C, 1, K] of PyTorch's depthwise convolutions become MLX's [C, K, 1].
AS_STORED, PLUS_ONE, TURNED = "as stored", "plus one", "turned"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the model and where it comes from.

    Attributes:
        name: The parameter's name in the model.
        output: The name that `sanitize` gives it, which differs where wrappers differed.
        inputs: Canonical names that `sanitize` made it from.
        operations: What `sanitize` did to them.
        tensors: The checkpoint's tensors behind the inputs.
        instead: What is made of the first input in the place of what `sanitize` made of it:
            `AS_STORED`, `PLUS_ONE` or `TURNED`; "" where its word stands.
    """

    name: str
    output: str
    inputs: tuple[str, ...]
    operations: tuple[str, ...]
    tensors: tuple[str, ...]
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over a plan.

    Attributes:
        tensors: Tensors in the checkpoint.
        loaded: Tensors that the model uses.
        nbytes: Bytes of the loaded ones, after the recipe.
        weights: Weights in quantisable modules.
        weight_bytes: Their bytes, companions included, after the recipe.
        stored_bytes: As `nbytes`, in the checkpoint.
        stored_weight_bytes: As `weight_bytes`, in the checkpoint.
        schemes: How many modules have each scheme, `dense` included.
        grades: How many modules have each grade.
    """

    tensors: int
    loaded: int
    nbytes: int
    weights: int
    weight_bytes: int
    stored_bytes: int
    stored_weight_bytes: int
    schemes: Mapping[str, int]
    grades: Mapping[str, int]

    @property
    def bits_per_weight(self) -> float | None:
        """Mean bits of a weight in a quantisable module, scales and biases included."""
        return 8 * self.weight_bytes / self.weights if self.weights else None

    @property
    def stored_bits_per_weight(self) -> float | None:
        """As `bits_per_weight`, in the checkpoint."""
        return 8 * self.stored_weight_bytes / self.weights if self.weights else None

    def as_json(self) -> dict[str, Any]:
        """The contracted form."""
        return {
            "tensors": self.tensors,
            "loaded_tensors": self.loaded,
            "bytes": self.nbytes,
            "stored_bytes": self.stored_bytes,
            "weights": self.weights,
            "bits_per_weight": _rounded(self.bits_per_weight),
            "stored_bits_per_weight": _rounded(self.stored_bits_per_weight),
            "schemes": dict(self.schemes),
            "grades": dict(self.grades),
        }


def _rounded(bits: float | None) -> float | None:
    return None if bits is None else round(bits, 4)


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
        nbytes: Bytes of the tensors that are loaded, in the checkpoint.
        vision: Whether the architecture is mlx-vlm's, which reads pictures.
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
    vision: bool = False

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
            nbytes=self.nbytes + sum(module.final_bytes - module.nbytes for module in modules),
            weights=sum(module.weights for module in modules),
            weight_bytes=sum(module.final_bytes for module in modules if module.weights),
            stored_bytes=self.nbytes,
            stored_weight_bytes=sum(module.nbytes for module in modules if module.weights),
            schemes=dict(Counter(module.outcome for module in modules)),
            grades=dict(Counter(module.grade for module in modules)),
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """A row for each module, such as pandas makes a data frame of."""
        from mlxpipe.plan.tables import module_row

        return [module_row(module) for module in self.modules.values()]

    def _repr_html_(self) -> str:
        from mlxpipe.plan.tables import plan_html

        return plan_html(self)

    def as_json(self) -> dict[str, Any]:
        """The contracted JSON of `mlxpipe plan --format json`."""
        return {
            "name": self.name,
            "source": self.source,
            "architecture": self.architecture,
            "vision": self.vision,
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
