"""Expectations of plans and metrics: what passes, what is missed, and how a spec may be wrong."""

from __future__ import annotations

from typing import get_args

import pytest
from builders import QWEN
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe import make_plan
from mlxpipe.errors import UsageError
from mlxpipe.execution.expectations import FITS, PLAN_FACTS, check_plan, check_tasks
from mlxpipe.execution.record import TaskRecord
from mlxpipe.spec import parse_spec
from mlxpipe.spec.expect import BOUNDS, PlanFact
from mlxpipe.tasks import MODULES

HEAD = f"version: 1\nsource: {{path: {QWEN}}}\n"
TASKS = "tasks:\n  - {id: ppl, type: perplexity, data: text.txt}\n"


def spec(*expectations: str, head: str = HEAD + TASKS):
    return parse_spec(head + "expect:\n" + "".join(f"  - {each}\n" for each in expectations))


@pytest.fixture(scope="module")
def plan():
    return make_plan(QWEN)


PLANS = [
    ("{plan: conflicts, max: 0}", True, "0"),
    ("{plan: modules, equals: 53}", True, "53"),
    ("{plan: modules, max: 10}", False, "53"),
    ("{plan: bits_per_weight, min: 4, max: 5.5}", True, "4.6"),
    ("{plan: bits_per_weight, max: 4}", False, "4.6"),
    ("{plan: lossy, equals: 0}", True, "0"),
    ("{module: '*.mlp.gate', mode: affine, bits: 8, group_size: 64}", True, "affine 8-bit g64"),
    ("{module: '*.mlp.gate', bits: 4}", False, "layers.0.mlp.gate is affine 8-bit g64"),
    ("{module: '*.mlp.gate', dense: true}", False, "affine"),
    ("{module: '*.mlp.gate', dense: false, grade: exact_codes}", True, "exact"),
    ("{module: lm_head, mode: affine, bits: 6}", True, "6-bit"),
    ("{module: 're:in_proj_a$', dense: true}", True, "dense"),
    ("{module: '*.gatee', dense: true}", False, "no module matches"),
]


@pytest.mark.parametrize(("expectation", "passed", "found"), PLANS)
def test_of_a_plan(plan, expectation, passed, found):
    (checked,) = check_plan(spec(expectation), plan)
    assert checked.passed is passed
    assert found in checked.found
    assert checked.origin.line == 6


def test_modules_that_miss_are_named_and_counted(plan):
    (checked,) = check_plan(spec("{module: '*', dense: true}"), plan)
    lines = checked.found.splitlines()
    assert len(lines) == 6
    assert lines[-1].startswith("and ")
    assert "found" in checked.diagnostic().render()


@given(
    value=st.one_of(st.integers(-5, 5), st.floats(-5, 5)),
    bounds=st.dictionaries(st.sampled_from(BOUNDS), st.integers(-5, 5), min_size=1),
)
def test_of_a_metric(value, bounds):
    text = ", ".join(f"{key}: {bound}" for key, bound in bounds.items())
    loaded = spec(f"{{task: ppl, metric: perplexity, {text}}}")
    (checked,) = check_tasks(
        loaded, [TaskRecord("ppl", "perplexity", metrics={"perplexity": value})]
    )
    expected = bounds.get("min", -9) <= value <= bounds.get("max", 9)
    assert checked.passed is (expected and value == bounds.get("equals", value))


def test_a_metric_that_was_not_measured_is_missed():
    loaded = spec("{task: ppl, metric: perplexity, min: 0}")
    (checked,) = check_tasks(loaded, [TaskRecord("ppl", "perplexity", status="failed")])
    assert not checked.passed
    assert "not measured" in checked.found


WRONG = [
    ("{task: pl, metric: perplexity, max: 1}", "unknown-value", "did you mean 'ppl'?"),
    ("{task: ppl, metric: perplexty, max: 1}", "unknown-value", "did you mean 'perplexity'?"),
    ("{task: ppl, max: 1}", "missing-key", "metric"),
    ("{task: ppl, metric: perplexity}", "missing-key", "min"),
    ("{plan: conflict, max: 1}", "unknown-value", "conflicts"),
    ("{plan: conflicts}", "missing-key", "max"),
    ("{plan: conflicts, max: '1'}", "wrong-type", "a number"),
    ("{plan: conflicts, max: .nan}", "", "plan"),
    ("{plan: conflicts, max: 1, bits: 4}", "exclusive-keys", "belongs to 'module'"),
    ("{module: '*', max: 4}", "missing-key", "mode"),
    ("{module: '*', bits: 4, max: 4}", "exclusive-keys", "has none"),
    ("{module: 're:(', bits: 4}", "bad-pattern", "regular expression"),
    ("{plan: conflicts, task: ppl, max: 1}", "exclusive-keys", "exactly one"),
    ("{max: 1}", "missing-key", "task"),
]


@pytest.mark.parametrize(("expectation", "code", "says"), WRONG)
def test_a_wrong_expectation_is_refused_at_its_line(expectation, code, says):
    with pytest.raises(UsageError) as caught:
        spec(expectation)
    assert code in caught.value.code
    assert caught.value.diagnostics[0].origin.line == 6
    assert says in str(caught.value)


def test_the_tables_are_complete():
    assert set(get_args(PlanFact)) == set(PLAN_FACTS)
    assert set(BOUNDS) == set(FITS)


def test_every_task_says_its_metrics():
    """`execution` relies on it, or an hour is spent before a misspelt metric is noticed."""
    from mlxpipe.spec.tasks import Task

    kinds = {get_args(kind.model_fields["type"].annotation)[0]: kind for kind in get_args(Task)}
    assert kinds.keys() == MODULES.keys()
    silent = {name for name, kind in kinds.items() if kind.metrics == ()}
    assert silent == {"logits"}
