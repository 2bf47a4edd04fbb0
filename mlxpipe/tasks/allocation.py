"""Which scheme each module gets, so that a model has a wanted size for the least divergence.

Divergences of single modules are taken to add up. Each unit has its choices (bytes, divergence); of
these only the lower convex hull can be best for any price of a byte, and along it each further byte
saved costs more than the one before. So the cheapest way to a size is to take the steps of all
hulls in the order of their price (the greedy solution of the relaxed knapsack: Dantzig, "Discrete-
Variable Extremum Problems", 1957).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlxpipe.naming.names import matches
from mlxpipe.quant.modes import Scheme


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to have a unit.

    Attributes:
        scheme: What its modules get, None where they stay as they are.
        nbytes: Bytes that it then takes.
        divergence: What that costs, nats per token.
    """

    scheme: Scheme | None
    nbytes: int
    divergence: float


def allocate(
    choices: Mapping[str, Sequence[Choice]], nbytes: int, wanted: float
) -> dict[str, Choice]:
    """A choice for each unit.

    Args:
        choices: Unit -> its choices, the first one as it is.
        nbytes: What the model takes where all are as they are.
        wanted: What it shall take at most.

    Returns:
        Unit -> choice; the smallest that there is, where `wanted` is out of reach.
    """
    taken = {unit: listed[0] for unit, listed in choices.items()}
    steps = [(step, unit) for unit, listed in choices.items() for step in _steps(listed)]
    for (_, choice), unit in sorted(steps, key=lambda step: (step[0][0], step[1])):
        if nbytes <= wanted:
            break
        nbytes -= taken[unit].nbytes - choice.nbytes
        taken[unit] = choice
    return taken


def give_back(
    choices: Mapping[str, Sequence[Choice]], taken: Mapping[str, Choice], room: float
) -> dict[str, Choice]:
    """Spend the bytes that the last step saved beyond what was wanted.

    Whatever brings most per byte and still fits goes first; nothing costs more afterwards.

    Args:
        choices: As `allocate` had them.
        taken: What it gave.
        room: Bytes that may be spent.
    """
    better = dict(taken)
    while fitting := [
        (-_price(each, better[unit]), unit, index)
        for unit, listed in choices.items()
        for index, each in enumerate(listed)
        if 0 < each.nbytes - better[unit].nbytes <= room
        and each.divergence < better[unit].divergence
    ]:
        _, unit, index = min(fitting)
        room -= choices[unit][index].nbytes - better[unit].nbytes
        better[unit] = choices[unit][index]
    return better


def smallest(choices: Mapping[str, Sequence[Choice]], nbytes: int) -> int:
    """The fewest bytes that the model can take."""
    return nbytes - sum(
        listed[0].nbytes - min(choice.nbytes for choice in listed) for listed in choices.values()
    )


def _steps(choices: Sequence[Choice]) -> Iterator[tuple[float, Choice]]:
    """The steps down a unit's lower convex hull, with the price of a byte saved, which grows."""
    at = choices[0]
    while smaller := [each for each in choices if each.nbytes < at.nbytes]:
        price, _, index = min(
            (_price(at, each), each.nbytes, index) for index, each in enumerate(smaller)
        )
        step = smaller[index]
        yield price, step
        at = step


def _price(before: Choice, after: Choice) -> float:
    """Nats for each byte saved."""
    return (after.divergence - before.divergence) / (before.nbytes - after.nbytes)


# --- as rules --------------------------------------------------------------------------------


def place(path: str) -> str:
    """A path's place in every layer: `model.layers.*.self_attn.q_proj`."""
    return ".".join("*" if segment.isdigit() else segment for segment in path.split("."))


def as_rules(schemes: Mapping[str, Scheme], paths: Iterable[str]) -> list[dict[str, Any]]:
    """Rules that give these modules their schemes, and match no others.

    One rule serves all modules of a place that share a scheme; where only some do, each is named.
    """
    known = list(paths)
    rules = []
    for path, scheme in schemes.items():
        pattern = place(path)
        meant = [each for each in known if matches(pattern, each)]
        shared = all(schemes.get(each) == scheme for each in meant)
        rules.append((pattern if shared else path, scheme))
    return [
        {"match": pattern, "mode": each.mode, "bits": each.bits, "group_size": each.group_size}
        for pattern, each in dict.fromkeys(rules)
    ]
