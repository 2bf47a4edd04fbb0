"""`images:` in a generate task: from a picture and a prompt to a completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

pytest.importorskip("mlx_vlm")

import tiny_vlms
from tiny_vlms import FAMILIES, RECIPES

import mlxpipe
from mlxpipe.errors import ExecutionError, MlxpipeError, PlanError, SourceError, UsageError
from mlxpipe.execution.executor import RunFailedError
from mlxpipe.spec import parse_spec

PROMPT = "What is in the picture?"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with a tiny Qwen3.5-MoE, `model`, and two pictures."""
    folder = tmp_path_factory.mktemp("place")
    tiny_vlms.write(folder / "model", "qwen3_5_moe", RECIPES["nvfp4"])
    tiny_vlms.write_picture(folder / "one.png")
    tiny_vlms.write_picture(folder / "two.png", size=(90, 40), seed=3)
    return folder


def spec(place: Path, *tasks: str, model: str = "model", dtype: str = "auto") -> Any:
    text = f"version: 1\nsource: {{path: {model}}}\nmodel: {{dtype: {dtype}}}\ntasks:\n"
    return parse_spec(text + "".join(f"  - {{{task}}}\n" for task in tasks), "s.yaml", place)


def run(place: Path, *tasks: str, **options: str) -> list[dict[str, Any]]:
    """The completions of the first task."""
    record = mlxpipe.run(spec(place, *tasks, **options))
    path = Path(record.tasks[0].outputs["completions"])
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refusal(place: Path, *tasks: str, **options: str) -> MlxpipeError:
    """The error that a run ends with."""
    try:
        mlxpipe.run(spec(place, *tasks, **options))
    except RunFailedError as failure:
        return failure.cause
    except MlxpipeError as error:
        return error
    pytest.fail("it ran")


def with_pictures(prompt: str = PROMPT, more: str = "", images: str = "one.png") -> str:
    return f"type: generate, prompt: {prompt!r}, images: {images}, max_tokens: 8{more}"


def by_mlx_vlm(directory: Path, pictures: list[Path], prompt: str) -> tuple[str, int]:
    """What mlx-vlm itself answers, and how many tokens its prompt has."""
    import mlx_vlm

    model, processor = mlx_vlm.load(str(directory))
    text = mlx_vlm.apply_chat_template(processor, model.config, prompt, num_images=len(pictures))
    paths = [str(each) for each in pictures]
    answer = mlx_vlm.generate(
        model, processor, text, image=paths, max_tokens=8, temperature=0.0, verbose=False
    )
    return answer.text, answer.prompt_tokens


# --- what comes out --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3_5_moe", "qwen2_vl", "gemma3"])
def test_the_completion_is_what_mlx_vlm_generates(name, place):
    tiny_vlms.write(place / name, name, RECIPES["affine"])
    record = mlxpipe.run(spec(place, with_pictures(), model=name, dtype="checkpoint"))
    (line,) = Path(record.tasks[0].outputs["completions"]).read_text().splitlines()
    completion = json.loads(line)
    text, size = by_mlx_vlm(place / name, [place / "one.png"], PROMPT)
    assert completion["text"] == text
    assert record.tasks[0].metrics["prompt_tokens"] == size
    assert completion["prompt"] == PROMPT
    assert list(completion) == ["prompt", "text", "tokens", "finish_reason"]
    assert len(completion["tokens"]) == 8 == record.tasks[0].metrics["generated_tokens"]


def test_several_pictures_go_with_each_prompt(place):
    two = [place / "one.png", place / "two.png"]
    task = "type: generate, prompt: [One?, Two?], images: [one.png, two.png], max_tokens: 8"
    completions = run(place, task, dtype="checkpoint")
    for completion, prompt in zip(completions, ("One?", "Two?"), strict=True):
        assert completion["text"] == by_mlx_vlm(place / "model", two, prompt)[0]
    assert (
        completions[0]["text"] != run(place, with_pictures("One?"), dtype="checkpoint")[0]["text"]
    )


def test_a_prompt_may_hold_the_placeholder_itself(place):
    picture = FAMILIES["qwen3_5_moe"].picture
    templated = f"<user>{picture}{PROMPT}<assistant>"
    (raw,) = run(place, with_pictures(templated, ", chat: false"))
    (chatted,) = run(place, with_pictures())
    assert raw["tokens"] == chatted["tokens"]


