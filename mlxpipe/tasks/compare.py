"""How far a model's predictions are from another's over a text, and which modules are worst.

Both models read the same windows (`tasks.windows`) and are compared at every scored token. Both are
in memory at once; of their logits there are those of one window.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxpipe.errors import ExecutionError, UsageError
from mlxpipe.graph.build import build_model
from mlxpipe.graph.numerics import memory_bytes
from mlxpipe.spec import CompareTask
from mlxpipe.tasks.base import Context, Outcome
from mlxpipe.tasks.divergence import ROWS, exp, kl_divergence, percentile, top1_agreement, total
from mlxpipe.tasks.layerwise import Errors, measure_errors
from mlxpipe.tasks.logits import vocabulary
from mlxpipe.tasks.reference import PlannedReference, bytes_in_memory
from mlxpipe.tasks.windows import (
    Window,
    WindowedText,
    negative_log_likelihoods,
    read_windows,
    tokenise,
)

#: How many of the worst modules people are shown.
SHOWN = 10

#: The share of the machine's memory beyond which two models are worth a warning.
TIGHT = 0.75


@dataclass(slots=True)
class Drift:
    """What is summed over the scored tokens.

    Attributes:
        divergences: KL(reference ‖ candidate) at each, nats.
        agreements: At how many both find the same token likeliest.
        reference_nats: Sum of -ln p in the reference.
        candidate_nats: The same in the candidate.
    """

    divergences: list[float] = field(default_factory=list)
    agreements: int = 0
    reference_nats: float = 0.0
    candidate_nats: float = 0.0

    def add(self, reference: mx.array, candidate: mx.array, targets: mx.array) -> None:
        """Count logits [n, V] of both models, and the tokens [n] that came."""
        for start in range(0, targets.size, ROWS):
            ours, theirs, came = (
                each[start : start + ROWS] for each in (reference, candidate, targets)
            )
            self.divergences += kl_divergence(ours, theirs).tolist()  # type: ignore[arg-type]
            self.agreements += int(total(top1_agreement(ours, theirs)))
            self.reference_nats += total(negative_log_likelihoods(ours, came))
            self.candidate_nats += total(negative_log_likelihoods(theirs, came))

    def metrics(self) -> dict[str, float | int]:
        """The contracted metrics, and what belongs to them."""
        tokens = len(self.divergences)
        return {
            "kl_divergence": math.fsum(self.divergences) / tokens,
            "kl_divergence_p99": percentile(self.divergences, 99),
            "kl_divergence_max": max(self.divergences),
            "top1_agreement": self.agreements / tokens,
            "perplexity": exp(self.candidate_nats / tokens),
            "reference_perplexity": exp(self.reference_nats / tokens),
            "perplexity_ratio": exp((self.candidate_nats - self.reference_nats) / tokens),
            "tokens": tokens,
        }


def run(context: Context, number: int, folder: Path) -> Outcome:
    """Compare over a text. Outputs: `layers` and `modules`, unless `layer_tokens` is 0."""
    task = context.loaded.spec.tasks[number]
    assert isinstance(task, CompareTask)
    planned = context.references[number]
    text = read_windows(context, task, number)
    _check_tokenizer(context, planned, text, number)
    _check_memory(context, planned, number)
    candidate = context.model
    reference = _load(context, planned)
    # Before anything runs: MLX would read past the end of the smaller embedding.
    _check_vocabulary(context, number, vocabulary(reference), vocabulary(candidate))
    drift = _drift(context, number, reference, candidate, text)
    if not task.layer_tokens:
        return Outcome(drift.metrics())
    tokens = text.tokens(text.windows[0])[:, : task.layer_tokens]
    errors = measure_errors((reference, planned.plan), (candidate, context.plan), tokens)
    _show(context, errors)
    return Outcome({**drift.metrics(), **_summary(errors)}, _write(errors, folder))


def _load(context: Context, planned: PlannedReference) -> Any:
    with context.reporter.bar("loading the reference", planned.plan.nbytes, "bytes") as advance:
        return build_model(
            planned.plan,
            planned.checkpoint,
            planned.numerics,
            lambda done, total: advance(done),
        )


def _drift(
    context: Context, number: int, reference: Any, candidate: Any, text: WindowedText
) -> Drift:
    drift = Drift()
    with context.reporter.bar("compare", len(text.windows), "windows") as advance:
        for done, window in enumerate(text.windows, 1):
            tokens = text.tokens(window)
            first = text.first(window)
            theirs = _logits(reference, text, window)
            ours = _logits(candidate, text, window)
            # An output projection may have more rows than the embedding.
            _check_vocabulary(context, number, theirs.shape[-1], ours.shape[-1])
            drift.add(theirs, ours, tokens[0, first:])
            advance(done)
    return drift


def _logits(model: Any, text: WindowedText, window: Window) -> mx.array:
    """Logits [n, V] that predict the scored tokens of a window."""
    logits: mx.array = model(text.tokens(window)[:, :-1])[0, text.first(window) - 1 :]
    mx.eval(logits)
    return logits


# --- what must be so -------------------------------------------------------------------------


def _check_tokenizer(
    context: Context, planned: PlannedReference, text: WindowedText, number: int
) -> None:
    """Refuse a reference that reads the text as other tokens."""
    from mlxpipe.architecture.tokenizer import load_tokenizer

    checkpoint = planned.checkpoint
    tokenizer = load_tokenizer(checkpoint.files, checkpoint.config.data, checkpoint.label)
    ids, _ = tokenise(tokenizer, text.text)
    if ids == text.ids:
        return
    place = next(
        (at for at, (one, other) in enumerate(zip(ids, text.ids, strict=False)) if one != other),
        min(len(ids), len(text.ids)),
    )
    raise UsageError(
        "other-tokenizer",
        f"{planned.label} reads the text as other tokens, so no token can be compared",
        origin=context.origin(number, "reference"),
        found=f"at token {place}: {_around(ids, place)} in the reference, "
        f"{_around(text.ids, place)} here",
        expected="equal token ids from both tokenizers",
        help="compare with a checkpoint of the same model family",
    )


def _around(ids: Sequence[int], place: int) -> str:
    return str(list(ids[place : place + 4])) if place < len(ids) else "the end"


def _check_vocabulary(context: Context, number: int, theirs: int | None, ours: int | None) -> None:
    if theirs is not None and ours is not None and theirs != ours:
        raise UsageError(
            "other-vocabulary",
            "the two models predict over vocabularies of different sizes",
            origin=context.origin(number, "reference"),
            found=f"{theirs} tokens in the reference, {ours} here",
            expected="equal sizes",
        )


def _check_memory(context: Context, planned: PlannedReference, number: int) -> None:
    """Refuse two models that cannot be in memory at once; warn where they hardly can."""
    ours = bytes_in_memory(context.plan, context.numerics)
    theirs = bytes_in_memory(planned.plan, planned.numerics)
    there = memory_bytes()
    found = f"{_gigabytes(theirs)} and {_gigabytes(ours)} of weights, {_gigabytes(there)} of memory"
    if ours + theirs > there:
        raise ExecutionError(
            "not-enough-memory",
            "the model and its reference are in memory together, and do not fit",
            origin=context.origin(number, "reference"),
            found=found,
            help="set model.kernels to packed where weights are dequantised, or model.dtype to "
            "16 bits on a GPU, or use a machine with more memory",
        )
    if ours + theirs > TIGHT * there:
        context.reporter.message(f"memory is tight: {found} (the reference first)")


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"


# --- what comes out --------------------------------------------------------------------------


def _summary(errors: Errors) -> dict[str, float]:
    """The worst module's own error, and the accumulated one after the last layer."""
    found: dict[str, float] = {}
    if errors.modules and errors.modules[0].own_error is not None:
        found["worst_module_error"] = errors.modules[0].own_error
    if errors.layers and errors.layers[-1].accumulated_error is not None:
        found["last_layer_error"] = errors.layers[-1].accumulated_error
    return found


def _write(errors: Errors, folder: Path) -> dict[str, Path]:
    outputs = {}
    for name, rows in zip(("layers", "modules"), errors.as_json(), strict=True):
        outputs[name] = folder / f"{name}.json"
        outputs[name].write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return outputs


def _show(context: Context, errors: Errors) -> None:
    if errors.modules and errors.modules[0].own_error == 0:
        context.reporter.message("every module gives what the reference's gives")
        return
    rows = [
        (each.path, each.scheme, each.reference_scheme, each.own_error, each.accumulated_error)
        for each in errors.modules[:SHOWN]
    ]
    columns = ("module", "here", "reference", "own error", "accumulated")
    context.reporter.table("the worst modules", columns, rows)
