"""Paths of files that an extended file wrote, as the spec itself would write them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlxpipe.spec.kinds import child, is_path, settled
from mlxpipe.spec.model import Spec
from mlxpipe.spec.tree import Node


def rebase(node: Node, directory: Path, kind: Any = Spec) -> Node:
    """The tree with every path relative to the spec.

    Args:
        node: The tree; each text knows where it begins.
        directory: The spec's directory.
        kind: The type of the node, which tells paths from other texts.
    """
    if is_path(kind) and isinstance(node.value, str) and node.base and node.value:
        return replace(node, value=below(node.base, node.value, directory), base="")
    bare = settled(kind, node.tag)
    if isinstance(node.value, dict):
        members = {
            key: rebase(each, directory, child(bare, key)) for key, each in node.value.items()
        }
        return replace(node, value=members)
    if isinstance(node.value, tuple):
        items = (rebase(each, directory, child(bare, i)) for i, each in enumerate(node.value))
        return replace(node, value=tuple(items))
    return node


def below(base: str, path: str, directory: Path) -> str:
    """A path from `base`, itself a path from `directory`; those from a root or `~` stay."""
    if path.startswith(("/", "~")) or "\0" in path:
        return path
    joined = f"{base}/{path.removeprefix('./')}" if base else path
    tidy = os.path.normpath(joined)
    # Behind a symbolic link `..` is another directory than it looks, and `~` is none of ours.
    same = os.path.realpath(directory / tidy) == os.path.realpath(directory / joined)
    return tidy if same and not joined.startswith("~") and not tidy.startswith("~") else joined
