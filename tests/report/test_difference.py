"""What differs: nothing between equals, each change once, the same from both sides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import DATA, QWEN
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe import make_plan
from mlxpipe.cli import main
from mlxpipe.errors import MlxpipeError
from mlxpipe.report.difference import ABSENT, Side, compare, open_side

GATE = "language_model.model.layers.0.mlp.gate"

values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
tables = st.dictionaries(st.text(max_size=4), values, max_size=5)
schemes = st.sampled_from(["dense", "nvfp4", "affine"])
modules = st.dictionaries(st.text(max_size=4), schemes, max_size=5)
sides = st.builds(
    Side, st.just("spec"), st.just("x"), settings=tables, modules=modules, metrics=tables
)


@given(sides)
def test_nothing_differs_from_itself(side):
    assert not compare(side, side)


@given(sides, sides)
def test_the_other_way_round_is_the_same_turned_round(one, other):
    there, back = compare(one, other), compare(other, one)
    turned = {(each.name, repr(each.before), repr(each.after)) for each in there.settings}
    assert turned == {(each.name, repr(each.after), repr(each.before)) for each in back.settings}
    for (before, after), paths in there.modules.items():
        assert set(back.modules[(after, before)]) == set(paths)


def test_a_value_that_looks_like_nothing_is_a_value():
    found = compare(Side("spec", "a", settings={}), Side("spec", "b", settings={"x": "-"}))
    assert found.as_json()["settings"] == [{"name": "x", "after": "-"}]


@given(tables, tables)
def test_the_changes_lead_from_one_to_the_other(one, other):
    found = compare(Side("spec", "a", settings=one), Side("spec", "b", settings=other)).settings
    changed = {**one, **{each.name: each.after for each in found}}
    gone = {each.name for each in found if each.after is ABSENT}
    assert {name: json.dumps(value) for name, value in changed.items() if name not in gone} == {
        name: json.dumps(value) for name, value in other.items()
    }


def spec(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(f"version: 1\nname: same\nsource: {{path: {QWEN}}}\n{text}")
    return str(path)


def test_two_specs_differ_in_settings_and_modules(tmp_path):
    one = spec(tmp_path, "one.yaml", "run: {seed: 1}\n")
    other = spec(tmp_path, "two.yaml", f"quantization: {{overrides: [{{match: {GATE}, bits: 8}}]}}")
    found = compare(open_side(one), open_side(other))
    assert ("run.seed", 1, 0) in [(each.name, each.before, each.after) for each in found.settings]
    ((change, paths),) = found.modules.items()
    assert change == ("affine 8-bit g64, exact, by config", "affine 8-bit g64, exact, by spec")
    assert paths == (GATE,)


def test_a_saved_plan_is_the_plan(tmp_path):
    saved = tmp_path / "plan.json"
    saved.write_text(json.dumps(make_plan(QWEN).as_json()))
    found = compare(open_side(str(saved)), open_side(str(QWEN)))
    assert not found.modules
    assert not found.metrics


def test_two_runs_differ_in_what_they_measured_and_not_in_when(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, tokens in (("one", 2), ("two", 3)):
        task = f"tasks: [{{id: g, type: generate, prompt: x, chat: false, max_tokens: {tokens}}}]\n"
        path = spec(tmp_path, f"{name}.yaml", f"{task}outputs: {{dir: {name}}}\n")
        assert main(["run", path, "-q"]) == 0
    runs = [str(next(Path(name).glob("same/*"))) for name in ("one", "two")]
    capsys.readouterr()
    assert main(["diff", *runs, "--exit-code", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in found["settings"]] == [
        "spec.tasks.g.max_tokens",
        "spec.outputs.dir",
    ]
    assert {"name": "g.generated_tokens", "before": 2, "after": 3} in found["metrics"]
    assert main(["diff", runs[0], runs[0], "--exit-code"]) == 0
    assert "nothing differs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("absent.yaml", "file-not-found"),
        (str(QWEN / "config.json"), "nothing-to-compare"),
        (str(DATA), "no-weights"),
    ],
)
def test_what_cannot_be_compared(path, code):
    with pytest.raises(MlxpipeError) as caught:
        open_side(path)
    assert caught.value.code == code
