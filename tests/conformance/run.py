"""Every architecture of the installed mlx-lm, each in a process of its own.

    python tests/conformance/run.py --all
    python tests/conformance/run.py llama mixtral
    python tests/conformance/run.py --experts --all

With `--experts` every mixture of experts is written under its original's names, one packed linear
per expert, as other producers do (`experts.py`, `families.py`).

Prints each outcome, then the counts with the reasons; exits 1 if mlxpipe differs anywhere, or if
mlx-lm fails where `rows.LIMITS` (`families.FAMILY_LIMITS`) has no reason for it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import experts
from families import FAMILY_LIMITS
from roundtrip import Outcome, Verdict, check_all, recipes_for
from rows import LIMITS, TIED_LIMITS
from tiny import architectures

TIMEOUT = 300.0


@dataclass(frozen=True, slots=True)
class Suite:
    """What is checked.

    Attributes:
        what: What the names are of.
        options: What asks for it on the command line.
        names: All names.
        recipes: Name -> names of its recipes.
        check: Name -> outcomes.
        limits: Name -> why mlx-lm cannot.
    """

    what: str
    options: tuple[str, ...]
    names: Callable[[], Sequence[str]]
    recipes: Callable[[str], Sequence[str]]
    check: Callable[[str], Iterable[Outcome]]
    limits: Mapping[str, str]


ROUND_TRIPS = Suite(
    "architectures",
    (),
    architectures,
    lambda name: [recipe.name for recipe in recipes_for(name)],
    check_all,
    LIMITS,
)
EXPERTS = Suite(
    "families",
    ("--experts",),
    experts.families,
    lambda name: [producer.name for producer in experts.PRODUCERS],
    experts.check_all,
    FAMILY_LIMITS,
)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    suite = EXPERTS if options.experts else ROUND_TRIPS
    if options.one:
        for outcome in suite.check(options.one):
            print(json.dumps(outcome.as_json()), file=sys.__stdout__, flush=True)
        return 0
    outcomes = []
    names = suite.names() if options.all else options.names
    with ThreadPoolExecutor(options.jobs) as pool:
        for number, found in enumerate(pool.map(partial(in_a_process, suite), names), 1):
            outcomes += found
            report(number, len(names), found)
    summarise(suite, outcomes)
    return int(any(is_finding(suite, outcome) for outcome in outcomes))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="architecture modules of mlx-lm")
    parser.add_argument("--all", action="store_true", help="all that mlx-lm has")
    parser.add_argument(
        "--experts", action="store_true", help="experts as their originals name them"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not (options.names or options.all or options.one):
        parser.error("name some architectures, or give --all")
    return options


def in_a_process(suite: Suite, name: str) -> list[Outcome]:
    """An architecture's outcomes; a crash or a time-out is one for each recipe it cost."""
    command = [sys.executable, __file__, *suite.options, "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        output, end = done.stdout, f"the process ended with {done.returncode}"
        end += f": {done.stderr.strip().splitlines()[-1]}" if done.stderr.strip() else ""
    except subprocess.TimeoutExpired as expired:
        output = (expired.stdout or b"").decode()  # bytes, whatever `text` says
        end = f"not done after {TIMEOUT:.0f} seconds"
    found = [Outcome.from_json(json.loads(line)) for line in output.splitlines() if line[:1] == "{"]
    done_recipes = {outcome.recipe for outcome in found}
    lost = (recipe for recipe in suite.recipes(name) if recipe not in done_recipes)
    return [*found, *(Outcome(name, recipe, Verdict.UNFIT, end) for recipe in lost)]


def is_finding(suite: Suite, outcome: Outcome) -> bool:
    """Whether somebody has to look at it."""
    if outcome.verdict is Verdict.LIMIT:
        return outcome.architecture not in suite.limits
    return outcome.verdict is not Verdict.IDENTICAL


def report(number: int, count: int, found: Iterable[Outcome]) -> None:
    for outcome in found:
        words = f"{outcome.verdict.value}: {outcome.detail}"
        place = f"{number}/{count}"
        print(f"{place:>7}  {outcome.architecture:<24} {outcome.recipe:<14} {words}", flush=True)


def summarise(suite: Suite, outcomes: list[Outcome]) -> None:
    print()
    by_name: dict[str, set[Verdict]] = {}
    for outcome in outcomes:
        by_name.setdefault(outcome.architecture, set()).add(outcome.verdict)
    counts = Counter(outcome.verdict for outcome in outcomes)
    for verdict in Verdict:
        names = sum(verdict in verdicts for verdicts in by_name.values())
        print(f"{verdict.value:<16} {counts[verdict]:>4} round trips, {names:>4} architectures")
    whole = sum(verdicts == {Verdict.IDENTICAL} for verdicts in by_name.values())
    print(f"{whole} of {len(by_name)} {suite.what} are identical with every recipe")
    for line in dict.fromkeys(_reasons(suite, outcomes)):
        print(f"  {line}")


def _reasons(suite: Suite, outcomes: Iterable[Outcome]) -> Iterator[str]:
    for outcome in outcomes:
        name, verdict = outcome.architecture, outcome.verdict
        if name in TIED_LIMITS and suite is ROUND_TRIPS:
            yield f"{Verdict.LIMIT.value}: {name} with tied embeddings: {TIED_LIMITS[name]}"
        if verdict is Verdict.LIMIT and name in suite.limits:
            yield f"{verdict.value}: {name}: {suite.limits[name]}"
        elif verdict is not Verdict.IDENTICAL:
            yield f"{verdict.value}: {name}, {outcome.recipe}: {outcome.detail}"


if __name__ == "__main__":
    sys.exit(main())
