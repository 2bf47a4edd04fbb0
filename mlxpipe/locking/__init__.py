"""What a run depends on, as digests: locks that pin it and fingerprints that recognise it.

Read in this order: `lock` (the value), `state` (the value of here and now), `lockfile` (on disk),
`differences` (what is not as locked), `check` (making and comparing).
"""

from mlxpipe.locking.cache import DigestCache
from mlxpipe.locking.check import State, compare, require_locked, take
from mlxpipe.locking.digests import Digests, canonical_digest, tree_digest
from mlxpipe.locking.lock import Lock
from mlxpipe.locking.lockfile import dump_lock, lock_path, parse_lock, read_lock, write_lock
from mlxpipe.locking.state import take_lock

__all__ = [
    "DigestCache",
    "Digests",
    "Lock",
    "State",
    "canonical_digest",
    "compare",
    "dump_lock",
    "lock_path",
    "parse_lock",
    "read_lock",
    "require_locked",
    "take",
    "take_lock",
    "tree_digest",
    "write_lock",
]
