"""Steps that survive whoever wrote them."""

from pathlib import Path

import pytest

from mlxpipe.tasks.progress import FILE, progress, read_progress


def test_steps_are_there_for_the_next(tmp_path: Path) -> None:
    with progress(tmp_path) as steps:
        steps.add({"nats": 0.1 + 0.2})
        steps.add({"text": "a\nb \u2028 \ud800 ünder"})

    with progress(tmp_path) as steps:
        assert steps.rows == [{"nats": 0.1 + 0.2}, {"text": "a\nb \u2028 \ud800 ünder"}]


def test_a_step_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    with progress(tmp_path) as steps:
        steps.add({"n": 1})
        assert read_progress(tmp_path / FILE) == [{"n": 1}]


@pytest.mark.parametrize("torn", [b'{"n": 2', b'{"n": 2}', b"{}x\n", b"[]\n{}\n", b"\xff\n", b"\n"])
def test_what_is_torn_or_foreign_ends_the_steps(tmp_path: Path, torn: bytes) -> None:
    (tmp_path / FILE).write_bytes(b'{"n": 1}\n' + torn)

    with progress(tmp_path) as steps:
        assert steps.rows == [{"n": 1}]
        steps.add({"n": 3})

    assert read_progress(tmp_path / FILE) == [{"n": 1}, {"n": 3}]
