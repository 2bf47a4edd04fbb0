"""Imports between packages run one way, left to right; read from the syntax tree."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mlxpipe

ROOT = Path(mlxpipe.__file__).parent

#: A package or module may import itself and those to its left.
ORDER = (
    "_version",
    "errors",
    "files",
    "notebook",
    "blas",
    "spec",
    "checkpoint",
    "architecture",
    "naming",
    "quant",
    "plan",
    "locking",
    "graph",
    "exports",
    "tasks",
    "execution",
    "report",
    "api",
    "starter",
    "shipped",
    "doctor",
    "commands",
    "cli",
    "__main__",
    "__init__",
)
RANK = {name: rank for rank, name in enumerate(ORDER)}


def home(path: Path) -> str:
    """The package that a file belongs to, or the module that it is."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> list[tuple[int, str]]:
    """(line, package) of every import of mlxpipe, those inside functions included.

    A relative import has no package to check, so it is refused.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "mlxpipe":
            names = [f"mlxpipe.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["mlxpipe.(relative)" if node.level else node.module or ""]
        else:
            continue
        found += [
            (node.lineno, name.split(".")[1]) for name in names if name.startswith("mlxpipe.")
        ]
    return found


FILES = sorted(ROOT.rglob("*.py"))


def test_every_package_has_its_place():
    assert {home(path) for path in FILES} <= set(ORDER)


def test_the_reader_of_imports_sees_every_form():
    source = (
        "import mlxpipe.a.b\nfrom mlxpipe.c import d\nfrom mlxpipe import e\nimport os, mlxpipe"
    )
    nested = "\ndef f():\n    from mlxpipe.g.h import i"
    relative = "\n    from . import j"
    assert imported(ast.parse(source + nested + relative)) == [
        *((1, "a"), (2, "c"), (3, "e"), (6, "g")),
        (7, "(relative)"),
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = home(path)
    backwards = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for line, name in imported(ast.parse(path.read_text(encoding="utf-8")))
        if RANK.get(name, len(ORDER)) > RANK[own]
    ]
    assert backwards == []
