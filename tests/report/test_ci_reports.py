"""JUnit XML and GitHub annotations: valid whatever stands in a name, and true."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.cli import main
from mlxpipe.errors import Diagnostic, ExitCode, Origin
from mlxpipe.execution.expectations import Checked
from mlxpipe.execution.record import RunRecord, TaskRecord
from mlxpipe.report.github import workflow_commands
from mlxpipe.report.junit import junit

texts = st.text(max_size=20)


def record(tasks=(), expectations=(), name="spec"):
    found = RunRecord(Path("runs/spec/1"), name, 0, list(tasks))
    found.expectations = list(expectations)
    return found


@given(texts, texts, texts, st.booleans())
def test_any_text_gives_xml_that_can_be_read(name, found, error, passed):
    checked = Checked(name, passed, found + "\nmore", "max 1", Origin("spec.yaml", 3, 5))
    task = TaskRecord("a", "generate", status="failed", error=error)
    root = fromstring(junit([record([task], [checked], name)]).encode())
    (suite,) = root
    assert suite.attrib["tests"] == "2"
    assert suite.attrib["failures"] == str(int(not passed))
    assert suite.attrib["errors"] == "1"


def test_a_task_is_a_case_with_its_metrics():
    done = TaskRecord("ppl", "perplexity", status="done", metrics={"perplexity": 2.5}, seconds=1.5)
    skipped = TaskRecord("gen", "generate", status="skipped")
    root = fromstring(junit([record([done, skipped])]).encode())
    first, second = root.iter("testcase")
    assert (first.attrib["name"], first.attrib["time"]) == ("ppl", "1.500")
    assert [each.attrib for each in first.iter("property")] == [
        {"name": "perplexity", "value": "2.5"}
    ]
    assert [each.tag for each in second] == ["skipped"]
    assert root[0].attrib["skipped"] == "1"


@given(texts, texts, texts)
def test_an_annotation_is_one_line_whatever_it_holds(message, file, found):
    finding = Diagnostic("code", message, Origin(file, 3, 5), found=found)
    text = workflow_commands([finding])
    assert re.fullmatch(r"::error title=code,file=[^,\n\r]*,line=3,col=5::[^\n\r]*\n", text)
    value = text.split("::", 2)[2].rstrip("\n")
    assert value.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%").startswith(message)


def test_ten_annotations_are_enough():
    findings = [Diagnostic("code", str(number)) for number in range(30)]
    assert workflow_commands(findings).count("\n") == 10


@pytest.mark.parametrize("command", ["check", "plan", "run"])
def test_a_wrong_spec_is_annotated_in_github_actions(tmp_path, monkeypatch, capsys, command):
    spec = tmp_path / "spec.yaml"
    spec.write_text("version: 1\nsource: {path: .}\nnam: x\n")
    main([command, str(spec)])
    assert "::error" not in capsys.readouterr().err
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert main([command, str(spec)]) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert f"::error title=unknown-key,file={spec},line=3,col=1::" in captured.err
    assert "::" not in captured.out


def test_what_is_infinite_is_null_in_json():
    task = TaskRecord("ppl", "perplexity", metrics={"perplexity": float("inf"), "tokens": 3})
    assert task.as_json()["metrics"] == {"perplexity": None, "tokens": 3}
