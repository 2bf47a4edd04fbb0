"""Claims on some experts of a stacked layer, which has one scheme for all of them.

Producers declare experts one by one, by wildcards and by regexes. Each expert gets the claims that
cover it; if the strongest one is the same scheme for every expert, the layer has that scheme, and
else the declaration and the layer cannot both be: an error says which experts differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby

from mlxpipe.errors import Diagnostic
from mlxpipe.naming.names import matches
from mlxpipe.quant.claims import Claim, Reach
from mlxpipe.quant.merge import rank
from mlxpipe.quant.modes import Scheme

#: A claim, and the experts that it covers; None: all.
Covering = tuple[Claim, frozenset[int] | None]

#: No expert has this number: a pattern that fits it fits whatever the number is.
BEYOND = 987654321

#: Signs by which a pattern may mean several numbers.
SEVERAL = frozenset("[?(|{+\\")


def covered(pattern: str, matcher: str, stems: Sequence[str]) -> frozenset[int] | None:
    """The experts that a pattern fits; None for all.

    Args:
        pattern: As the claim spells it.
        matcher: How it is matched.
        stems: The experts' paths in the checkpoint, by number.
    """
    first = matches(pattern, stems[0], matcher)
    if first == matches(pattern, numbered(stems[0], BEYOND), matcher):
        if first:
            return None
        numbers: Iterable[int] = {int(digits) for digits in re.findall(r"\d+", pattern)}
        if "expert" in pattern and not SEVERAL.isdisjoint(pattern):
            numbers = range(len(stems))
    else:
        numbers = range(len(stems))
    fitting = {
        each for each in numbers if each < len(stems) and matches(pattern, stems[each], matcher)
    }
    return None if len(fitting) == len(stems) else frozenset(fitting)


@lru_cache(maxsize=4096)
def numbered(stem: str, number: int) -> str:
    """The path of another expert: the last segment that is a number replaced."""
    segments = stem.split(".")
    place = max((i for i, each in enumerate(segments) if each.isdecimal()), default=None)
    if place is not None:
        segments[place] = str(number)
    return ".".join(segments)


def unanimous(
    path: str,
    claims: Sequence[Covering],
    count: int,
    precedence: Sequence[str],
    problems: list[Diagnostic],
) -> tuple[Claim, ...]:
    """The claims on a layer of `count` experts, as claims on all of them.

    Args:
        path: The layer's module path.
        claims: In the order of their sources.
        count: How many experts there are.
        precedence: Names of the sources, the most trusted first.
        problems: Where it is told that experts differ.
    """
    if all(cover is None for _, cover in claims):
        return tuple(claim for claim, _ in claims)
    by_expert: list[list[int]] = [[] for _ in range(count)]
    for number, (_, cover) in enumerate(claims):
        for expert in range(count) if cover is None else cover:
            by_expert[expert].append(number)
    known: dict[tuple[object, ...], Claim | None] = {}
    winners = []
    for numbers in by_expert:
        applied = [claims[number][0] for number in numbers]
        key = tuple((each.source, each.scheme, each.reach is Reach.GLOBAL) for each in applied)
        if key not in known:
            known[key] = next(iter(rank(applied, precedence)), None)
        winners.append(known[key])
    if len({_said(winner) for winner in winners}) > 1:
        problems.append(_divided(path, winners))
        # One error is enough: what speaks of some experts is no longer asked what it fits.
        return tuple(claim for claim, cover in claims if cover is None)
    return tuple(claims[number][0] for number in by_expert[0])


def _said(winner: Claim | None) -> Scheme | str | None:
    return winner.scheme if winner else "nothing"


def _divided(path: str, winners: Sequence[Claim | None]) -> Diagnostic:
    groups: dict[Scheme | str | None, list[int]] = {}
    for expert, winner in enumerate(winners):
        groups.setdefault(_said(winner), []).append(expert)
    minority = min(groups.values(), key=len)
    blamed = winners[minority[0]]
    told = [_spell(experts, winners[experts[0]]) for experts in groups.values()]
    return Diagnostic(
        "divided-experts",
        f"the experts of '{path}' are declared differently, and a stacked layer has one scheme",
        origin=blamed.origin if blamed else None,
        module=path,
        found="; ".join(told),
        help="declare one scheme for all of them in the spec's quantization.overrides",
    )


def _spell(experts: Sequence[int], winner: Claim | None) -> str:
    """`experts 0-6 and 8: affine 4-bit g64 (config)`."""
    runs = []
    for _, run in groupby(enumerate(experts), key=lambda pair: pair[1] - pair[0]):
        members = [expert for _, expert in run]
        runs.append(str(members[0]) if len(members) == 1 else f"{members[0]}-{members[-1]}")
    what = "expert" if len(experts) == 1 else "experts"
    return f"{what} {', '.join(runs)}: {_words(winner)}"


def _words(winner: Claim | None) -> str:
    if winner is None:
        return "not declared"
    where = f"'{winner.pattern}'" if winner.pattern else "its global"
    return f"{winner} ({winner.source}, {where})"
