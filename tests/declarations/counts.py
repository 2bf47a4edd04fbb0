"""The counts of the law: which mutated checkpoints gave the same logits, and which what error."""

from __future__ import annotations

import argparse
from collections import Counter
from contextlib import suppress
from zlib import crc32

from bases import Base, bases
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from law import BROKEN, IDENTICAL, Mutations, Outcome, alone, check, kinds, together_with

Example = tuple[Mutations, Outcome]

Counts = dict[str, Counter[str]]
WORDS = {2: "two at once", 3: "three at once"}


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    chosen = [base for base in bases() if not options.names or base.name in options.names]
    rows: Counts = {}
    faults = 0
    for base in chosen:
        found = examine(base, options.examples, options.seed)
        outcomes = Counter(outcome.result for _, outcome in found)
        print(f"{base.name:<26} {spell(outcomes)}", flush=True)
        for mutations, outcome in found:
            rows.setdefault(row_of(mutations), Counter())[outcome.result] += 1
            if outcome.result == BROKEN:
                faults += 1
                print(describe(mutations, outcome), flush=True)
    summarise(rows)
    return int(faults > 0)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="bases; all of them by default")
    parser.add_argument("--examples", type=int, default=200, help="mutations per base")
    parser.add_argument("--seed", type=int, default=0, help="of the generator")
    return parser.parse_args(arguments)


def examine(base: Base, examples: int, number: int) -> list[Example]:
    """Generated mutations of a base with their outcomes: half of them one alone, of each kind."""
    own = kinds(base)
    each = max(1, examples // (2 * len(own)))
    first = crc32(f"{number} {base.name}".encode())  # else all bases and kinds would draw alike
    single = [
        example
        for place, kind in enumerate(own, 1)
        for example in generated(base, alone(base, kind), each, first + place)
    ]
    rest = examples - len(single)
    return single + generated(base, together_with(base), rest, first)


def generated(
    base: Base,
    strategy: st.SearchStrategy[Mutations],
    examples: int,
    number: int,
    *,
    logits: bool = True,
) -> list[Example]:
    """Mutations drawn from a strategy, each with its outcome; none where it draws none."""
    found: list[Example] = []

    @seed(number)
    @settings(
        max_examples=max(1, examples),
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(mutations: Mutations) -> None:
        found.append((mutations, check(base, mutations, logits=logits)))

    with suppress(Unsatisfiable):
        run()
    return found


def row_of(mutations: Mutations) -> str:
    """The table's row: the kind of a mutation that is alone, else how many there are."""
    return mutations[0].kind if len(mutations) == 1 else WORDS[len(mutations)]


def spell(outcomes: Counter[str]) -> str:
    """Counts in a line, the same logits first."""
    order = sorted(outcomes, key=lambda name: (name != IDENTICAL, -outcomes[name], name))
    return f"{outcomes.total():>5}: " + ", ".join(f"{name} {outcomes[name]}" for name in order)


def describe(mutations: Mutations, outcome: Outcome) -> str:
    lines = [f"  {each.kind}: {each.detail}" for each in mutations]
    lines += [f"    {line}" for line in outcome.detail.splitlines()]
    return "\n".join(lines)


def summarise(rows: Counts) -> None:
    print()
    singles = sorted(name for name in rows if name not in WORDS.values())
    for name in (*singles, *(word for word in WORDS.values() if word in rows)):
        print(f"{name:<28} {spell(rows[name])}")
    total = sum(rows.values(), Counter())
    print(f"{'all':<28} {spell(total)}")
