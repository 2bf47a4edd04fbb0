"""Names as segments, and the one renaming that tensors and override keys share.

Three namespaces meet here: names in the checkpoint, keys of overrides, and the module paths of the
architecture. They differ by wrappers (`model.language_model.layers.0` against
`language_model.model.layers.0`), by a `.weight` at the end and by what the user's rules change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

#: Leading segments that only wrap the language model. Producers nest and order them differently,
#: so paths are compared without them.
WRAPPERS = frozenset({"model", "language_model", "text_model"})

#: What stands between a block and its experts.
EXPERTS = ".experts."

#: What stands for the number of any expert: in the path of a stacked group, in keys.
ANY_EXPERT = "*"

#: Leaves that a key may carry although it means the module.
PARAMETER_LEAVES = (".weight", ".scales", ".biases")


def core(path: str) -> str:
    """The path without its leading wrappers: `model.language_model.norm` -> `norm`.

    A path of nothing but wrappers keeps its last segment.
    """
    rest = path
    while True:
        head, dot, tail = rest.partition(".")
        if not dot or head not in WRAPPERS:
            return rest
        rest = tail


def rewrap(path: str, like: str) -> str:
    """A module's path in the namespace of another: its own wrappers replaced by that one's."""
    return like[: len(like) - len(core(like))] + core(path)


def strip_leaf(key: str) -> str:
    """An override key as a module path: `a.b.weight` -> `a.b`."""
    for leaf in PARAMETER_LEAVES:
        if key.endswith(leaf):
            return key[: -len(leaf)]
    return key


@lru_cache(maxsize=4096)
def _glob(pattern: str) -> Callable[[str], object]:
    if pattern.startswith("re:"):
        return re.compile(pattern[3:]).search
    return re.compile(translate(pattern)).match


@lru_cache(maxsize=4096)
def _from_start(pattern: str) -> Callable[[str], object]:
    return re.compile(pattern).match


def _by_segments(pattern: str) -> Callable[[str], object]:
    """The pattern's segments, together, anywhere in the path: `gate` is not in `gate_proj`."""
    inner = f".{pattern.strip('.')}."
    return lambda path: inner in f".{path}."


#: How producers match their patterns: name -> what makes a test of a pattern.
MATCHERS: Mapping[str, Callable[[str], Callable[[str], object]]] = {
    "glob": _glob,
    "regex-start": _from_start,
    "substring": lambda pattern: lambda path: pattern in path,
    "prefix": lambda pattern: lambda path: path.startswith(pattern),
    "segments": _by_segments,
}


def matches(pattern: str, path: str, matcher: str = "glob") -> bool:
    """Whether a pattern fits a path.

    By default a pattern is a glob over the whole path, or `re:` and a regex found in it. A glob's
    `*` crosses dots. A path is also tried without its wrappers, so that `lm_head` and `layers.0.*`
    mean what they say whatever the checkpoint puts in front.
    """
    test = MATCHERS[matcher](pattern)
    return bool(test(path)) or bool(test(core(path)))


def is_pattern(key: str) -> bool:
    """Whether a key is a glob or a `re:` regex rather than an exact path."""
    return key.startswith("re:") or any(sign in key for sign in "*?[")


@dataclass(frozen=True, slots=True)
class ExpertName:
    """A group's path taken apart: `block.experts[.index].projection`.

    `index` is None where the experts are stacked, and where a key has `*` for the number.
    """

    block: str
    index: int | None
    projection: str


def parse_expert(path: str) -> ExpertName | None:
    """The parts of an expert's path, or None where it is none."""
    block, found, rest = path.partition(EXPERTS)
    if not found:
        return None
    index, dot, projection = rest.partition(".")
    if dot and index.isdecimal():
        return ExpertName(block, int(index), projection)
    if dot and index == ANY_EXPERT:
        return ExpertName(block, None, projection)
    return ExpertName(block, None, rest)


@dataclass(frozen=True, slots=True)
class Rule:
    """A user's renaming: a regex and its replacement, as `re.sub` reads them."""

    match: str
    replace: str


@dataclass(frozen=True, slots=True)
class Renaming:
    """The user's rules, applied in order to tensor names and override keys alike."""

    rules: tuple[Rule, ...] = ()

    def tensor(self, name: str) -> str:
        """A tensor's name after the rules."""
        for rule in self.rules:
            name = re.sub(rule.match, rule.replace, name)
        return name

    def key(self, key: str) -> str:
        """An override key after the rules.

        A rule may be written for tensor names (`…weight$`), so each is tried on the name of the
        key's weight first, and on the key as it stands only if it changes nothing there.
        """
        name = f"{key}.weight"
        for rule in self.rules:
            renamed = re.sub(rule.match, rule.replace, name)
            if renamed == name:
                bare = strip_leaf(name)
                replaced = re.sub(rule.match, rule.replace, bare)
                renamed = name if replaced == bare else f"{replaced}.weight"
            name = renamed
        return strip_leaf(name)


class PathIndex:
    """Finds the module that a path of another namespace means.

    Args:
        paths: Every known module path.
        aliases: Paths of the checkpoint -> module paths they feed; may be empty.
    """

    def __init__(self, paths: Iterable[str], aliases: Mapping[str, str] | None = None) -> None:
        self._paths = frozenset(paths)
        self._aliases = dict(aliases or {})
        self._cores: dict[str, str | None] = {}
        for path in self._paths:
            key = core(path)
            # Two modules that differ by wrappers only cannot be told apart without them.
            self._cores[key] = None if key in self._cores else path

    def __contains__(self, path: str) -> bool:
        return path in self._paths

    def find(self, path: str) -> str | None:
        """The module path meant by `path`, or None.

        An exact module path wins over a path of the checkpoint, and that over a path that is
        equal but for its wrappers.
        """
        if path in self._paths:
            return path
        return self._aliases.get(path) or self._cores.get(core(path))
