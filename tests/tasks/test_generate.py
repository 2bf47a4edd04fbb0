"""Completions: what is written, when they end, and that they can be repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import mlxpipe
from mlxpipe.errors import UsageError
from mlxpipe.execution.executor import RunFailedError
from mlxpipe.spec import parse_spec
from mlxpipe.tasks import Reporter

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "model"


def run(tmp_path: Path, task: str, reporter: Reporter | None = None) -> list[dict]:
    spec = f"version: 1\nsource: {{path: {QUICKSTART}}}\ntasks: [{{type: generate, {task}}}]\n"
    record = mlxpipe.run(parse_spec(spec, "s.yaml", tmp_path), reporter)
    path = Path(record.tasks[0].outputs["completions"])
    completions = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    generated = sum(len(each["tokens"]) for each in completions)
    assert record.tasks[0].metrics["generated_tokens"] == generated
    return completions


def test_a_completion_is_text_of_its_tokens_after_the_prompt(tmp_path):
    (completion,) = run(tmp_path, "prompt: 'Mr. Darcy was', max_tokens: 12")
    _, tokenizer = mlxpipe.load(QUICKSTART)
    assert completion["prompt"] == "Mr. Darcy was"
    assert completion["finish_reason"] == "length"
    assert len(completion["tokens"]) == 12
    assert tokenizer.decode(completion["tokens"]) == completion["text"]


def test_it_equals_greedy_decoding_by_hand(tmp_path):
    import mlx.core as mx

    (completion,) = run(tmp_path, "prompt: 'It is a truth', max_tokens: 8")
    model, tokenizer = mlxpipe.load(QUICKSTART)
    ids = tokenizer.encode("It is a truth")
    for _ in range(8):
        ids.append(mx.argmax(model(mx.array([ids]))[0, -1]).item())
    assert completion["tokens"] == ids[-8:]


def test_what_is_streamed_is_what_is_written(tmp_path):
    class Listener(Reporter):
        heard = ""

        def text(self, piece: str) -> None:
            self.heard += piece

    listener = Listener()
    (completion,) = run(tmp_path, "prompt: 'Emma', max_tokens: 20", listener)
    assert listener.heard == completion["text"] + "\n"


def test_a_seed_repeats_and_another_differs(tmp_path):
    task = "prompt: 'The', max_tokens: 16, temperature: 1.0, seed: {}"
    first, again, other = (run(tmp_path, task.format(seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_prompt_does_not_hang_on_the_ones_before_it(tmp_path):
    task = "prompt: {}, max_tokens: 8, temperature: 1.0"
    both = run(tmp_path, task.format("[She, He]"))
    alone = run(tmp_path, task.format("[He]"))
    assert both[1] == alone[0]


def test_a_stop_text_ends_a_completion_and_is_left_out(tmp_path):
    (whole,) = run(tmp_path, "prompt: 'It is a truth', max_tokens: 30")
    middle = whole["text"][8:11]
    (cut,) = run(tmp_path, f"prompt: 'It is a truth', max_tokens: 30, stop: [{middle!r}]")
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == whole["text"][: whole["text"].index(middle)]


def test_prompts_come_from_files(tmp_path):
    (tmp_path / "p.txt").write_text("Emma\n\nMr. Knightley\n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"prompt": "Emma"}\n{"prompt": "Mr. Knightley"}\n')
    lines = run(tmp_path, "prompt_file: p.txt, max_tokens: 3")
    assert [each["prompt"] for each in lines] == ["Emma", "Mr. Knightley"]
    assert lines == run(tmp_path, "prompt_file: p.jsonl, max_tokens: 3")


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "empty-file"), (b"{}\n", "malformed-line"), (b"{\n", "malformed-line")],
)
def test_bad_prompt_files_are_one_clear_error(tmp_path, content, code):
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        run(tmp_path, "prompt_file: p.jsonl")
    assert caught.value.code == code
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("task", ["chat: true", "system: 'Be brief'"])
def test_a_chat_needs_a_template(tmp_path, task):
    with pytest.raises(RunFailedError) as caught:
        run(tmp_path, f"prompt: Hello, {task}")
    assert caught.value.cause.code == "no-chat-template"
