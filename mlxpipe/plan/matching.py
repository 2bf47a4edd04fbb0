"""Which claims speak of which modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mlxpipe.errors import Diagnostic, nearest
from mlxpipe.naming.experts import any_expert, collapse_path, targets
from mlxpipe.naming.names import PathIndex, Renaming, matches, parse_expert, strip_leaf
from mlxpipe.plan.experts import Covering, covered, unanimous
from mlxpipe.quant.claims import Claim, Reach


@dataclass(frozen=True, slots=True)
class Matched:
    """Claims sorted by module.

    Attributes:
        by_module: Path -> claims that apply, in the order of their sources; globals included.
        unmatched: Claims on paths and patterns that fit nothing.
        elsewhere: Claims that fit something that has no scheme to decide -> what it is.
        problems: Experts of one layer that are claimed to differ.
    """

    by_module: Mapping[str, tuple[Claim, ...]]
    unmatched: tuple[Claim, ...]
    elsewhere: tuple[tuple[Claim, str], ...]
    problems: tuple[Diagnostic, ...] = ()


@dataclass(frozen=True, slots=True)
class Namespace:
    """All that a key may mean.

    Attributes:
        modules: Paths with a weight that a scheme can be about -> all names they go by, those of
            the checkpoint included.
        index: Finds the module that a path means.
        renaming: The user's rules.
        others: Paths that exist and have no scheme (norms, unloaded tensors) -> what they are.
        experts: Stacked modules -> their experts' paths in the checkpoint, by number.
    """

    modules: Mapping[str, tuple[str, ...]]
    index: PathIndex
    renaming: Renaming
    others: Mapping[str, str]
    experts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    _other_index: PathIndex = field(init=False, repr=False)
    _fed: Mapping[str, Sequence[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_other_index", PathIndex(self.others))
        fed: dict[str, list[str]] = {}
        for path, names in self.modules.items():
            for name in names:
                if name not in self.modules:
                    fed.setdefault(name, []).append(path)
        object.__setattr__(self, "_fed", fed)

    def meant(self, claim: Claim) -> Iterator[tuple[str, frozenset[int] | None]]:
        """The modules that a claim's key means, and the experts of each; None: all of it."""
        if claim.reach is Reach.PATTERN:
            yield from self._fitting(claim)
            return
        key = strip_leaf(self.renaming.key(strip_leaf(claim.pattern)))
        direct = self.index.find(key)
        if direct is not None:
            yield from ((path, None) for path in self._fed.get(key, (direct,)))
            return
        expert = parse_expert(key)
        number = expert.index if expert else None
        for path in targets(collapse_path(key), self.index.find):
            if number is None or path not in self.experts:
                yield path, None
            elif number < len(self.experts[path]):
                yield path, frozenset({number})

    def _fitting(self, claim: Claim) -> Iterator[tuple[str, frozenset[int] | None]]:
        for path, names in self.modules.items():
            if any(matches(claim.pattern, name, claim.matcher) for name in names):
                yield path, None
            elif path in self.experts:
                cover = covered(claim.pattern, claim.matcher, self.experts[path])
                if cover is None or cover:
                    yield path, cover

    def other(self, claim: Claim) -> str | None:
        """What else a claim's key means: something that has no scheme."""
        if claim.reach is Reach.PATTERN:
            hits = (path for path in self.others if matches(claim.pattern, path, claim.matcher))
            return next((self.others[path] for path in hits), None)
        key = strip_leaf(self.renaming.key(strip_leaf(claim.pattern)))
        found = map(self._other_index.find, (key, any_expert(key), collapse_path(key)))
        path = next((path for path in found if path is not None), None)
        return None if path is None else self.others[path]


def match_claims(
    claims: Iterable[Claim], namespace: Namespace, precedence: Sequence[str]
) -> Matched:
    """Sort claims by the modules they speak of.

    Args:
        claims: In the order that lets the later one of a source win.
        namespace: All that their keys may mean.
        precedence: Names of the sources, the most trusted first.
    """
    listed = list(claims)
    by_module: dict[str, list[Covering]] = {path: [] for path in namespace.modules}
    unmatched: list[Claim] = []
    elsewhere: list[tuple[Claim, str]] = []
    for claim in listed:
        if claim.reach is Reach.GLOBAL:
            for applied in by_module.values():
                applied.append((claim, None))
            continue
        meant = [each for each in namespace.meant(claim) if each[0] in by_module]
        for path, cover in meant:
            by_module[path].append((claim, cover))
        if not meant:
            other = namespace.other(claim)
            if other is None and not claim.optional:
                unmatched.append(claim)
            elif other is not None and not claim.optional:
                elsewhere.append((claim, other))
    problems: list[Diagnostic] = []
    return Matched(
        {
            path: unanimous(path, found, len(namespace.experts.get(path, ())), precedence, problems)
            for path, found in by_module.items()
        },
        tuple(unmatched),
        tuple(elsewhere),
        tuple(problems),
    )


def describe_unmatched(claim: Claim, paths: Iterable[str]) -> Diagnostic:
    """An override that fits no module, with the nearest names that exist."""
    near = nearest(claim.pattern, paths, 2)
    return Diagnostic(
        "unmatched-override",
        f"{claim.source} declares '{claim.pattern}' {claim}, and no module has that name",
        origin=claim.origin,
        module=claim.pattern,
        help=("near names: " + ", ".join(near) + "; " if near else "")
        + "correct it, rename it with naming.rules, or allow it with quantization.allow_unmatched",
    )


def allowed(claim: Claim, globs: Iterable[str], renamed: Callable[[str], str]) -> bool:
    """Whether the spec allows a claim to match nothing."""
    keys = {claim.pattern, strip_leaf(claim.pattern), renamed(strip_leaf(claim.pattern))}
    return any(matches(glob, key) for glob in globs for key in keys)
