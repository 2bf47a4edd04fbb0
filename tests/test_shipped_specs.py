"""Every spec in the repository is valid, and so is the schema that editors use for them."""

import json
from pathlib import Path

import jsonschema
import pytest

from mlxpipe.spec import json_schema, load_spec, load_specs, read_yaml, resolved

ROOT = Path(__file__).parents[1]

#: YAML files that are data to a spec, not specs: relative to the repository.
DATA: frozenset[str] = frozenset()

#: Directories that a run or an example's script writes.
WRITTEN = {"runs", "out"}


def spec_paths() -> list[Path]:
    found = [
        path.relative_to(ROOT)
        for folder in ("pipelines", "examples")
        for path in (ROOT / folder).rglob("*.yaml")
    ]
    specs = (path for path in found if not path.name.endswith(".lock.yaml"))
    return sorted(path for path in specs if str(path) not in DATA and not WRITTEN & set(path.parts))


def spec_id(path: Path) -> str:
    return path.as_posix()


def test_there_are_specs() -> None:
    assert len(spec_paths()) > 6


@pytest.mark.parametrize("path", spec_paths(), ids=spec_id)
def test_spec_loads_and_fits_the_schema(path: Path) -> None:
    jsonschema.validate(read_yaml(ROOT / path).data, json_schema())
    for loaded in load_specs(ROOT / path):
        jsonschema.validate(resolved(loaded), json_schema())
        assert loaded.spec.tasks, "a shipped spec does something"


@pytest.mark.parametrize("path", spec_paths(), ids=spec_id)
def test_spec_opens_with_a_comment(path: Path) -> None:
    assert (ROOT / path).read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines").glob("*.yaml")), ids=lambda p: p.stem)
def test_pipeline_is_in_the_readme_and_pins_nothing(path: Path) -> None:
    source = load_spec(path).spec.source

    assert f"({path.name})" in (ROOT / "pipelines" / "README.md").read_text(encoding="utf-8")
    assert source.kind in ("hub", "ollama")
    assert source.revision is None


def test_the_schema_in_the_repository_is_current() -> None:
    written = json.loads((ROOT / "mlxpipe.schema.json").read_text(encoding="utf-8"))

    assert written == json_schema(), "regenerate it: mlxpipe schema > mlxpipe.schema.json"


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
