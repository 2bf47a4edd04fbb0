"""Findings brought to a place that a person can go to: the shard that holds a tensor.

What groups, stacks and binds tensors knows their names alone, and names the tensor as the place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from mlxpipe.checkpoint import Checkpoint, json_pointer
from mlxpipe.errors import Diagnostic, MlxpipeError, Origin


def located(finding: Diagnostic, checkpoint: Checkpoint) -> Diagnostic:
    """The finding at its tensor in a shard's header; one without a place is at the checkpoint."""
    if finding.origin is None:
        return replace(finding, origin=Origin(checkpoint.label))
    tensor = checkpoint.tensors.get(finding.origin.file)
    if tensor is None:
        return finding
    shard = checkpoint.shards[tensor.shard]
    return replace(finding, origin=Origin(shard.label, pointer=json_pointer(tensor.name)))


@contextmanager
def locating(checkpoint: Checkpoint) -> Iterator[None]:
    """Brings the findings of an error that passes to their places."""
    try:
        yield
    except MlxpipeError as error:
        error.diagnostics = tuple(located(item, checkpoint) for item in error.diagnostics)
        raise
