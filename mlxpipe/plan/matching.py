"""Which claims speak of which modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from mlxpipe.errors import Diagnostic, nearest
from mlxpipe.naming.experts import collapse_path, targets
from mlxpipe.naming.names import PathIndex, Renaming, matches, parse_expert, strip_leaf
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
    """

    modules: Mapping[str, tuple[str, ...]]
    index: PathIndex
    renaming: Renaming
    others: Mapping[str, str]
    _other_index: PathIndex = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_other_index", PathIndex(self.others))

    def meant(self, claim: Claim) -> tuple[str, ...]:
        """The modules that a claim's key means, () for none."""
        if claim.reach is Reach.PATTERN:
            return tuple(
                path
                for path, names in self.modules.items()
                if any(matches(claim.pattern, name, claim.matcher) for name in names)
            )
        key = strip_leaf(self.renaming.key(strip_leaf(claim.pattern)))
        direct = self.index.find(key)
        if direct is not None:
            return (direct,)
        return targets(collapse_path(key), self.index.find)

    def other(self, claim: Claim) -> str | None:
        """What else a claim's key means: something that has no scheme."""
        if claim.reach is Reach.PATTERN:
            hits = (path for path in self.others if matches(claim.pattern, path, claim.matcher))
            return next((self.others[path] for path in hits), None)
        key = strip_leaf(self.renaming.key(strip_leaf(claim.pattern)))
        path = self._other_index.find(key)
        return None if path is None else self.others[path]


def match_claims(claims: Iterable[Claim], namespace: Namespace) -> Matched:
    """Sort claims by the modules they speak of."""
    listed = list(claims)
    by_module: dict[str, list[Claim]] = {path: [] for path in namespace.modules}
    unmatched: list[Claim] = []
    elsewhere: list[tuple[Claim, str]] = []
    for claim in listed:
        if claim.reach is Reach.GLOBAL:
            for applied in by_module.values():
                applied.append(claim)
            continue
        meant = [path for path in namespace.meant(claim) if path in by_module]
        for path in meant:
            by_module[path].append(claim)
        if not meant:
            other = namespace.other(claim)
            if other is None and not claim.optional:
                unmatched.append(claim)
            elif other is not None and not claim.optional:
                elsewhere.append((claim, other))
    problems: list[Diagnostic] = []
    return Matched(
        {path: _unanimous(path, found, problems) for path, found in by_module.items()},
        tuple(unmatched),
        tuple(elsewhere),
        tuple(problems),
    )


def _unanimous(path: str, claims: list[Claim], problems: list[Diagnostic]) -> tuple[Claim, ...]:
    """Claims on single experts as one, for a stacked layer has one scheme."""
    kept: list[Claim] = []
    experts: dict[str, Claim] = {}
    for claim in claims:
        name = parse_expert(claim.pattern) if claim.reach is Reach.PATH else None
        if name is None or name.index is None:
            kept.append(claim)
            continue
        first = experts.setdefault(claim.source, claim)
        if first is claim:
            kept.append(claim)
        elif first.scheme != claim.scheme:
            problems.append(_divided(path, first, claim))
            break
    return tuple(kept)


def _divided(path: str, first: Claim, second: Claim) -> Diagnostic:
    return Diagnostic(
        "divided-experts",
        f"{first.source} declares the experts of '{path}' differently, and a stacked layer has "
        "one scheme",
        origin=second.origin,
        module=path,
        found=f"'{first.pattern}' {first}, '{second.pattern}' {second}",
        help="declare one scheme for all of them in the spec's quantization.overrides",
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
