"""A group in MLX's layout, as far as headers tell: the arrays that go to the architecture."""

from __future__ import annotations

from collections.abc import Mapping

from mlxpipe.naming.groups import Group
from mlxpipe.quant.layouts import PACKED_ROLES, arrays_of, recognise
from mlxpipe.quant.verify import Array

#: Role of an array in MLX's layout -> the axis, from the end, of the output features. Factors on a
#: whole tensor have none.
OUTPUT_AXIS: Mapping[str, int] = {"weight": -2, "scales": -2, "biases": -2, "bias": -1}


def mlx_form(group: Group, width: int | None = None) -> dict[str, Array]:
    """A group's arrays in MLX's layout: role -> dtype and shape.

    Args:
        group: The group; its rows are taken, and those of its `others` appended.
        width: Columns of the dense weight that becomes of it, None where it stays packed.
    """
    whole = _whole_form(group, width)
    if not (group.rows or group.others):
        return whole
    rows = outputs(group)
    return {role: _with_rows(role, array, rows) for role, array in whole.items()}


def outputs(group: Group) -> int:
    """How many output features a group's weight has."""
    own = _taken(group, _all_rows(group))
    return own + sum(outputs(other) for other in group.others)


def share(group: Group) -> float:
    """Which part of its own tensors a group takes."""
    if not group.rows:
        return 1.0
    total = _all_rows(group)
    return _taken(group, total) / total


def _all_rows(group: Group) -> int:
    shape = _whole_form(group, None)["weight"].shape
    return shape[-2] if len(shape) > 1 else 1


def _taken(group: Group, total: int) -> int:
    return sum(len(range(*run)) for run in group.rows) if group.rows else total


def _with_rows(role: str, array: Array, rows: int) -> Array:
    axis = OUTPUT_AXIS.get(role)
    if axis is None or len(array.shape) < -axis:
        return array
    shape = list(array.shape)
    shape[axis] = rows
    return Array(array.dtype, tuple(shape))


def _whole_form(group: Group, width: int | None) -> dict[str, Array]:
    arrays = arrays_of(group)
    layout = recognise(group)
    if layout is None:
        return arrays
    rest = {role: array for role, array in arrays.items() if role not in PACKED_ROLES}
    amounts = layout.amounts_to(arrays)
    if width is not None:
        return {"weight": Array("BF16", (*amounts["weight"].shape[:-1], width)), **rest}
    return arrays if layout.name == "mlx" else {**amounts, **rest}
