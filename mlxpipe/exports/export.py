"""From a plan to an export: what is written is decided, then written."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import mlx.core as mx

from mlxpipe.architecture.skeleton import build_skeleton
from mlxpipe.checkpoint import Checkpoint
from mlxpipe.exports import directory, store
from mlxpipe.exports.forms import Contents, collect
from mlxpipe.exports.request import Exported, Progress, Request
from mlxpipe.plan.plan import Plan

Check = Callable[[Request, Checkpoint], None]
Write = Callable[[Plan, Checkpoint, Contents, Request, Progress], Exported]

#: Format -> what refuses a target, and what writes it.
WRITERS: Mapping[str, tuple[Check, Write]] = {
    "mlx": (directory.check, directory.write),
    "ollama": (store.check, store.write),
}


def export_model(
    plan: Plan,
    checkpoint: Checkpoint,
    request: Request,
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Export a planned model, whole or not at all, a few tensors in memory at a time.

    Args:
        plan: A sound plan of this checkpoint.
        checkpoint: The open checkpoint; it is not written to.
        request: What to write and where.
        progress: Told how many bytes are written.

    Returns:
        What was written. Equal sources give equal bytes.

    Raises:
        PlanError: the plan has problems.
        UsageError: `target-exists`, `target-in-source`, `entry-exists`.
        ExecutionError: `unsupported-modules`, `no-space`, `cannot-write`, `unfaithful-export`,
            `export-failed`, or a tensor cannot be read.
    """
    plan.require_sound()
    check, write = WRITERS[request.format]
    check(request, checkpoint)
    # On one device everywhere, so that every machine writes the same bytes.
    with mx.stream(mx.cpu):
        contents = _contents(plan, checkpoint, request)
        return write(plan, checkpoint, contents, request, progress)


def _contents(plan: Plan, checkpoint: Checkpoint, request: Request) -> Contents:
    skeleton = build_skeleton(checkpoint.config.data, vision=plan.vision)
    holder = store.hold if request.format == "ollama" else directory.holder(skeleton)
    return collect(
        plan,
        checkpoint,
        skeleton,
        holder,
        unsupported=request.unsupported,
        dtype=request.dtype,
        origin=request.origin,
    )
