"""The harness's requests answered by the quickstart model, and what is refused."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import mlx.core as mx
import pytest

import mlxpipe
from mlxpipe.errors import UsageError
from mlxpipe.execution.executor import RunFailedError
from mlxpipe.spec import parse_spec

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart" / "model"

with_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is an extra")

#: The harness's libraries leave files to the garbage collector and warn of their own future.
noisy = pytest.mark.filterwarnings("default")

QUESTIONS = (
    {"question": "It is a truth universally", "choices": [" acknowledged", " zebra"], "answer": 0},
    {"question": "Mr. Knightley, a sensible", "choices": [" qx", " man"], "answer": 1},
    # The right answer is called wrong, so that not all are right.
    {"question": "She was the youngest of", "choices": [" the", " zq"], "answer": 1},
)

COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
doc_to_text: "{{question}}"
"""

TASKS = {
    "choice": """
task: choice
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "completion": """
task: completion
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 4, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def run(directory: Path, task: str):
    spec = f"version: 1\nsource: {{path: {QUICKSTART}}}\ntasks: [{{type: evaluate, {task}}}]\n"
    return mlxpipe.run(parse_spec(spec, "s.yaml", directory)).tasks[0]


@pytest.fixture
def local(tmp_path, monkeypatch) -> Path:
    """A directory beside the spec with tasks and their questions."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "local"
    folder.mkdir()
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(COMMON + text, encoding="utf-8")
    lines = "".join(json.dumps(question) + "\n" for question in QUESTIONS)
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    return tmp_path


@with_harness
@noisy
def test_local_tasks_run_on_local_data(local):
    task = run(local, "tasks: [choice, completion], include: local")
    assert task.metrics["choice/acc"] == pytest.approx(2 / 3)
    assert task.metrics["completion/exact_match"] == 0
    assert task.metrics.keys() >= {"choice/acc_stderr"}
    report = json.loads(Path(task.outputs["results"]).read_text(encoding="utf-8"))
    assert report["results"]["choice"]["acc,none"] == task.metrics["choice/acc"]
    assert report["n-samples"]["choice"]["effective"] == 3


@with_harness
@noisy
def test_a_limit_takes_the_first_questions(local):
    task = run(local, "tasks: [choice], include: local, limit: 2")
    assert task.metrics["choice/acc"] == 1


def harness_model(context: int = 64):
    from contextlib import nullcontext

    from mlxpipe.tasks.harness import HarnessModel, Limits

    model, tokenizer = mlxpipe.load(QUICKSTART)
    answered = []

    def complete(task, prompt, ids):
        answered.append((task, ids))
        return prompt

    def bar(*_):
        return nullcontext(lambda done: None)

    made = HarnessModel(model, tokenizer, complete, Limits(context, 16), False, bar)
    return made, model, tokenizer, answered


def request(*args):
    return SimpleNamespace(args=args)


def log_likelihood(model, ids: list[int], begin: int) -> float:
    """Sum of ln p of the tokens from `begin` on, one forward pass over all."""
    logits = model(mx.array([ids]))[0]
    chances = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    return sum(chances[at - 1, ids[at]].item() for at in range(begin, len(ids)))


@with_harness
@noisy
def test_a_continuations_score_is_its_log_likelihood():
    made, model, tokenizer, _ = harness_model()
    question = QUESTIONS[0]["question"]
    continuations = (" acknowledged", " acknowledge that", " zebra")
    scores = made.loglikelihood([request(question, each) for each in continuations])
    begin = len(tokenizer.encode(question))
    for each, (score, _) in zip(continuations, scores, strict=True):
        expected = log_likelihood(model, tokenizer.encode(question + each), begin)
        assert score == pytest.approx(expected, abs=1e-3)
    assert scores[0][0] > scores[2][0]


@with_harness
@noisy
def test_greedy_is_what_greedy_decoding_gives():
    made, model, tokenizer, _ = harness_model()
    ids = tokenizer.encode("Emma was")
    likeliest = mx.argmax(model(mx.array([ids]))[0, -1]).item()
    continuation = tokenizer.decode([*ids, likeliest])[len(tokenizer.decode(ids)) :]
    (_, greedy), (_, other) = made.loglikelihood(
        [request("Emma was", continuation), request("Emma was", " zebra")]
    )
    assert (greedy, other) == (True, False)


@with_harness
@noisy
def test_a_whole_text_is_scored_in_windows_that_predict_each_token_once():
    made, model, tokenizer, _ = harness_model(context=8)
    text = "Emma Woodhouse, handsome, clever, and rich, with a comfortable home"
    ids = tokenizer.encode(text, add_special_tokens=False)
    expected = 0.0
    for start in range(0, len(ids), 8):
        lead = [made.prefix_token_id] if start == 0 else [ids[start - 1]]
        expected += log_likelihood(model, [*lead, *ids[start : start + 8]], 1)
    # The last window is full: the harness gives it the context that the others have read.
    last = len(ids) - len(ids) % 8
    expected -= log_likelihood(model, [ids[last - 1], *ids[last:]], 1)
    expected += log_likelihood(model, ids[last - 1 - (8 - len(ids) % 8) :], 9 - len(ids) % 8)
    (score,) = made.loglikelihood_rolling([request(text)])
    assert score == pytest.approx(expected, abs=1e-2)


@with_harness
@noisy
def test_what_is_longer_than_the_context_loses_its_beginning():
    made, model, tokenizer, answered = harness_model(context=8)
    question = " ".join(each["question"] for each in QUESTIONS)
    ((score, _),) = made.loglikelihood([request(question, " the two")])
    ids = tokenizer.encode(question + " the two")
    after = len(ids) - len(tokenizer.encode(question))
    expected = log_likelihood(model, ids[-9:], 9 - after)
    assert score == pytest.approx(expected, abs=1e-3)
    made.generate_until([request(question, {"until": ["."]})])
    task, kept = answered[0]
    assert kept == tokenizer.encode(question)[-len(kept) :]
    assert len(kept) + task.max_tokens == 8
    assert made.shortened == 2


@with_harness
@pytest.mark.parametrize(
    ("wanted", "temperature", "stop"),
    [
        ({"until": "\n"}, 0.0, ("\n",)),
        ({"until": ["a", ""], "do_sample": False, "temperature": 0.7}, 0.0, ("a",)),
        ({"do_sample": True, "temperature": 0.7}, 0.7, ()),
        ({"temperature": 0.0}, 0.0, ()),
    ],
)
def test_generation_is_greedy_unless_samples_are_asked_for(wanted, temperature, stop):
    from mlxpipe.tasks.harness import generation

    task = generation(wanted, 12, 100)
    assert (task.temperature, task.stop, task.max_tokens) == (temperature, stop, 12)


@with_harness
@noisy
@pytest.mark.parametrize(
    ("task", "code", "words"),
    [
        ("tasks: [choise], include: local", "unknown-evaluation", "choice"),
        ("tasks: [broken], include: local", "no-data-set", "nowhere.jsonl"),
        ("tasks: [remote], include: local", "no-data-set", "OfflineMode"),
    ],
)
def test_what_the_harness_cannot_load_is_one_clear_error(local, task, code, words):
    for name, path in (("broken", "nowhere.jsonl"), ("remote", "")):
        text = (COMMON + TASKS["choice"]).replace("task: choice", f"task: {name}")
        text = text.replace("questions.jsonl", path) if path else text
        if not path:
            text = text.replace("dataset_path: json", "dataset_path: nobody/nothing")
            text = text.replace("dataset_kwargs: {data_files: {test: questions.jsonl}}", "")
        (local / "local" / f"{name}.yaml").write_text(text, encoding="utf-8")
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    with pytest.raises(RunFailedError) as caught:
        run(local, task)
    # Off the network inside alone: another part of the process may need it.
    assert before == huggingface_hub.constants.HF_HUB_OFFLINE
    assert caught.value.cause.code == code
    assert words in str(caught.value.cause)


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("mlxpipe.tasks.evaluate.find_spec", lambda name: None)
    with pytest.raises(RunFailedError) as caught:
        run(tmp_path, "tasks: [choice]")
    assert caught.value.cause.code == "no-lm-eval"
    assert "pip install 'mlxpipe[evaluate]'" in str(caught.value.cause)


@pytest.mark.parametrize(
    ("task", "code"),
    [
        ("tasks: [choice], include: nowhere", "missing-directory"),
        ("tasks: []", "out-of-range"),
        ("tasks: [choice], num_fewshot: -1", "out-of-range"),
    ],
)
def test_what_is_wrong_is_known_before_anything_is_written(tmp_path, task, code):
    with pytest.raises(UsageError) as caught:
        run(tmp_path, task)
    assert caught.value.code == code
    assert not (tmp_path / "runs").exists()
