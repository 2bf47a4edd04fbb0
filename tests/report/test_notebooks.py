"""What a notebook shows of plans, explanations and runs, and what data frames are made of."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest
from builders import QWEN
from hypothesis import given
from hypothesis import strategies as st

import mlxpipe
from mlxpipe import explain, make_plan, notebook
from mlxpipe.execution.matrix import MatrixRecord
from mlxpipe.execution.record import RunRecord

GATE = "language_model.model.layers.0.mlp.gate"

#: The elements that we make; anything else came out of somebody's text.
OURS = {"p", "b", "table", "thead", "tbody", "tr", "th", "td", "pre"}


class Page(HTMLParser):
    """The elements, attributes and texts of a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.open: list[str] = []
        self.attributes: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.open.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def whole(self) -> str:
        return "\n".join(self.texts)


@pytest.fixture(scope="module")
def plan() -> mlxpipe.Plan:
    return make_plan(QWEN)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    folder = tmp_path_factory.mktemp("run")
    spec = folder / "spec.yaml"
    spec.write_text(
        f"version: 1\nsource: {{path: {QWEN}}}\n"
        "tasks: [{id: raw, type: logits, tokens: [1, 2, 3]}]\n"
        "expect: [{plan: conflicts, max: 0}, {plan: modules, max: 1}]\n",
        encoding="utf-8",
    )
    return mlxpipe.run(spec)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> MatrixRecord:
    folder = tmp_path_factory.mktemp("matrix")
    spec = folder / "spec.yaml"
    spec.write_text(
        f"version: 1\nsource: {{path: {QWEN}}}\nmatrix: {{run.seed: [1, 2]}}\n"
        "tasks: [{id: raw, type: logits, tokens: [1, 2, 3]}]\n",
        encoding="utf-8",
    )
    return mlxpipe.run_matrix(spec)


def test_a_plan_is_a_table_of_its_schemes(plan: mlxpipe.Plan) -> None:
    page = Page(plan._repr_html_())

    assert page.elements.count("table") == 1
    assert page.elements.count("tr") == 1 + len(plan.totals.schemes)
    for scheme, modules in plan.totals.schemes.items():
        assert scheme in page.texts
        assert f"{modules:,}" in page.texts
    assert f"conflicts {len(plan.conflicts)}" in page.whole


def test_a_plan_that_cannot_run_says_why() -> None:
    settings = {"quantization.overrides": [{"match": "*.mlp.gate", "mode": "nvfp4"}]}
    plan = make_plan(QWEN, set=settings)

    page = Page(plan._repr_html_())

    assert plan.problems
    assert "contradiction" in page.texts
    assert f"error[{plan.problems[0].code}]" in page.whole


def test_rows_are_the_modules_with_equal_keys(plan: mlxpipe.Plan) -> None:
    rows = plan.to_rows()

    assert [row["module"] for row in rows] == list(plan.modules)
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    gate = next(row for row in rows if row["module"] == GATE)
    assert (gate["mode"], gate["bits"], gate["group_size"]) == ("affine", 8, 64)
    assert gate["grade"] == "exact"
    known = [row for row in rows if row["weights"]]
    assert sum(row["bytes"] for row in known) == plan.totals.weight_bytes


def test_an_explanation_has_the_claims_and_the_arithmetic(plan: mlxpipe.Plan) -> None:
    told = explain(plan, GATE)
    page = Page(told._repr_html_())

    assert GATE in page.whole
    assert page.elements.count("tr") == 1 + len(told.as_json()["claims"])
    for claim in told.as_json()["claims"]:
        assert claim["origin"] in page.texts
    assert "so it is affine 8-bit g64" in page.whole


def test_a_parameter_without_a_scheme_is_explained_too(plan: mlxpipe.Plan) -> None:
    name = next(name for name in plan.parameters if name.endswith("norm.weight"))

    page = Page(explain(plan, name)._repr_html_())

    assert name in page.whole
    assert "table" not in page.elements


def test_a_run_is_a_table_of_its_tasks_and_expectations(record: RunRecord) -> None:
    page = Page(record._repr_html_())

    assert page.elements.count("tr") == 2
    assert {"raw", "logits", "done"} <= set(page.texts)
    assert "ok     plan.conflicts: 0" in page.whole
    assert "missed plan.modules" in page.whole
    assert record.to_rows()[0]["status"] == "done"


def test_a_task_s_row_has_its_metrics_beside_its_state(record: RunRecord) -> None:
    (task,) = record.tasks
    (row,) = record.to_rows()

    assert task.metrics
    assert {key: row[key] for key in task.metrics} == task.metrics


def test_a_matrix_has_a_row_for_each_combination(matrix: MatrixRecord) -> None:
    page = Page(matrix._repr_html_())
    rows = matrix.to_rows()

    assert [row["run.seed"] for row in rows] == ["1", "2"]
    assert page.elements.count("tr") == 3
    assert {row["label"] for row in rows} <= set(page.texts)
    assert page.elements.count("th") == len(dict.fromkeys(key for row in rows for key in row))


# --- text of others --------------------------------------------------------------------------


@given(st.text(st.characters(exclude_characters="\r\0")))
def test_no_text_becomes_markup(text: str) -> None:
    html = (
        notebook.paragraph(text, bold=text or "-")
        + notebook.table([text], [[text], [None], [1.5]])
        + notebook.preformatted([text])
    )

    page = Page(html)

    assert set(page.elements) <= OURS
    assert page.attributes == {"style"}
    assert page.open == []
    html.encode("utf-8")
    assert text.encode("utf-8", "backslashreplace").decode("utf-8") in "".join(page.texts)


def test_a_checkpoint_s_names_are_escaped(plan: mlxpipe.Plan, record: RunRecord) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    module = replace(plan.modules[GATE], path=attack, group=attack)
    named = replace(plan, name=attack, source=attack, modules={attack: module})
    task = replace(record.tasks[0], id=attack, metrics={attack: attack}, error=attack)
    ran = replace(record, name=attack, tasks=[task])
    told = replace(explain(plan, GATE), path=attack, module=module)

    for shown in (named, told, ran):
        page = Page(shown._repr_html_())
        assert set(page.elements) <= OURS
        assert attack in page.whole