def test_a_system_message_stands_before_the_prompt(place):
    picture = FAMILIES["qwen3_5_moe"].picture
    whole = f"<system>Be brief<user>{picture}{PROMPT}<assistant>"
    (raw,) = run(place, with_pictures(whole, ", chat: false"))
    (chatted,) = run(place, with_pictures(more=", system: Be brief"))
    assert raw["tokens"] == chatted["tokens"]


def test_a_seed_repeats_and_another_differs(place):
    task = with_pictures(more=", temperature: 1.0, seed: {}")
    first, again, other = (run(place, task.format(seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_stop_text_ends_a_completion(place):
    (whole,) = run(place, with_pictures())
    middle = whole["text"][5:8]
    (cut,) = run(place, with_pictures(more=f", stop: [{json.dumps(middle)}]"))
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == whole["text"][: whole["text"].index(middle)]


def test_an_end_token_ends_a_completion_and_is_left_out(place):
    (whole,) = run(place, with_pictures())
    model = place / "ends"
    shutil.copytree(place / "model", model)
    ends = {"eos_token_id": whole["tokens"][3]}
    (model / "generation_config.json").write_text(json.dumps(ends), encoding="utf-8")
    (cut,) = run(place, with_pictures(), model="ends")
    assert cut["finish_reason"] == "stop"
    assert cut["tokens"] == whole["tokens"][:3]


def test_tasks_without_pictures_in_the_same_spec_do_not_hang_on_them(place):
    text = ("type: logits, prompt: It is a truth", "type: generate, prompt: It is, max_tokens: 6")
    both = mlxpipe.run(spec(place, with_pictures(images="two.png"), *text))
    other = mlxpipe.run(spec(place, *reversed(text), with_pictures("Who?", images="one.png")))
    first, second = both.tasks[1], other.tasks[1]
    assert (first.type, second.type) == ("logits", "logits")
    one, two = (mx.load(each.outputs["logits"]) for each in (first, second))
    assert mx.array_equal(one["logits"], two["logits"])
    texts = [
        Path(each.outputs["completions"]).read_text() for each in (both.tasks[2], other.tasks[0])
    ]
    assert texts[0] == texts[1]


def test_logits_of_a_prompt_with_pictures_are_mlx_vlms(place):
    import mlx_vlm
    from mlx_vlm.utils import prepare_inputs

    text = f"{FAMILIES['qwen3_5_moe'].picture}{PROMPT}"
    task = f"type: logits, prompt: {text!r}, images: one.png"
    record = mlxpipe.run(spec(place, task, dtype="checkpoint"))
    found = mx.load(record.tasks[0].outputs["logits"])
    model, processor = mlx_vlm.load(str(place / "model"))
    inputs = prepare_inputs(processor, images=[str(place / "one.png")], prompts=text)
    mask = inputs.pop("attention_mask")
    tokens = inputs.pop("input_ids")
    assert mx.array_equal(found["tokens"], tokens)
    assert mx.array_equal(found["logits"], model(tokens, mask=mask, **inputs).logits)
    assert found["logits"].dtype == mx.float32


def test_text_alone_has_the_language_models_logits(place):
    """mlx-lm and mlx-vlm write the same architecture down differently: equal up to rounding."""
    text = "type: logits, prompt: It is a truth universally acknowledged"
    with_vision = mlxpipe.run(spec(place, text, with_pictures())).tasks[0]
    alone = mlxpipe.run(spec(place, text)).tasks[0]
    one, two = (mx.load(each.outputs["logits"])["logits"] for each in (with_vision, alone))
    assert mx.allclose(one, two, rtol=1e-3, atol=1e-3)


def test_a_finished_task_is_done_again_when_its_picture_changes(place):
    tiny_vlms.write_picture(place / "changing.png")
    task = with_pictures(images="changing.png")
    first = run(place, task)
    record = mlxpipe.run(spec(place, task))
    assert record.tasks[0].reused_from
    tiny_vlms.write_picture(place / "changing.png", seed=5)
    record = mlxpipe.run(spec(place, task))
    assert not record.tasks[0].reused_from
    second = Path(record.tasks[0].outputs["completions"]).read_text(encoding="utf-8")
    assert json.loads(second)["text"] != first[0]["text"]


def test_the_command_line_runs_it_and_prints_the_record(place):
    lines = [
        "version: 1",
        "source: {path: model}",
        f"outputs: {{dir: {place / 'runs'}}}",
        f"tasks: [{{{with_pictures()}}}]",
    ]
    path = place / "spec.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(mlxpipe.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "mlxpipe", "run", str(path), "--format", "json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (task,) = json.loads(done.stdout)["tasks"]
    assert task["metrics"]["generated_tokens"] == 8


def test_the_plan_says_that_pictures_are_read(place):
    plan = mlxpipe.make_plan(spec(place, with_pictures()))
    assert plan.as_json()["vision"] is True
    assert "vision_tower.patch_embed.proj.weight" in plan.parameters


# --- what is refused -------------------------------------------------------------------------


def derived(place: Path, name: str, *, without: tuple[str, ...] = ()) -> Path:
    """A copy of the model, some of its files left out."""
    model = place / name
    shutil.copytree(place / "model", model, ignore=shutil.ignore_patterns(*without))
    return model


def change_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def test_a_checkpoint_without_settings_for_pictures(place):
    derived(place, "unprepared", without=("preprocessor_config.json",))
    error = refusal(place, with_pictures(), model="unprepared")
    assert isinstance(error, SourceError)
    assert error.code == "no-processor"
    assert "preprocessor_config.json" in str(error)


def test_a_checkpoint_without_a_vision_part(place):
    model = derived(place, "blind", without=("model.safetensors*",))
    weights: Any = mx.load(str(place / "model" / "model.safetensors"))
    kept = {name: array for name, array in weights.items() if "vision" not in name}
    mx.save_safetensors(str(model / "model.safetensors"), kept)
    error = refusal(place, with_pictures(), model="blind")
    assert isinstance(error, PlanError)
    assert [each.code for each in error.diagnostics] == ["missing-part"]
    assert "vision_tower" in str(error)
    assert run(place, "type: generate, prompt: It is, max_tokens: 2", model="blind")


def test_an_architecture_that_reads_text_alone(place):
    model = derived(place, "text-only")
    change_config(model, model_type="gpt_oss")
    error = refusal(place, with_pictures(), model="text-only")
    assert error.code == "text-only-architecture"


def test_an_architecture_that_mlx_vlm_does_not_have(place):
    model = derived(place, "unknown")
    change_config(model, model_type="qwen3_5_moo")
    error = refusal(place, with_pictures(), model="unknown")
    assert error.code == "unknown-architecture"
    assert "qwen3_5_moe" in str(error)
    assert "mlx-vlm has no architecture" in str(error)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"vision_config": {"depth": "two"}}, "bad-config"),
        ({"text_config": None}, "bad-config"),
        ({"architectures": 3}, "bad-config"),
        ({"model_type": ["qwen3_5_moe"]}, "no-model-type"),
        ({"model_type": "../qwen3_5_moe"}, "unknown-architecture"),
    ],
)
def test_a_config_that_the_architecture_refuses(place, changes, code):
    model = derived(place, "broken")
    change_config(model, **changes)
    error = refusal(place, with_pictures(), model="broken")
    shutil.rmtree(model)
    assert error.code == code


