"""The answer to "why is this module what it is?"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlxpipe.errors import Diagnostic, PlanError, nearest
from mlxpipe.naming.experts import collapse_path, targets
from mlxpipe.naming.names import PathIndex, strip_leaf
from mlxpipe.plan.plan import Parameter, Plan, PlannedModule
from mlxpipe.quant.verify import arithmetic


@dataclass(frozen=True, slots=True)
class Explanation:
    """One module or parameter, with all there is to say.

    Attributes:
        asked: What was asked for.
        path: The module path or parameter name it means.
        module: The module, None for a parameter without a scheme.
        parameters: Its parameters and where they come from.
        findings: What the plan says about it elsewhere.
    """

    asked: str
    path: str
    module: PlannedModule | None
    parameters: tuple[Parameter, ...]
    findings: tuple[Diagnostic, ...]

    def _repr_html_(self) -> str:
        from mlxpipe.plan.tables import explanation_html

        return explanation_html(self)

    def as_json(self) -> dict[str, Any]:
        """For `--format json`."""
        base: dict[str, Any] = {"asked": self.asked, "path": self.path}
        if self.module is not None:
            verdict = self.module.verdict
            base |= self.module.as_json() | {
                "kind": self.module.kind,
                "claims": [
                    {
                        "source": judged.claim.source,
                        "claim": str(judged.claim),
                        "fate": judged.fate.value,
                        "reason": judged.reason,
                        "origin": str(judged.claim.origin),
                        "note": judged.claim.note,
                    }
                    for judged in verdict.judged
                ],
                "arithmetic": list(arithmetic(verdict.evidence)),
                "tensors": list(self.module.tensors),
            }
        base["parameters"] = {
            parameter.name: {
                "tensors": list(parameter.tensors),
                "operations": list(parameter.operations),
            }
            for parameter in self.parameters
        }
        base["findings"] = [finding.as_json() for finding in self.findings]
        return base


def explain(plan: Plan, name: str) -> Explanation:
    """Look a module path, parameter, tensor or override key up in a plan.

    Raises:
        PlanError: `unknown-name`, with the nearest names.
    """
    path = _find(plan, name)
    if path is None:
        known = [*plan.modules, *plan.parameters]
        near = nearest(name, known, 3)
        raise PlanError(
            "unknown-name",
            f"no module, parameter or tensor is called '{name}'",
            help=("near names: " + ", ".join(near)) if near else "`mlxpipe plan --all` lists all",
        )
    module = plan.modules.get(path)
    own = tuple(
        parameter
        for parameter in plan.parameters.values()
        if parameter.name == path or parameter.name.rpartition(".")[0] == path
    )
    findings = tuple(
        finding
        for finding in (*plan.problems, *plan.conflicts, *plan.stale, *plan.notes)
        if finding.module == path
    )
    return Explanation(name, path, module, own, findings)


def _find(plan: Plan, name: str) -> str | None:
    index = PathIndex(plan.modules)
    key = strip_leaf(name)
    if name in plan.parameters and key not in plan.modules:
        return name
    found = index.find(key) or next(iter(targets(collapse_path(key), index.find)), None)
    if found is not None:
        return found
    by_tensor = next(
        (parameter for parameter in plan.parameters.values() if name in parameter.tensors), None
    )
    if by_tensor is None:
        return next(
            (module.path for module in plan.modules.values() if name in module.tensors), None
        )
    path = by_tensor.name.rpartition(".")[0]
    return path if path in plan.modules else by_tensor.name
