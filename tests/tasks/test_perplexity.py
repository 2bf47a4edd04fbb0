"""Windows over a text, and what is measured in them."""

from __future__ import annotations

import math
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlxpipe
from mlxpipe.errors import UsageError
from mlxpipe.execution.executor import RunFailedError
from mlxpipe.spec import parse_spec
from mlxpipe.tasks.windows import cut_windows, tokenise

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "model"

TEXT = "Emma could not forgive her; but as neither provocation nor “resentment” were discerned. "

sizes = st.tuples(st.integers(0, 200), st.integers(2, 40), st.integers(1, 40), st.booleans())


@given(sizes)
def test_each_token_is_scored_at_most_once_and_in_order(size):
    count, context, stride, bos = size
    windows = list(cut_windows(count, context, min(stride, context), bos))
    scored = [each for window in windows for each in range(window.scored, window.stop)]
    assert scored == sorted(set(scored))
    for window in windows:
        assert 0 <= window.start <= window.scored < window.stop <= count
        assert window.stop - window.start + bos <= context


@given(sizes)
def test_overlapping_windows_score_every_token_that_has_a_context(size):
    count, context, stride, bos = size
    stride = min(stride, context - 1)
    windows = list(cut_windows(count, context, stride, bos))
    scored = {each for window in windows for each in range(window.scored, window.stop)}
    # Windows whose stride is their room do not overlap, so their first tokens lack a context.
    if stride < context - bos or bos:
        assert scored == set(range(0 if bos else 1, count))


def run(tmp_path: Path, task: str, text: str = TEXT * 20):
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    spec = f"version: 1\nsource: {{path: {QUICKSTART}}}\ntasks: [{{type: perplexity, {task}}}]\n"
    return mlxpipe.run(parse_spec(spec, "s.yaml", tmp_path)).tasks[0].metrics


def test_perplexity_is_that_of_the_definition(tmp_path):
    text = TEXT * 8
    metrics = run(tmp_path, "data: text.txt, context: 64, windows: 2", text)
    model, tokenizer = mlxpipe.load(QUICKSTART)
    ids, _ = tokenise(tokenizer, text)
    total = 0.0
    for window in (ids[:64], ids[64:128]):
        logits = model(mx.array([window]))[0]
        logp = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
        total -= sum(logp[place, token].item() for place, token in enumerate(window[1:]))
    assert metrics["tokens"] == 126
    assert metrics["perplexity"] == pytest.approx(math.exp(total / 126), rel=1e-4)
    scored = tokenizer.decode(ids[1:64]) + tokenizer.decode(ids[65:128])
    assert metrics["bits_per_byte"] == pytest.approx(
        total / math.log(2) / len(scored.encode()), rel=0.02
    )


def test_overlap_gives_more_context_and_so_a_better_score(tmp_path):
    excerpt = (QUICKSTART.parent / "emma-excerpt.txt").read_text(encoding="utf-8")[:2000]
    apart = run(tmp_path, "data: text.txt, context: 16", excerpt)
    overlapping = run(tmp_path, "data: text.txt, context: 16, stride: 4", excerpt)
    assert overlapping["perplexity"] < apart["perplexity"]


def test_json_lines_are_read_as_one_text(tmp_path):
    (tmp_path / "two.jsonl").write_text('{"text": "Emma was"}\n\n{"text": "very happy."}\n')
    (tmp_path / "one.txt").write_text("Emma was\n\nvery happy.")
    two = run(tmp_path, "data: two.jsonl, context: 32")
    assert two == run(tmp_path, "data: one.txt, context: 32")


@pytest.mark.parametrize(
    ("task", "text", "code"),
    [
        ("data: text.txt", "a", "too-short"),
        ("data: text.txt, bos: true", TEXT, "no-bos"),
    ],
)
def test_bad_data_is_one_clear_error(tmp_path, task, text, code):
    with pytest.raises(RunFailedError) as caught:
        run(tmp_path, task, text)
    assert isinstance(caught.value.cause, UsageError)
    assert caught.value.cause.code == code


@pytest.mark.parametrize(
    ("task", "text", "code"),
    [("data: missing.txt", TEXT, "missing-file"), ("data: text.txt", "   \n", "empty-file")],
)
def test_a_bad_file_is_known_before_anything_is_written(tmp_path, task, text, code):
    with pytest.raises(UsageError) as caught:
        run(tmp_path, task, text)
    assert caught.value.code == code
    assert not (tmp_path / "runs").exists()


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"Emma \xff")
    with pytest.raises(UsageError, match="offset 5") as caught:
        run(tmp_path, "data: bad.txt")
    assert caught.value.code == "not-utf8"