@pytest.mark.parametrize("prompt", ["Where is the picture?", "<|vision_start|>?"])
def test_a_prompt_in_which_nothing_stands_for_the_picture(place, prompt):
    error = refusal(place, with_pictures(prompt, ", chat: false"))
    assert error.code in ("no-placeholder", "unusable-pictures")
    assert "s.yaml:5" in str(error)


def test_a_processor_of_which_the_library_can_make_nothing(place):
    model = derived(place, "unreadable")
    (model / "tokenizer.json").write_text("{}", encoding="utf-8")
    error = refusal(place, with_pictures(), model="unreadable")
    assert isinstance(error, ExecutionError)
    assert error.code == "processor-failed"


EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Evil: pass\n"


@pytest.mark.parametrize(
    "file", ["tokenizer_config.json", "preprocessor_config.json", "config.json"]
)
def test_code_in_a_checkpoint_is_not_run(place, file, request):
    model = derived(place, f"evil-{file.partition('.')[0]}")
    (model / "evil.py").write_text(EVIL, encoding="utf-8")
    settings = json.loads((model / file).read_text())
    kinds = ("AutoTokenizer", "AutoProcessor", "AutoImageProcessor", "AutoConfig")
    code = {"auto_map": dict.fromkeys(kinds, "evil.Evil"), "model_file": "evil.py"}
    (model / file).write_text(json.dumps(settings | code), encoding="utf-8")
    assert run(place, with_pictures(), model=model.name)
    assert not (model / "ran").exists()


def test_usage_errors_come_before_the_model(place, monkeypatch):
    from mlxpipe.graph import build

    def never(*_: Any, **__: Any) -> Iterator[Any]:
        pytest.fail("the model was loaded")

    monkeypatch.setattr(build, "build_model", never)
    error = refusal(place, with_pictures(images="three.png"))
    assert isinstance(error, UsageError)
    assert error.code == "missing-file"
