"""Files beside the model's own."""

from __future__ import annotations

from dataclasses import replace

from bases import WEIGHTS, Base, Declarations, reference
from builders import read_safetensors, zeros
from mutation import LOADS, Draw, Mutation, fails, pick

#: A stray file's name -> whether it would be read as part of the model.
NAMES = {
    "model-extra.safetensors": True,
    "model-00001-of-00001.safetensors": True,
    "model-00002-of-00002.safetensors": True,
    "model.ema.safetensors": True,
    "extra.safetensors": False,
    "adapters.safetensors": False,
    "consolidated.safetensors": False,
    "._model.safetensors": False,
}

REFUSED = ("duplicate-tensor", "ambiguous-weights", "stray-shard", "missing-shard")


def stray_shard(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """Another safetensors file: the model's tensors again, or tensors that no module wants."""
    if before.stamps:
        return stray_blob(draw, base, before)
    name = pick(draw, NAMES)
    strange = {"model.layers.0.mlp.extra.weight": zeros("F16", 4, 4)}
    again = dict(list(read_safetensors(base.folder / WEIGHTS)[0].items())[:3])
    tensors = pick(draw, (strange, again))
    expected = fails(*REFUSED, "unexpected-tensor") if NAMES[name] else LOADS
    after = replace(before, shards={**before.shards, name: tensors})
    return Mutation("stray shard", f"{name}: {', '.join(tensors)}", expected, after)


def stray_blob(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """A layer of the manifest that no module wants, or a second one with a tensor of the first."""
    layer = pick(draw, sorted(before.stamps))
    name = pick(draw, (layer, "model.layers.0.mlp.extra.weight"))
    after = replace(before, shards={**before.shards, f"{name}.again": {name: zeros("F16", 4, 4)}})
    expected = fails("duplicate-tensor", "unexpected-tensor")
    return Mutation("stray blob", name, expected, after)


def stray_companion(draw: Draw, base: Base, before: Declarations) -> Mutation | None:
    """Scales for a weight that is dense."""
    dense = sorted(path for path, scheme in reference(base).truth.items() if scheme is None)
    if not dense or before.shards:
        return None
    plan = reference(base).plan
    tensor = plan.modules[pick(draw, dense)].tensors[0]
    companion = tensor.removesuffix(".weight") + ".scales"
    shards = {"model-extra.safetensors": {companion: zeros("F16", 64, 2)}}
    expected = fails("contradiction", "no-scheme", "unknown-packing", "unexpected-tensor")
    return Mutation("stray companion", companion, expected, replace(before, shards=shards))


KINDS = (stray_shard, stray_companion)
