"""The page about runs: whole, self-contained, true, and safe whatever a model wrote."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from builders import QWEN

from mlxpipe import make_plan
from mlxpipe.cli import main
from mlxpipe.errors import UsageError
from mlxpipe.report.page import RunView, open_runs, render, render_page

SCRIPT = "<script>alert(1)</script> $x_1$ \x1b[31m"
SHOWN = SCRIPT.replace("\x1b", "\\x1b")
VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects tags and text, and refuses what does not close."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.open, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def plan():
    return make_plan(QWEN).as_json()


def view(plan, label="one", perplexity=3.5, **outputs):
    task = {
        "id": "ppl",
        "type": "perplexity",
        "status": "done",
        "metrics": {"perplexity": perplexity, "tokens": 9},
        "outputs": {},
        "seconds": 1.0,
    }
    record = {
        "name": "spec",
        "started": "2026-01-01T00:00:00+00:00",
        "platform": "Linux",
        "numerics": {"dtype": "float32", "device": "cpu"},
        "versions": {"mlx": "1"},
        "run_dir": "runs/spec/1",
        "seconds": 2.0,
        "tasks": [task],
        "expectations": [
            {"name": SCRIPT, "passed": False, "found": "4", "expected": "max 3", "origin": "s:1"}
        ],
        "exit_code": 1,
    }
    return RunView(label, record, plan, {("ppl", name): value for name, value in outputs.items()})


def row(**values):
    return {"path": "model.layers.0", "own_error": 0.1, "accumulated_error": 0.2, **values}


def test_a_page_holds_everything_and_fetches_nothing(plan):
    modules = [row(scheme="nvfp4 4-bit g16", reference_scheme="dense")]
    texts = [{"prompt": SCRIPT, "text": SCRIPT}]
    views = [
        view(plan, label, perplexity, layers=[row(), row()], modules=modules, completions=texts)
        for label, perplexity in (("one", 3.5), ("<two> $x_1$", 4.25))
    ]
    page = Page(render_page(views))
    assert "script" not in page.tags
    assert page.tags.count("svg") == 4  # size and quality, layer errors, two models
    assert [link for link in page.links if not link.startswith("#")] == []
    words = "".join(page.words)
    for said in (
        "Size against quality",
        "4.25",
        "missed",
        "max 3",
        "affine 8-bit g64",
        "<two> $x_1$",
        SHOWN,
    ):
        assert said in words


def test_equal_runs_give_equal_pages(plan):
    assert render_page([view(plan)]) == render_page([view(copy.deepcopy(plan))])


def test_what_was_not_measured_is_not_drawn(plan):
    page = Page(render_page([view(plan)]))
    words = "".join(page.words)
    for absent in ("Size against quality", "Where it parts", "Speed", "Texts"):
        assert absent not in words
    assert page.tags.count("svg") == 1


def test_a_plan_without_layers_or_sizes(plan):
    bare = {**plan, "modules": {}, "totals": {**plan["totals"], "bits_per_weight": None}}
    assert "svg" not in Page(render_page([view(bare), view(bare, "two")])).tags


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = tmp_path / "spec.yaml"
    task = "{type: generate, prompt: [a, '<b>'], max_tokens: 3, chat: false}"
    spec.write_text(
        f"version: 1\nsource: {{path: {QWEN}}}\ntasks: [{task}]\noutputs: {{reports: [html]}}\n"
    )
    assert main(["run", str(spec), "-q"]) == 0
    return next(tmp_path.glob("runs/spec/*"))


def test_a_run_leaves_its_page_and_one_can_be_made_later(run, tmp_path, capsys):
    page = run / "reports" / "report.html"
    assert "&lt;b&gt;" in page.read_text(encoding="utf-8")
    assert main(["report", str(run), "-o", "again.html"]) == 0
    assert Path("again.html").read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    summary = tmp_path / "matrix-1.json"
    summary.write_text(json.dumps({"runs": [{"run_dir": str(run)}, {"run_dir": str(run)}]}))
    one, other = open_runs([summary])
    assert (one.record, one.named("completions")) == (other.record, other.named("completions"))
    assert len(one.named("completions")["generate"]) == 2


def test_a_moved_run_keeps_its_texts(run, tmp_path):
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    (found,) = open_runs([moved])
    assert [each["prompt"] for each in found.named("completions")["generate"]] == ["a", "<b>"]


def test_a_matrix_leaves_one_page_about_all_of_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("It is a truth universally acknowledged. " * 9)
    task = "{id: ppl, type: perplexity, data: text.txt, context: 32, windows: 1}"
    Path("spec.yaml").write_text(
        f"version: 1\nsource: {{path: {QWEN}}}\ntasks: [{task}]\n"
        "matrix: {quantize: {as-it-is: [], dense: [{match: '*', dense: true}]}}\n"
        "outputs: {reports: [html, junit]}\n"
    )
    assert main(["run", "spec.yaml", "-q"]) == 0
    (page,) = tmp_path.glob("runs/spec/matrix-*.html")
    text = page.read_text(encoding="utf-8")
    words = "".join(Page(text).words)
    assert "Size against quality" in words
    assert "as-it-is" in words
    (cases,) = tmp_path.glob("runs/spec/matrix-*.xml")
    assert cases.read_text().count("<testsuite ") == 2
    assert main(["report", str(page.with_suffix(".json")), "-o", "again.html"]) == 0
    assert Path("again.html").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["absent", "spec.yaml", "other.json"])
def test_what_is_no_run_is_refused(tmp_path, name):
    (tmp_path / "spec.yaml").write_text("version: 1\n")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UsageError) as caught:
        open_runs([tmp_path / name])
    assert caught.value.code == "no-run"


def test_without_the_libraries_nothing_is_begun(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(render, "find_spec", lambda name: None)
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"version: 1\nsource: {{path: {QWEN}}}\noutputs: {{reports: [html]}}\n")
    assert main(["run", str(spec)]) == 2
    assert "pip install 'mlxpipe[report]'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
