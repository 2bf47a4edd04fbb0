"""A matrix: axes, every combination of them, and choosing among them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.errors import Diagnostic, UsageError
from mlxpipe.spec import LoadedSpec, load_spec, load_specs, origins, parse_setting, shard
from mlxpipe.spec.matrix import combine, read_axes
from mlxpipe.spec.tree import from_value

HEAD = """\
version: 1
vars: {tag: a}
source: {path: "m-${vars.tag}"}
tasks:
- {id: ppl, type: perplexity, data: t.txt}
"""
TWO_AXES = HEAD + "matrix: {tasks.ppl.context: [32, 64], model.dtype: [float32, float16]}\n"
BUNDLES = HEAD + (
    "matrix:\n  recipe:\n"
    "    plain: {quantization.overrides: []}\n"
    "    mixed:\n"
    "      quantization.overrides: [{match: '*.a', bits: 8}]\n"
    "      vars.tag: b\n"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def specs(text: str, *only: str, set: Iterable[str] = ()) -> tuple[LoadedSpec, ...]:
    Path("spec.yaml").write_text(text)
    return load_specs("spec.yaml", set=[parse_setting(each) for each in set], only=only)


def labels(text: str, *only: str, set: Iterable[str] = ()) -> list[str]:
    return [each.label for each in specs(text, *only, set=set)]


def errors_of(text: str, *only: str) -> tuple[Diagnostic, ...]:
    with pytest.raises(UsageError) as caught:
        specs(text, *only)
    return caught.value.diagnostics


# --- combinations


def test_every_combination_is_a_spec_of_its_own() -> None:
    found = specs(TWO_AXES)
    assert [(each.spec.tasks[0].context, each.spec.model.dtype) for each in found] == [  # type: ignore[union-attr]
        *((32, "float32"), (32, "float16"), (64, "float32"), (64, "float16")),
    ]
    assert found[1].label == "context-32_dtype-float16"
    assert found[1].matrix == {"tasks.ppl.context": 32, "model.dtype": "float16"}
    assert {each.name for each in found} == {"spec"}


def test_a_name_bundles_several_settings_under_labels() -> None:
    plain, mixed = specs(BUNDLES)
    assert (plain.label, mixed.label) == ("plain", "mixed")
    assert mixed.matrix == {"recipe": "mixed"}
    assert (plain.spec.source.path, mixed.spec.source.path) == ("m-a", "m-b")
    assert len(mixed.spec.quantization.overrides) == 1


def test_values_of_a_path_can_have_labels() -> None:
    text = (
        HEAD + "matrix: {quantization.precedence: {odd: metadata > config, even: [config, spec]}}"
    )
    odd, even = specs(text)
    assert (odd.label, even.label) == ("odd", "even")
    assert odd.matrix == {"quantization.precedence": "metadata > config"}
    assert even.spec.quantization.precedence[:2] == ("config", "spec")
    assert labels(text, "quantization.precedence=odd") == ["odd"]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("quantization.precedence: [spec > config, config > spec]", "precedence-spec-config"),
        ("naming.drop: [[a], [b, c]]", "drop-1"),
        ("model: [{dtype: float32}, {dtype: float16}]", "model-1"),
        ("name: [x, X]", "name-1"),
        (f"outputs.dir: [{'a' * 41}, b]", "dir-1"),
        ("tasks.ppl.bos: [true, null]", "bos-true"),
        ("run.seed: [1]", "seed-1"),
    ],
)
def test_labels_are_readable_or_numbered(axis: str, expected: str) -> None:
    assert labels(HEAD + f"matrix: {{{axis}}}")[0] == expected


values = st.lists(
    st.integers(0, 10**6) | st.text(alphabet="aA-. 1", min_size=1, max_size=50),
    min_size=1,
    max_size=4,
)


@given(st.lists(values, min_size=1, max_size=3))
def test_labels_are_unique_and_fit_for_a_directory(axes: list[list[object]]) -> None:
    matrix = {f"vars.{'xyz'[number]}": axis for number, axis in enumerate(axes)}
    read, found = read_axes(from_value(matrix, "matrix"))
    made = [each.label for each in combine(read)]
    assert not found
    assert len({label.casefold() for label in made}) == len(made)
    assert all(label[0].isalnum() and len(label) <= 128 for label in made)
    assert not any(set(label) & set(' /\\:*?"<>|') for label in made)


def test_a_spec_extends_a_matrix_and_takes_an_axis_away() -> None:
    Path("base.yaml").write_text(TWO_AXES)
    text = "extends: base.yaml\nmatrix: {model.dtype: null, run.seed: [1, 2, 3]}"
    assert len(specs(text)) == 6
    assert labels("extends: base.yaml\nmatrix: null") == [""]


def test_a_setting_fixes_its_axis() -> None:
    found = specs(TWO_AXES, set=["tasks.0.context=48"])
    assert [each.label for each in found] == ["dtype-float32", "dtype-float16"]
    assert {each.spec.tasks[0].context for each in found} == {48}  # type: ignore[union-attr]
    assert labels(TWO_AXES, set=["model={dtype: bfloat16}"]) == ["context-32", "context-64"]
    assert len(specs(TWO_AXES, set=["run.seed=1"])) == 4


def test_a_setting_wins_over_a_bundle() -> None:
    assert {each.spec.source.path for each in specs(BUNDLES, set=["vars.tag=z"])} == {"m-z"}


def test_values_of_a_matrix_are_interpolated_and_have_an_origin() -> None:
    (loaded,) = specs(HEAD + "matrix: {outputs.dir: ['out/${vars.tag}']}")
    assert loaded.spec.outputs.dir == "out/a"
    assert origins(loaded)["outputs.dir"].startswith("spec.yaml:6 (matrix, vars.tag at ")


def test_one_spec_is_asked_of_several() -> None:
    with pytest.raises(UsageError) as caught:
        specs(TWO_AXES)
        load_spec("spec.yaml")
    assert caught.value.code == "several-combinations"
    assert "context-64_dtype-float16" in str(caught.value)
    assert load_spec("spec.yaml", only=["context-64_dtype-float16"]).spec.model.dtype == "float16"


# --- what is wrong


BAD = [
    # (matrix, code, line:column, part of the error)
    ("[1]", "wrong-type", "6:9", "a mapping of paths"),
    ("{model.dtyp: [float32]}", "unknown-path", "6:10", "did you mean 'model.dtype'?"),
    ("{dtype: [float32]}", "unknown-path", "6:10", "dtype"),
    ("{model.dtype: float32}", "wrong-type", "6:23", "a list of values"),
    ("{model.dtype: []}", "wrong-type", "6:23", "a list of values"),
    ("{recipe: {a: 1}}", "wrong-type", "6:22", "a mapping of paths to values"),
    ("{recipe: {a: {modl.dtype: x}}}", "unknown-path", "6:23", "model.dtype"),
    ("{recipe: {a b: {run.seed: 1}}}", "bad-name", "6:19", "no label"),
    ("{model.dtype: [float32, float33]}", "unknown-value", "6:33", "'float32'?"),
    ("{'vars.${x}': [1]}", "bad-interpolation", "6:10", "key"),
    ("{vars.tga: [1]}", "unknown-path", "6:10", "did you mean 'vars.tag'?"),
    ("{run.seed: [1], tasks.ppl.data: [3]}", "wrong-type", "6:42", "in quotes"),
]


@pytest.mark.parametrize(("matrix", "code", "at", "says"), BAD)
def test_a_wrong_matrix_is_an_error_at_its_place(
    matrix: str, code: str, at: str, says: str
) -> None:
    (error,) = errors_of(HEAD + f"matrix: {matrix}")
    assert (error.code, str(error.origin)) == (code, f"spec.yaml:{at}")
    assert says in error.render()


def test_an_error_of_one_combination_names_it_and_a_common_one_is_told_once() -> None:
    found = errors_of(
        HEAD + "run: {seed: x}\nmatrix: {model.dtype: [float32, float33], model.device: [cpu, gpu]}"
    )
    assert [error.code for error in found] == ["wrong-type", "unknown-value"]
    assert found[0].notes == ()
    assert found[1].notes == ("in combination dtype-float33_device-cpu, dtype-float33_device-gpu",)


def test_the_number_of_combinations_is_bounded() -> None:
    numbers = list(range(11))
    axes = ", ".join(f"vars.{name}: {numbers}" for name in "abc")
    (error,) = errors_of(HEAD + f"matrix: {{{axes}}}")
    assert (error.code, error.message) == ("out-of-range", "the matrix has 1331 combinations")


# --- choosing


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        (["context-32_dtype-float32"], [0]),
        (["*float16"], [1, 3]),
        (["context-32*", "*_dtype-float16"], [0, 1, 3]),
        (["model.dtype=float32"], [0, 2]),
        (["tasks.ppl.context=64", "model.dtype=float32"], [2]),
        (["tasks.ppl.context=64", "tasks.ppl.context=32"], [0, 1, 2, 3]),
        (["tasks.ppl.context=context-64", "*float16"], [3]),
    ],
)
def test_only_chooses_by_label_or_by_value(only: list[str], chosen: list[int]) -> None:
    every = labels(TWO_AXES)
    assert labels(TWO_AXES, *only) == [every[index] for index in chosen]


@pytest.mark.parametrize(
    ("only", "says"),
    [
        ("context-32_dtype-float3", "did you mean 'context-32_dtype-float32'?"),
        ("model.dtpe=float32", "did you mean 'model.dtype'?"),
        ("model.dtype=float33", "'float16'"),
        ("tasks.ppl.context='32'", "no such value"),
    ],
)
def test_a_choice_of_nothing_is_an_error(only: str, says: str) -> None:
    (error,) = errors_of(TWO_AXES, only)
    assert (error.code, str(error.origin)) == ("bad-choice", f"--only {only}")
    assert says in error.render()


def test_there_is_nothing_to_choose_without_a_matrix() -> None:
    (error,) = errors_of(HEAD, "x")
    assert "no matrix" in error.message
    with pytest.raises(UsageError, match="no matrix"):
        shard(specs(HEAD), "1/1")


@given(st.integers(1, 7))
def test_shards_are_disjoint_and_complete(parts: int) -> None:
    every = specs(TWO_AXES)
    found = [each for part in range(1, parts + 1) for each in shard(every, f"{part}/{parts}")]
    assert sorted(each.label for each in found) == sorted(each.label for each in every)


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_a_wrong_shard(text: str) -> None:
    with pytest.raises(UsageError, match="1 <= i <= n") as caught:
        shard(specs(TWO_AXES), text)
    assert caught.value.code == "bad-choice"
