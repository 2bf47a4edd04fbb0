"""Open a model of the Hugging Face hub: fetch what is needed into its cache, then read that.

A commit that is in the cache is read without a word on the network. A branch or tag is asked for,
because it moves; without a network the cached state of it is used. Weights are chosen before they
are fetched: the shards of the index, else `model*.safetensors`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlxpipe.checkpoint.directory import scan_directory
from mlxpipe.checkpoint.index import INDEX, index_shards
from mlxpipe.checkpoint.inventory import Checkpoint
from mlxpipe.errors import Origin, SourceError

DOCUMENTS = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken")
"""What is fetched beside the weights; never code."""

_WEIGHTS = (("model*.safetensors",), ("*.safetensors",))
"""Without an index: what to try, in this order."""

_REPO = re.compile(r"(?=.{1,96}$)(?!.*(?:--|\.\.))(?:[\w.-]+/)?[\w.-]*\w", re.ASCII)
_REVISION = re.compile(r"(?!.*(?:\.\.|//))[\w][\w./+-]{0,254}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")

_INCOMPLETE = frozenset({"hub-offline", "no-weights", "missing-shard", "missing-path"})
"""A cached snapshot that gives one of these was fetched by somebody who needed less."""

Fetch = Callable[[Mapping[str, Any]], Path]
"""Fetch files with further options of `snapshot_download`, and say in which directory they are."""


def open_hub(
    repo: str,
    revision: str | None = None,
    progress: bool = True,
    cache_dir: str | Path | None = None,
) -> Checkpoint:
    """Open a repository of the Hugging Face hub.

    Args:
        repo: `org/name`.
        revision: A commit, branch or tag; by default the repository's main branch.
        progress: Show progress bars while downloading.
        cache_dir: The cache; by default the hub library's own (`$HF_HUB_CACHE`).

    Raises:
        SourceError: `bad-repo-id`, `bad-revision`, `hub-not-found`, `hub-gated`,
            `hub-revision-not-found`, `hub-offline`, `hub-failed`, or as for
            `mlxpipe.checkpoint.directory.open_directory`.
    """
    _check_name(repo, revision)
    where = {"revision": revision, "cache_dir": cache_dir}
    cached = partial(_fetch, repo, where | {"local_files_only": True})
    if revision and _COMMIT.fullmatch(revision):
        with suppress(_NotCachedError):
            return _open_cached(repo, cached)
    try:
        _reach(repo, revision)
    except SourceError as unreachable:
        try:
            return _open_cached(repo, cached)
        except _NotCachedError as error:
            raise unreachable from error.__cause__
    return _open(repo, partial(_fetch, repo, where | _progress_option(progress)))


class _NotCachedError(Exception):
    """The cache has nothing of the repository, or only a part of it."""


def _open_cached(repo: str, cached: Fetch) -> Checkpoint:
    try:
        return _open(repo, cached)
    except SourceError as error:
        if error.code in _INCOMPLETE:
            raise _NotCachedError from error
        raise


def _reach(repo: str, revision: str | None) -> None:
    """Ask the hub for the revision, once: `snapshot_download` retries for half a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(repo, revision=revision, timeout=10)
    except Exception as error:  # of httpx, the hub library, the operating system
        raise _hub_fault(error, repo, revision) from error


def _check_name(repo: str, revision: str | None) -> None:
    if not _REPO.fullmatch(repo) or repo.endswith(".git") or repo.startswith(("-", ".")):
        raise SourceError(
            "bad-repo-id",
            f"{repo[:200]!r} is not the name of a repository on the Hugging Face hub",
            expected="org/name, of letters, digits, '-', '_' and '.'",
            help="for a directory on this machine use source.path",
        )
    if revision is not None and not _REVISION.fullmatch(revision):
        raise SourceError(
            "bad-revision",
            f"{revision[:200]!r} is not a revision",
            expected="a commit of 40 hexadecimal digits, a branch or a tag",
        )


def _open(repo: str, fetch: Fetch) -> Checkpoint:
    root = fetch({"allow_patterns": list(DOCUMENTS)})
    commit = root.name
    pinned = {"revision": commit} if _COMMIT.fullmatch(commit) else {}
    for patterns in _weight_patterns(root, repo):
        root = fetch({"allow_patterns": [*DOCUMENTS, *patterns], **pinned})
        if any(root.glob("*.safetensors")):
            break
    return replace(scan_directory(root, repo, "hub"), revision=commit)


def _weight_patterns(root: Path, repo: str) -> Sequence[Sequence[str]]:
    if (root / INDEX).is_file():
        return (index_shards(root / INDEX, f"{repo}/{INDEX}"),)
    return _WEIGHTS


def _fetch(repo: str, options: Mapping[str, Any], more: Mapping[str, Any]) -> Path:
    """One `snapshot_download` of files at the repository's top, its failures as SourceErrors."""
    # Late, because it takes a quarter of a second and most specs name a directory.
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, ignore_patterns=["*/*"], **{**options, **more}))
    except Exception as error:  # of httpx, the hub library, the file system
        raise _hub_fault(error, repo, options.get("revision")) from error


def _progress_option(progress: bool) -> dict[str, Any]:
    if progress:
        return {}
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": True})

    return {"tqdm_class": Silent}


_FAULTS: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "HFValidationError": ("bad-repo-id", "is not a repository's name", "use org/name"),
        "GatedRepoError": (
            "hub-gated",
            "is gated, and this account has no access",
            "accept its terms at https://huggingface.co/{repo}, then: hf auth login",
        ),
        "RepositoryNotFoundError": (
            "hub-not-found",
            "does not exist, or is private",
            "check the name; for a private repository: hf auth login",
        ),
        "RevisionNotFoundError": (
            "hub-revision-not-found",
            "has no revision {revision}",
            "check source.revision at https://huggingface.co/{repo}/commits",
        ),
        "LocalEntryNotFoundError": (
            "hub-offline",
            "is not in the cache (or only a part of it), and the hub cannot be reached",
            "on a machine with a network run: hf download {repo}{option}\nand copy its cache here",
        ),
        "TransportError": (
            "hub-offline",
            "is not in the cache, and the hub cannot be reached",
            "on a machine with a network run: hf download {repo}{option}\nand copy its cache here",
        ),
        "OfflineModeIsEnabled": (
            "hub-offline",
            "is not in the cache, and HF_HUB_OFFLINE is set",
            "unset HF_HUB_OFFLINE, or run: hf download {repo}{option}",
        ),
    }
)
"""By the name of the hub library's exception, most special first: code, what, what to do."""


def _hub_fault(error: Exception, repo: str, revision: str | None) -> SourceError:
    # By name along the class's ancestors: the classes themselves need the hub library's import.
    names = [ancestor.__name__ for ancestor in type(error).__mro__]
    fault = next((_FAULTS[name] for name in names if name in _FAULTS), None)
    code, what, advice = fault or (
        "hub-failed",
        "could not be fetched",
        "try again; check the network, the disk and https://status.huggingface.co",
    )
    values = {
        "repo": repo,
        "revision": revision or "main",
        "option": f" --revision {revision}" if revision else "",
    }
    return SourceError(
        code,
        f"{repo} {what.format(**values)}",
        origin=Origin(repo),
        help=advice.format(**values),
        notes=(f"{type(error).__name__}: {str(error).strip()[:400]}",),
    )
