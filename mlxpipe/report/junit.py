"""A run as JUnit XML, which CI systems show as a list of tests.

A task is a test case, and so is an expectation. The format is the one that Jenkins and the CI
systems after it read: https://github.com/testmoapp/junitxml
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from mlxpipe.execution.expectations import Checked
from mlxpipe.execution.record import RunRecord, TaskRecord

#: What XML 1.0 cannot hold, not even escaped.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: A task's status -> the element that says it did not end well.
_VERDICTS = {"failed": "error", "interrupted": "error", "skipped": "skipped", "pending": "skipped"}


def junit(records: Iterable[RunRecord]) -> str:
    """The XML document: a test suite for each run."""
    root = Element("testsuites")
    for record in records:
        root.append(_suite(record))
    indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _suite(record: RunRecord) -> Element:
    suite = Element("testsuite", name=_text(record.name), timestamp=record.started)
    for task in record.tasks:
        suite.append(_task(record.name, task))
    for checked in record.expectations:
        suite.append(_expectation(record.name, checked))
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error")):
        suite.set(name, str(sum(1 for _ in suite.iter(tag))))
    suite.set("skipped", str(sum(1 for _ in suite.iter("skipped"))))
    suite.set("time", f"{record.seconds:.3f}")
    return suite


def _task(suite: str, task: TaskRecord) -> Element:
    case = Element(
        "testcase", classname=_text(f"{suite}.tasks"), name=task.id, time=f"{task.seconds:.3f}"
    )
    if task.status in _VERDICTS:
        verdict = SubElement(case, _VERDICTS[task.status], message=task.status)
        verdict.text = _text(task.error)
    properties = SubElement(case, "properties") if task.metrics else None
    for name, value in task.metrics.items():
        if properties is not None:
            SubElement(properties, "property", name=_text(name), value=_text(str(value)))
    return case


def _expectation(suite: str, checked: Checked) -> Element:
    case = Element("testcase", classname=_text(f"{suite}.expect"), name=_text(checked.name))
    case.set("file", _text(checked.origin.file))
    if checked.origin.line is not None:
        case.set("line", str(checked.origin.line))
    if not checked.passed:
        found = checked.found.splitlines()[0]
        failure = SubElement(case, "failure", message=_text(f"{found}, not {checked.expected}"))
        failure.text = _text(checked.diagnostic().render())
    return case


def _text(text: str) -> str:
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)
