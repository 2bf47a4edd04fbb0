"""Where packed layers go that bear other names, or another cut, than the architecture's modules.

mlx-lm's `sanitize` renames, stacks, splits and joins the weights of the original checkpoints. It
knows them dense: of a packed layer it would move the weight and leave the scales where they are, or
cut codes that its producer packed along the other axis. So packed layers are placed before
`sanitize` sees them. Where they go it tells itself: it is run once over tokens, arrays with one
column that hold the number of each row of a packed weight. Where tokens come out, there those rows
belong. What it transposes or computes with cannot stay packed; it is dequantised first.

The common names of experts need no tokens: `naming.experts` has them in tables.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

import mlx.core as mx

from mlxpipe.architecture.lineage import DTYPES, without_contiguous
from mlxpipe.architecture.skeleton import Module, Skeleton
from mlxpipe.naming.experts import add_group, stack
from mlxpipe.naming.groups import Group, Run
from mlxpipe.naming.names import PathIndex, rewrap
from mlxpipe.quant.forms import mlx_form, outputs
from mlxpipe.quant.layouts import PACKED_ROLES, recognise

#: Roles that go where a packed weight goes.
OF_A_LAYER = PACKED_ROLES | {"bias"}

#: Tokens have a type that no weight has.
TOKEN = mx.int64


@dataclass(frozen=True, slots=True)
class Placing:
    """Where packed groups go.

    Attributes:
        groups: Path -> group, the strays under their modules' paths.
        unpacked: Path of a group that must be dense before `sanitize` -> its columns.
    """

    groups: Mapping[str, Group]
    unpacked: Mapping[str, int]


def place_strays(skeleton: Skeleton, groups: Mapping[str, Group]) -> Placing:
    """Place the packed groups whose path is no module's, as `sanitize` would place dense ones.

    Args:
        skeleton: The architecture.
        groups: Path -> group, experts with common names placed.

    Raises:
        PlanError: experts of one layer that are not stored alike.
    """
    packable = {path: module for path, module in skeleton.modules.items() if module.quantisable}
    find = PathIndex(packable).find
    strays = [
        group
        for path, group in groups.items()
        if group.packed and find(path) is None and recognise(group) is not None
    ]
    starts = list(accumulate(map(outputs, strays), initial=0))
    found = _follow(skeleton, groups, dict(zip(starts, strays, strict=False)))
    layers = {}
    for name, tokens in found.items():
        path = find(name.removesuffix(".weight"))
        if path is not None:
            layers[path] = _layer(path, tokens, starts, strays)
    return _placing(groups, layers, packable)


def _follow(
    skeleton: Skeleton, groups: Mapping[str, Group], strays: Mapping[int, Group]
) -> dict[str, mx.array]:
    """`sanitize`'s outputs that hold tokens, by name; nothing where it refuses them."""
    sanitize = skeleton.sanitize
    if sanitize is None or not strays:
        return {}
    given: dict[str, mx.array] = {}
    for group in groups.values():
        for role, array in mlx_form(group).items():
            if (role == "weight" or not group.packed) and array.dtype in DTYPES:
                given[group.canonical(role)] = mx.ones(array.shape, DTYPES[array.dtype])
    for first, group in strays.items():
        given[group.canonical("weight")] = _tokens(group, first)
    try:
        with without_contiguous():
            results: dict[str, Any] = dict(sanitize(given))
    except Exception:  # the tracing of `sanitize` reports what it raises on these names
        return {}
    return {
        name: array
        for name, array in results.items()
        if array.dtype == TOKEN and name.endswith(".weight")
    }


def _tokens(group: Group, first: int) -> mx.array:
    """[..., o, 1]: the number of each row, counted from `first`; the same for all experts."""
    lead = mlx_form(group)["weight"].shape[:-2]
    rows = mx.arange(first, first + outputs(group), dtype=TOKEN)[:, None]
    return mx.broadcast_to(rows, (*lead, *rows.shape))


