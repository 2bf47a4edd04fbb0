"""The resolved per-tensor table: what every module of the model is made of, in a canonical form.

It holds what a plan decided and nothing of how: schemes, layouts, landings, variants and grades;
the tensors behind every parameter, with their roles, shapes and dtypes; what `sanitize` does to
them. Who decided, where it was declared and which rule matched are left out, so two specs that mean
the same have the same table.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, NamedTuple

from mlxpipe.errors import Origin
from mlxpipe.locking.digests import canonical_digest
from mlxpipe.naming.groups import Group
from mlxpipe.plan.plan import Parameter, Plan, PlannedModule

#: Fields of a module that say how it was decided or follow from the others; whatever else a module
#: has is part of the table.
NOT_BINDING = frozenset({"path", "verdict", "group", "tensors", "nbytes", "weights", "recipe"})

#: What of a parameter binds: not the names under which `sanitize` saw it.
PARAMETER_FIELDS = tuple(
    each.name for each in fields(Parameter) if each.name not in ("name", "output", "inputs")
)

#: Hexadecimal digits of a row's digest that a lock shows: enough to see that it changed.
ROW_DIGITS = 12


class Row(NamedTuple):
    """One module of the table.

    Attributes:
        summary: Scheme, layout and grade, for people; `plain` for a module without a weight that
            could be quantised, such as a norm.
        sha256: The digest of all that belongs to it.
    """

    summary: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.summary} {self.sha256[:ROW_DIGITS]}"


def rows(plan: Plan) -> dict[str, Row]:
    """Module path -> its row, sorted by path."""
    parameters: dict[str, list[Parameter]] = defaultdict(list)
    for parameter in plan.parameters.values():
        parameters[_owner(parameter.name, plan)].append(parameter)
    return {
        path: _row(plan, plan.modules.get(path), parameters[path])
        for path in sorted({*parameters, *plan.modules})
    }


def table_digest(plan: Plan, table: Mapping[str, Row]) -> str:
    """The SHA-256 of a whole table and of the architecture that it is for."""
    return canonical_digest({"architecture": plan.architecture, "modules": plain(table)})


def _owner(name: str, plan: Plan) -> str:
    stem, _, _ = name.rpartition(".")
    return stem if stem or name not in plan.modules else name


def _row(plan: Plan, module: PlannedModule | None, parameters: list[Parameter]) -> Row:
    content = {
        "module": _module(plan, module) if module else None,
        "parameters": {
            each.name: {name: getattr(each, name) for name in PARAMETER_FIELDS}
            for each in parameters
        },
    }
    digest = canonical_digest(plain(content))
    if module is None:
        return Row("plain", digest)
    layout = f", {module.layout}" if module.layout else ""
    return Row(f"{module.landing or 'dense'}{layout}, {module.grade}", digest)


def _module(plan: Plan, module: PlannedModule) -> dict[str, Any]:
    group = plan.groups.get(module.group)
    return {
        **{each.name: getattr(module, each.name) for each in fields(module) if _binds(each.name)},
        "scheme": module.scheme,
        "converted": module.converted,
        "group": _group(group) if group else None,
    }


def _group(group: Group) -> dict[str, Any]:
    """What a group is made of; its path and its convention are only how it was found."""
    others = [_group(other) for other in group.others]
    return {"parts": dict(group.parts), "rows": group.rows, "others": others}


def _binds(name: str) -> bool:
    return name not in NOT_BINDING


def plain(value: Any) -> Any:
    """Frozen values as plain data, named tuples as lists; places never bind and become None."""
    if isinstance(value, Origin):
        return None
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        # Names of tensors, by the hundred thousand.
        return value if set(map(type, value)) == {str} else [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain(item) for item in value)
    return value.value if isinstance(value, Enum) else value
