"""The paths in a section, found by the types of its fields: new tasks need no list of them."""

from typing import Annotated

from pydantic import Field

from mlxpipe.spec import PathUse, PathValue, Section, Source, parse_spec, path_values
from mlxpipe.spec.values import OutputPath, PathText, Text, Words

READ, WRITE = PathUse.READ, PathUse.WRITE


class Inner(Section):
    path: PathText
    note: Text = "not a path"


class Sample(Section):
    one: PathText
    maybe: PathText | None = None
    many: tuple[PathText, ...] = ()
    described: Annotated[PathText | None, Words("a path"), Field(min_length=1)] = None
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    source: Source | None = None
    out: OutputPath = "out"
    text: Text | None = None
    number: int = 0


def test_every_kind_of_field() -> None:
    sample = Sample(
        one="a",
        maybe="b",
        many=("c", "d"),
        described="e",
        inner=Inner(path="f"),
        several=(Inner(path="g"), Inner(path="h")),
        source=Source(path="i"),
        text="no",
    )

    assert list(path_values(sample)) == [
        PathValue(("one",), "a", READ),
        PathValue(("maybe",), "b", READ),
        PathValue(("many", 0), "c", READ),
        PathValue(("many", 1), "d", READ),
        PathValue(("described",), "e", READ),
        PathValue(("inner", "path"), "f", READ),
        PathValue(("several", 0, "path"), "g", READ),
        PathValue(("several", 1, "path"), "h", READ),
        PathValue(("source", "path"), "i", READ),
        PathValue(("out",), "out", WRITE),
    ]


def test_what_is_not_given_is_not_there() -> None:
    assert list(path_values(Sample(one="a"))) == [
        PathValue(("one",), "a", READ),
        PathValue(("out",), "out", WRITE),
    ]


def test_paths_of_a_spec() -> None:
    loaded = parse_spec(
        "version: 1\n"
        "source: {path: model}\n"
        "quantization: {sources: {tuned: {type: file, path: overrides.json}}}\n"
        "tasks: [{type: generate, prompt_file: prompts.txt}]\n"
    )

    assert [value.keys for value in path_values(loaded.spec)] == [
        ("source", "path"),
        ("quantization", "sources", "tuned", "path"),
        ("tasks", 0, "prompt_file"),
        ("outputs", "dir"),
    ]