# --- reading tokens --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """What feeds a module.

    Attributes:
        owners: Paths of the groups.
        group: The packed layer that they make, None where none can.
    """

    owners: frozenset[str]
    group: Group | None


def _layer(path: str, tokens: mx.array, starts: list[int], strays: list[Group]) -> _Layer:
    low, high = (bisect(starts, _numbers(each)[0]) - 1 for each in (tokens.min(), tokens.max()))
    owners = frozenset(group.path for group in strays[low : high + 1])
    if tokens.shape[-1] != 1:
        return _Layer(owners, None)  # its columns are no columns of the checkpoint's
    rows = tokens[..., 0]
    if low == high:
        return _Layer(owners, _rows_of(path, rows - starts[low], strays[low]))
    parts = list(_whole_groups(_numbers(rows), starts, strays))
    owners = frozenset(group.path for group in parts)
    if sum(map(outputs, parts)) != rows.size:
        return _Layer(owners, None)
    path = rewrap(path, parts[0].path)
    parts = [_layer_alone(group) for group in parts]
    return _Layer(owners, _stacked(path, parts) if rows.ndim > 1 else _joined(path, parts))


def _rows_of(path: str, rows: mx.array, group: Group) -> Group | None:
    """Some rows of one group, the same of each of its experts."""
    lead = mlx_form(group)["weight"].shape[:-2]
    one = rows[(0,) * (rows.ndim - 1)]
    if rows.shape[:-1] != lead or not mx.array_equal(mx.broadcast_to(one, rows.shape), rows).item():
        return None
    taken = runs(_numbers(one))
    whole = taken == (Run(0, outputs(group)),)
    return replace(_layer_alone(group), path=rewrap(path, group.path), rows=() if whole else taken)


def _numbers(rows: mx.array) -> list[int]:
    numbers: Any = rows.flatten().tolist()
    return list(numbers)


def _whole_groups(rows: list[int], starts: list[int], strays: list[Group]) -> Iterator[Group]:
    """The groups whose rows follow one another, as far as all of them do."""
    place = 0
    while place < len(rows):
        number = bisect(starts, rows[place]) - 1
        size = starts[number + 1] - starts[number]
        if rows[place : place + size] != list(range(starts[number], starts[number + 1])):
            return
        yield strays[number]
        place += size


def _stacked(path: str, parts: list[Group]) -> Group:
    return stack(path, dict(enumerate(parts)))


def _joined(path: str, parts: list[Group]) -> Group | None:
    """One layer of several groups' rows, where they are packed alike."""
    layouts = {recognise(group) for group in parts}
    if len(layouts) > 1 or any("order" in group.parts for group in parts):
        return None
    first, *others = parts
    return replace(first, path=path, others=tuple(others))


def _layer_alone(group: Group) -> Group:
    """The group without parameters that only share its path (a router's own bias of experts)."""
    parts = {role: part for role, part in group.parts.items() if role in OF_A_LAYER}
    return replace(group, parts=parts, stored=group.path)


def _rest(group: Group) -> Group | None:
    parts = {role: part for role, part in group.parts.items() if role not in OF_A_LAYER}
    return replace(group, parts=parts, convention="") if parts else None


def runs(rows: list[int]) -> tuple[Run, ...]:
    """Numbers as few runs of equal steps: [0, 2, 4, 7, 8] -> (0:6:2), (7:9)."""
    found: list[Run] = []
    for row in rows:
        last = found[-1] if found else None
        count = len(range(*last)) if last else 0
        if last is not None and count == 1 and row > last.start:
            found[-1] = Run(last.start, row + 1, row - last.start)
        elif last is not None and count > 1 and row == last.start + count * last.step:
            found[-1] = Run(last.start, row + 1, last.step)
        else:
            found.append(Run(row, row + 1))
    return tuple(found)


# --- placing ---------------------------------------------------------------------------------


def _placing(
    groups: Mapping[str, Group], layers: Mapping[str, _Layer], modules: Mapping[str, Module]
) -> Placing:
    dense = _dense(layers.values())
    gone = {owner for layer in layers.values() for owner in layer.owners - dense}
    placed = {
        path: left
        for path, group in groups.items()
        if (left := _rest(group) if path in gone else group) is not None
    }
    for layer in layers.values():
        if layer.group is not None and not layer.owners & dense:
            add_group(placed, layer.group)
    widths = {path: _width(groups[path], layers, modules) for path in dense}
    return Placing(placed, {path: width for path, width in widths.items() if width is not None})


def _dense(layers: Iterable[_Layer]) -> frozenset[str]:
    """Groups that cannot stay packed, and those that share a layer with one."""
    listed = list(layers)
    dense: frozenset[str] = frozenset()
    while True:
        more = [layer.owners for layer in listed if layer.group is None or layer.owners & dense]
        grown = frozenset[str]().union(*more)
        if grown == dense:
            return dense
        dense = grown


def _width(group: Group, layers: Mapping[str, _Layer], modules: Mapping[str, Module]) -> int | None:
    """Columns of a group's dense weight: the weights that it feeds, by its rows."""
    fed = sum(
        prod(modules[path].weight) for path, layer in layers.items() if group.path in layer.owners
    )
    shape = mlx_form(group)["weight"].shape
    rows = prod(shape[:-1])
    return fed // rows if rows and fed % rows == 0 else None
