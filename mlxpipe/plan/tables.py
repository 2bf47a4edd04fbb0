"""A plan and an explanation as rows for data frames and as tables for notebooks."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from mlxpipe.errors import render_all
from mlxpipe.notebook import paragraph, preformatted, table
from mlxpipe.quant.verify import arithmetic

if TYPE_CHECKING:
    from mlxpipe.plan.explain import Explanation
    from mlxpipe.plan.plan import Plan, PlannedModule


def module_row(module: PlannedModule) -> dict[str, Any]:
    """One module; every row has the same keys, None where there is nothing to say."""
    scheme = module.landing
    verdict = module.verdict
    return {
        "module": module.path,
        "kind": module.kind,
        "scheme": module.outcome,
        "mode": scheme.mode if scheme else None,
        "bits": scheme.bits if scheme else None,
        "group_size": scheme.group_size if scheme else None,
        "grade": module.grade,
        "source": verdict.source,
        "origin": str(verdict.origin) if verdict.origin else None,
        "weights": module.weights,
        "bytes": module.final_bytes,
        "stored_bytes": module.nbytes,
        "recipe": str(module.recipe.origin) if module.recipe else None,
    }


def plan_html(plan: Plan) -> str:
    """Modules, weights and bytes of each scheme, and what is wrong."""
    groups: dict[str, list[PlannedModule]] = defaultdict(list)
    for module in plan.modules.values():
        groups[module.outcome].append(module)
    rows = [
        (
            scheme,
            len(modules),
            sum(module.weights for module in modules) or None,
            sum(module.final_bytes for module in modules),
            ", ".join(sorted({module.verdict.source for module in modules})),
            modules[0].path,
        )
        for scheme, modules in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    totals = plan.totals
    bits = totals.bits_per_weight
    return "".join(
        (
            paragraph(plan.source, plan.architecture or "no architecture", bold=plan.name),
            table(("scheme", "modules", "weights", "bytes", "decided by", "for example"), rows),
            paragraph(
                f"bits per weight {'unknown' if bits is None else format(bits, '.2f')}",
                *(f"{grade} {number}" for grade, number in totals.grades.items()),
                f"conflicts {len(plan.conflicts)}",
                f"stale {len(plan.stale)}",
                f"unmatched {len(plan.unmatched)}",
            ),
            preformatted([render_all((*plan.unverified, *plan.problems))]),
        )
    )


def explanation_html(told: Explanation) -> str:
    """The verdict, every claim with its fate, and the arithmetic."""
    module = told.module
    tensors = [
        f"{parameter.name} <- {', '.join(parameter.tensors)}" for parameter in told.parameters
    ]
    if module is None:
        return paragraph(bold=told.path) + preformatted(tensors)
    verdict = module.verdict
    claims = (
        (each.claim.source, each.claim, each.fate.value, each.reason, each.claim.origin)
        for each in verdict.judged
    )
    return "".join(
        (
            paragraph(
                module.kind,
                module.outcome,
                f"decided by {verdict.source}",
                f"grade {module.grade}",
                bold=told.path,
            ),
            table(("source", "claim", "fate", "reason", "origin"), claims),
            preformatted((*arithmetic(verdict.evidence), *tensors)),
            preformatted([render_all(told.findings)]),
        )
    )
