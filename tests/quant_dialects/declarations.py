"""Reading declarations in tests, and which claim of a reading holds for a path."""

from __future__ import annotations

from mlxpipe.checkpoint import json_pointer
from mlxpipe.errors import Origin
from mlxpipe.naming.names import core, matches
from mlxpipe.quant.claims import Block, Reach
from mlxpipe.quant.dialects import read_block
from mlxpipe.quant.modes import Scheme

NVFP4, MXFP4, MXFP8 = Scheme("nvfp4", 4, 16), Scheme("mxfp4", 4, 32), Scheme("mxfp8", 8, 32)
FP8 = MXFP8
UNCLAIMED = "unclaimed"


def affine(bits, size):
    return Scheme("affine", bits, size)


def block(data):
    return Block(data, lambda below: Origin("config.json", pointer=json_pointer(*below)))


def read(data):
    return read_block(block(data), "config")


def clean(data):
    """The reading of a declaration without faults."""
    reading = read(data)
    assert reading.findings == ()
    return reading


def fault(data):
    """The only finding, an error, of a declaration with one fault."""
    (finding,) = read(data).findings
    assert finding.severity == "error"
    return finding


def winner(reading, path):
    """The claim that holds for a path: the last near one, else the last general one."""
    near = [claim for claim in reading.claims if _fits(claim, path)]
    general = [claim for claim in reading.claims if claim.reach is Reach.GLOBAL]
    return (near or general or [None])[-1]


def _fits(claim, path):
    if claim.reach is Reach.PATTERN:
        return matches(claim.pattern, path, claim.matcher)
    return claim.reach is Reach.PATH and core(claim.pattern) == core(path)


def says(reading, path):
    """What a reading says of a path: a scheme, None for dense, or UNCLAIMED."""
    claim = winner(reading, path)
    return claim.scheme if claim else UNCLAIMED
