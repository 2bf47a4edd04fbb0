"""Moved declarations give the same logits or one named error; `run.py` counts many more."""

from __future__ import annotations

from itertools import pairwise

import counts
import law
import mlx.core as mx
import pytest
from bases import Base, bases, llama, reference
from counts import generated
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from law import BROKEN, IDENTICAL, Outcome, alone, check, kinds, together_with
from mutation import LOADS, STAYS, Mutation, fails, together

from mlxpipe.errors import Origin, PlanError

BASES = pytest.mark.parametrize("base", bases(), ids=repr)
SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much]

ALONE = [
    pytest.param(base, kind, id=f"{base}-{number}-{kind.__name__}")
    for base in bases()
    if base.name not in ("qwen3.5-moe", "ollama")  # fifty modules each: slower, and no other kinds
    for number, kind in enumerate(kinds(base))
]


@BASES
@settings(max_examples=16, suppress_health_check=SLOW)
@given(data=st.data())
def test_up_to_three_mutations_plan_the_same_or_are_refused(base, data):
    mutations = data.draw(together_with(base))
    outcome = check(base, mutations, logits=False)
    assert outcome.result != BROKEN, outcome.detail


@BASES
@settings(max_examples=5, suppress_health_check=SLOW)
@given(data=st.data())
def test_up_to_three_mutations_give_the_same_logits_or_are_refused(base, data):
    mutations = data.draw(together_with(base))
    outcome = check(base, mutations, logits=True)
    assert outcome.result != BROKEN, outcome.detail


@pytest.mark.parametrize(("base", "kind"), ALONE)
def test_each_kind_alone_leads_to_what_it_must(base, kind):
    for mutations, outcome in generated(base, alone(base, kind), 3, 0, logits=False):
        assert outcome.result != BROKEN, f"{mutations}\n{outcome.detail}"


# --- the law can be broken -------------------------------------------------------------------


def unchanged(expected: object = LOADS) -> tuple[Base, tuple[Mutation, ...]]:
    return llama(), (Mutation("none", "", expected, llama().declarations),)


def test_nothing_changed_is_identical():
    base, mutations = unchanged()
    assert check(base, mutations, logits=True) == Outcome(IDENTICAL)


def test_other_logits_break_it(monkeypatch):
    monkeypatch.setattr(law, "answer", lambda loaded: reference(llama()).logits + 1e-6)
    base, mutations = unchanged()
    assert check(base, mutations, logits=True) == Outcome(BROKEN, "OTHER LOGITS")


def test_another_plan_breaks_it(monkeypatch):
    other = reference(bases()[1]).plan
    monkeypatch.setattr(law, "make_plan", lambda loaded: other)
    base, mutations = unchanged()
    outcome = check(base, mutations, logits=False)
    assert (outcome.result, outcome.detail[:12]) == (BROKEN, "another plan")


def test_loading_breaks_it_where_an_error_is_due():
    base, mutations = unchanged(fails("contradiction"))
    assert "an error was expected" in check(base, mutations, logits=True).detail


HERE = Origin("./config.json", 3, 2, "/quantization/lm_head")

BREAKING = {
    "a traceback": (KeyError("bits"), LOADS, "KeyError: 'bits'"),
    "an error that should not be": (PlanError("x", "y", origin=HERE), STAYS, "same logits were"),
    "another error": (PlanError("x", "y", origin=HERE), fails("z"), "x, and z was expected"),
    "another entry": (PlanError("x", "y", origin=HERE), fails("x", names="gate"), "not name gate"),
    "no origin": (PlanError("x", "y"), fails("x"), "x has no origin"),
    "a file of nobody's": (PlanError("x", "y", origin=Origin("z")), fails("x"), "no place: z"),
    "a document alone": (PlanError("x", "y", origin=Origin("config.json")), fails("x"), "no place"),
}


@pytest.mark.parametrize(("error", "expected", "words"), BREAKING.values(), ids=BREAKING)
def test_what_breaks_it_is_told(monkeypatch, error, expected, words):
    def refuse(loaded):
        raise error

    monkeypatch.setattr(law, "answer", refuse)
    base, mutations = unchanged(expected)
    outcome = check(base, mutations, logits=True)
    assert outcome.result == BROKEN
    assert words in outcome.detail


def test_the_right_error_is_its_code(monkeypatch):
    def refuse(loaded):
        raise PlanError("x", "y", origin=HERE)

    monkeypatch.setattr(law, "answer", refuse)
    base, mutations = unchanged(fails("x", names="lm_head"))
    assert check(base, mutations, logits=True) == Outcome("x")


def test_only_what_cannot_interfere_keeps_its_expectation():
    def made(expected):
        return Mutation("", "", expected, llama().declarations)

    wrong = fails("contradiction", names="lm_head")
    assert together((made(STAYS), made(STAYS))) == STAYS
    assert together((made(STAYS), made(wrong), made(STAYS))) == wrong
    assert together((made(STAYS), made(LOADS))) == LOADS
    assert together((made(wrong), made(LOADS))).codes == frozenset()


def test_the_references_are_of_different_models():
    answers = [reference(base).logits for base in bases()]
    assert not any(mx.array_equal(one, other) for one, other in pairwise(answers))


# --- the command -----------------------------------------------------------------------------


def test_the_command_counts_every_kind(capsys):
    assert counts.main(["llama", "--examples", "60"]) == 0
    output = capsys.readouterr().out
    for row in ("other prefix", "unknown mode", "stray shard", "two at once", "all"):
        assert f"\n{row} " in output
    assert "unknown-scheme" in output


def test_the_command_shows_what_breaks_the_law(monkeypatch, capsys):
    monkeypatch.setattr(law, "answer", lambda loaded: reference(llama()).logits + 1)
    assert counts.main(["llama", "--examples", "60"]) == 1
    assert "OTHER LOGITS" in capsys.readouterr().out
