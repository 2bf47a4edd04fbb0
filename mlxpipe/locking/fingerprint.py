"""Fingerprints: one digest of all that decides a task's result, to recognise a finished one.

The same as a lock binds, for one task, and beside it what a lock leaves open: this machine, how it
computes here, and mlxpipe's own code.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

from mlxpipe.locking.digests import canonical_digest
from mlxpipe.locking.lock import Lock
from mlxpipe.locking.versions import code_digest, versions
from mlxpipe.spec import LoadedSpec, PathUse, path_values

#: Sections of a spec's meaning that judge results and do not make them.
JUDGES = frozenset({"expect"})


def fingerprints(loaded: LoadedSpec, lock: Lock, numerics: Mapping[str, Any]) -> dict[str, str]:
    """Task id -> fingerprint.

    Args:
        loaded: The spec.
        lock: Its lock of here and now.
        numerics: Device, dtype and kernels as chosen.
    """
    settings = {key: value for key, value in lock.spec.items() if key not in JUDGES | {"tasks"}}
    common = {
        "files": {name: each.sha256 for name, each in (lock.files | lock.tokenizer).items()},
        "table": lock.table.sha256,
        "settings": settings,
        "numerics": {key: value for key, value in numerics.items() if key != "reason"},
        "versions": versions(),
        "code": code_digest(),
        "platform": platform.platform(),
    }
    return {
        task.id: canonical_digest(
            {
                **common,
                "task": lock.spec["tasks"][task.id],
                "data": {
                    key.removeprefix(f"{task.id}."): each.binding
                    for key, each in lock.data.items()
                    if key.startswith(f"{task.id}.")
                },
                # A result that lies elsewhere is found only where it was written.
                "writes": [
                    str(loaded.resolve(value.text).absolute())
                    for value in path_values(task)
                    if value.use is PathUse.WRITE
                ],
            }
        )
        for task in loaded.spec.tasks
    }
