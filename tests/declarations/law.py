"""The law: the same logits bit for bit, or one named error with its origin; nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import foreign_mutations
import mlx.core as mx
import mlx_mutations
import shard_mutations
import store_mutations
from bases import Base, answer, reference
from hypothesis import reject
from hypothesis import strategies as st
from mutation import Draw, Expectation, Kind, Must, Mutation, together

from mlxpipe import make_plan
from mlxpipe.errors import Diagnostic, MlxpipeError, Origin
from mlxpipe.naming.names import core
from mlxpipe.plan.plan import Plan
from mlxpipe.spec import LoadedSpec

IDENTICAL = "identical"
BROKEN = "BROKEN"

KINDS: Mapping[str, tuple[Kind, ...]] = {
    producer: (*kinds, *shard_mutations.KINDS)
    for producer, kinds in foreign_mutations.KINDS.items()
} | {
    "mlx": (*mlx_mutations.KINDS, *shard_mutations.KINDS),
    "ollama": (*mlx_mutations.KINDS, *store_mutations.KINDS, *shard_mutations.KINDS),
}


def kinds(base: Base) -> tuple[Kind, ...]:
    """Every kind of mutation that a base may have, some of which apply to no part of it."""
    return KINDS[base.producer]


@dataclass(frozen=True)
class Outcome:
    """What came of a mutated checkpoint.

    Attributes:
        result: `identical`, the code of the error, or `BROKEN`.
        detail: What is wrong with it; "" where all is as it must be.
    """

    result: str
    detail: str = ""


def check(base: Base, mutations: tuple[Mutation, ...], *, logits: bool) -> Outcome:
    """Load a mutated checkpoint, or only plan it, and hold the outcome against the law."""
    with base.on_disk(mutations[-1].after) as loaded:
        try:
            fault = (_logits if logits else _decisions)(base, loaded)
        except MlxpipeError as error:
            return _refused(error, base, mutations)
        except Exception as error:
            return Outcome(BROKEN, f"{type(error).__name__}: {error}")
    if not fault and together(mutations).must is Must.FAIL:
        fault = "it loads, and an error was expected"
    return Outcome(BROKEN if fault else IDENTICAL, fault)


def _logits(base: Base, loaded: LoadedSpec) -> str:
    """What is wrong with the logits, "" where they are the same."""
    same = mx.array_equal(answer(loaded), reference(base).logits)
    return "" if same else "OTHER LOGITS"


def _decisions(base: Base, loaded: LoadedSpec) -> str:
    """What a plan decides differently, "" where the graph would be the same."""
    ours, theirs = _decided(make_plan(loaded).require_sound()), _decided(reference(base).plan)
    differing = [path for path in theirs if ours.get(path) != theirs[path]]
    if ours.keys() != theirs.keys() or differing:
        return f"another plan: {differing[:3] or sorted(ours.keys() ^ theirs.keys())[:3]}"
    return ""


def _decided(plan: Plan) -> dict[str, object]:
    """All of a plan that the graph reads."""
    modules: dict[str, object] = {
        path: (each.scheme, each.landing, each.layout, each.variant, each.grade, each.tensors)
        for path, each in plan.modules.items()
    }
    return modules | {f"parameter {name}": each for name, each in plan.parameters.items()}


def _refused(error: MlxpipeError, base: Base, mutations: tuple[Mutation, ...]) -> Outcome:
    expected = together(mutations)
    fault = _misplaced(error, base, mutations) or _unexpected(error, expected)
    text = f"{fault}\n{error}" if fault else ""
    return Outcome(BROKEN if fault else error.code, text)


def _misplaced(error: MlxpipeError, base: Base, mutations: tuple[Mutation, ...]) -> str:
    """Why an error's findings do not say where they are, "" where they do."""
    after = mutations[-1].after
    files = {*after.documents, *after.shards, *after.stamps, "model.safetensors"}
    for item in error.diagnostics:
        if not item.code or not item.message:
            return "an error without a name"
        if item.origin is None:
            return f"{item.code} has no origin"
        if not _is_a_place(item.origin, files):
            return f"{item.code} has an origin that is no place: {item.origin}"
    return ""


#: What is wrong with a directory as a whole has the directory as its place.
WHOLE = frozenset({".", "tiny"})


def _is_a_place(origin: Origin, files: set[str]) -> bool:
    if origin.file in WHOLE:
        return True
    known = any(name in origin.file for name in files)
    return known and bool(origin.pointer or origin.line or not origin.file.endswith(".json"))


def _unexpected(error: MlxpipeError, expected: Expectation) -> str:
    if expected.must in (Must.STAY, Must.LOAD):
        return f"{error.code}, and the same logits were expected"
    if expected.must is Must.FAIL and error.code not in expected.codes:
        return f"{error.code}, and {' or '.join(sorted(expected.codes))} was expected"
    if expected.must is Must.FAIL and not _named(error.diagnostics[0], expected.names):
        return f"{error.code} does not name {expected.names}"
    return ""


def _named(item: Diagnostic, name: str) -> bool:
    pointer = item.origin.pointer.replace("/", ".") if item.origin else ""
    file = item.origin.file if item.origin else ""
    return any(name in text for text in (item.message, core(item.module), pointer, file))


Mutations = tuple[Mutation, ...]


def alone(base: Base, kind: Kind) -> st.SearchStrategy[Mutations]:
    """One mutation of a kind."""

    @st.composite
    def build(draw: Draw) -> Mutations:
        mutation = kind(draw, base, base.declarations)
        return (mutation,) if mutation is not None else reject()

    return build()


def together_with(base: Base, most: int = 3) -> st.SearchStrategy[Mutations]:
    """One to `most` mutations of any kind, each made of what the one before left."""

    @st.composite
    def build(draw: Draw) -> Mutations:
        made: list[Mutation] = []
        for kind in draw(st.lists(st.sampled_from(kinds(base)), min_size=1, max_size=most)):
            mutation = kind(draw, base, made[-1].after if made else base.declarations)
            made += [mutation] if mutation is not None else []
        return tuple(made) if made else reject()

    return build()
