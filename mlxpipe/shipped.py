"""The examples and pipelines that come with mlxpipe: in its wheel, or beside it in a checkout.

<root>/examples/<name>/…      folders with specs, texts and models
<root>/pipelines/<name>.yaml  specs for well-known models
<root>/pipelines/<name>/…     specs for questions

A copy keeps this layout, so that the commands in comments and READMEs, and the relative paths from
one example to another, hold in it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlxpipe
from mlxpipe.errors import ExecutionError, UsageError, did_you_mean
from mlxpipe.spec import LOCK_SUFFIX

#: Where the wheel has them, and where a checkout does.
_PLACES = (Path(mlxpipe.__file__).parent / "_shipped", Path(mlxpipe.__file__).parents[1])

_ROOMS = ("examples", "pipelines")

#: Example -> others whose files its specs name.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "ci": ("quickstart",),
    "compose": ("quickstart",),
    "questions": ("quickstart",),
}

#: What runs, examples' scripts and Python leave in a checkout; none of it is shipped.
_LEFT_BEHIND = ("runs", "out", "ollama-store", "__pycache__")
_LEFT_BEHIND_IN = {"smollm2": ("model",)}

_SENTENCE = re.compile(r"(?:Why: )?(.+?(?:\?|(?=\.)))\.?(?: |$)")


@dataclass(frozen=True, slots=True)
class ShippedSpec:
    """One spec.

    Attributes:
        path: Relative to the root.
        about: The first sentence of the comment that it opens with.
    """

    path: Path
    about: str


@dataclass(frozen=True, slots=True)
class Shipped:
    """What `mlxpipe examples copy` copies under one name: a folder, or a spec alone.

    Attributes:
        name: What the user calls it.
        root: The directory that holds `examples` and `pipelines`.
        path: Relative to the root.
        about: One line.
        specs: The specs in it.
    """

    name: str
    root: Path
    path: Path
    about: str
    specs: tuple[ShippedSpec, ...]

    def as_json(self) -> dict[str, Any]:
        """For `--format json`; paths relative to where a copy is put."""
        return {
            "name": self.name,
            "path": self.path.as_posix(),
            "about": self.about,
            "specs": [{"path": each.path.as_posix(), "about": each.about} for each in self.specs],
        }


def shipped() -> dict[str, Shipped]:
    """Name -> example or pipeline, the quickstart first.

    Raises:
        ExecutionError: `no-examples`, where this installation lacks them.
    """
    root = next((place for place in _PLACES if (place / "examples/quickstart").is_dir()), None)
    if root is None:
        raise ExecutionError(
            "no-examples",
            "this installation has no examples",
            expected=str(_PLACES[0]),
            help="install mlxpipe from its wheel",
        )
    found = [_describe(root, path) for room in _ROOMS for path in sorted((root / room).iterdir())]
    named = {each.name: each for each in found if each is not None}
    return {"quickstart": named["quickstart"], **named}


def _describe(root: Path, path: Path) -> Shipped | None:
    """A folder with a README, or a spec; None for anything else."""
    relative = path.relative_to(root)
    if path.suffix == ".yaml" and not path.name.endswith(LOCK_SUFFIX):
        spec = ShippedSpec(relative, _about(path))
        return Shipped(path.stem, root, relative, spec.about, (spec,))
    readme = path / "README.md"
    if not readme.is_file():
        return None
    title = readme.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
    specs = tuple(
        ShippedSpec(each.relative_to(root), _about(each))
        for each in sorted(path.glob("*.yaml"))
        if not each.name.endswith(LOCK_SUFFIX)
    )
    return Shipped(path.name, root, relative, title, specs)


def _about(spec: Path) -> str:
    """The first sentence of the comment at a spec's head, "" where there is none."""
    text = " ".join(_head(spec.read_text(encoding="utf-8")))
    sentence = _SENTENCE.match(text)
    about = sentence[1] if sentence else text
    # "nvfp4" stays as it is written.
    return about[:1].upper() + about[1:] if about.partition(" ")[0].isalpha() else about


def _head(text: str) -> Iterator[str]:
    for line in text.splitlines():
        words = line.removeprefix("#").strip()
        if not (line.startswith("#") and words):
            return
        yield words


def copy(name: str, directory: str | Path = ".") -> tuple[Path, ...]:
    """Copy an example, and those whose files it names, whole or not at all.

    Args:
        name: As `shipped` has it.
        directory: Where `examples/…` or `pipelines/…` are put; made where there is none.

    Returns:
        What was written. Needed examples that are there already are left as they are.

    Raises:
        UsageError: `unknown-example`, or `exists`: nothing is ever overwritten.
        ExecutionError: `cannot-write`.
    """
    known = shipped()
    if name not in known:
        raise UsageError(
            "unknown-example",
            f"there is no example '{name}'",
            help=did_you_mean(name, list(known)) or "`mlxpipe examples` lists them",
        )
    target = Path(directory)
    if (target / known[name].path).exists():
        raise UsageError(
            "exists",
            f"{target / known[name].path} exists already, and is not overwritten",
            help="name another directory, or remove it",
        )
    needed = [known[each] for each in (name, *NEEDS.get(name, ()))]
    missing = [each for each in needed if not (target / each.path).exists()]
    try:
        return _copy_all(missing, target)
    except OSError as error:
        raise ExecutionError(
            "cannot-write",
            f"{name} cannot be copied to {target}",
            found=_reason(error),
        ) from error


def _reason(error: OSError) -> str:
    """Why; of what `shutil.copytree` collected, the first."""
    if isinstance(error, shutil.Error):
        return str(error.args[0][0][-1])
    return error.strerror or str(error)


def _copy_all(examples: list[Shipped], target: Path) -> tuple[Path, ...]:
    """Everything into a draft beside it at first; the example asked for appears last."""
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mlxpipe-examples-", dir=target) as draft:
        for each in examples:
            _copy_one(each, Path(draft) / each.path)
        for each in reversed(examples):
            (target / each.path).parent.mkdir(exist_ok=True)
            (Path(draft) / each.path).rename(target / each.path)
    return tuple(target / each.path for each in examples)


def _copy_one(example: Shipped, path: Path) -> None:
    source = example.root / example.path
    path.parent.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        _copy_file(source, path)
        return
    left = shutil.ignore_patterns(*_LEFT_BEHIND, *_LEFT_BEHIND_IN.get(example.name, ()))
    shutil.copytree(source, path, ignore=left, copy_function=_copy_file)


def _copy_file(source: str | Path, target: str | Path) -> str | Path:
    """Contents alone: what is installed may be read-only, and a copy is there to be changed."""
    return shutil.copyfile(source, target)
