"""Packed experts under the names of the originals, against the same codes in mlx-lm's own layers.

A tiny model is built; its linears and experts are packed one by one, as a producer does, and
written under the family's own names. Integers must give mlx-lm's logits bit for bit, for both
multiply the same codes. NVFP4 has a tensor scale per expert, for which MLX's CPU kernels have no
place: there the reference is mlx-lm's dense model of the dequantised weights, in float32.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlxpipe  # before MLX, so that both loaders find the same BLAS

# isort: split
import mlx.core as mx
from families import FAMILIES, Family, Weights, rename, whole_kv_b
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchLinear
from producers import PRODUCERS, Parts, Producer, as_affine
from roundtrip import (
    Outcome,
    StageError,
    UnfitError,
    Verdict,
    build,
    compare,
    describe,
    logits_of,
    require_telling,
    stage,
)
from tiny import architectures, tiny_config

#: How far float32 logits of the same weights may lie apart: ‖ours - theirs‖ / ‖theirs‖.
TOLERANCE = 1e-4

#: Places of a stacked expert layer below its block, the longest first.
STACKS = (".experts.switch_glu.", ".experts.switch_mlp.", ".switch_mlp.", ".experts.")

#: Last segments of linears that producers leave dense, beside everything that is named a gate.
LEFT_DENSE = frozenset({"lm_head", "gate", "router", "layer", "proj", "g_proj", "gate_layer"})


# --- families --------------------------------------------------------------------------------


def families() -> tuple[str, ...]:
    """Every architecture whose tiny model has experts, and the table's further rows."""
    own = tuple(name for name in architectures() if _has_experts(name))
    return tuple(sorted({*own, *FAMILIES}))


def _has_experts(name: str) -> bool:
    try:
        model = build(name, tiny_config(name))
    except (Exception, SystemExit):  # modules raise and exit as they like
        return False
    return any(_is_expert(path, module) for path, module in model.named_modules())


def _is_expert(path: str, module: Any) -> bool:
    return isinstance(module, SwitchLinear) or ".experts." in path


def check_all(name: str) -> Iterator[Outcome]:
    for producer in PRODUCERS:
        yield check(name, producer)


def check(name: str, producer: Producer) -> Outcome:
    """One family in one producer's layout; nothing is raised."""

    def outcome(verdict: Verdict, detail: object) -> Outcome:
        return Outcome(name, producer.name, verdict, " ".join(str(detail).split()))

    with tempfile.TemporaryDirectory(prefix="experts-") as folder:
        path = Path(folder)
        try:
            sample = stage("build", lambda: make_sample(name, producer))
            expected = stage("compute", lambda: reference_logits(sample))
            require_telling(expected)
            write(sample, path)
        except StageError as error:
            return outcome(Verdict.LIMIT, error)
        except UnfitError as error:
            return outcome(Verdict.UNFIT, error)
        dtype = "checkpoint" if producer.scheme else "float32"
        try:
            loaded, _ = mlxpipe.load(path, dtype=dtype, tokenizer=False)
            ours = logits_of(loaded)
        except Exception as error:  # whatever mlxpipe raises is a finding
            return outcome(Verdict.DIFFERS, describe(error))
    difference = compare(ours, expected) if producer.scheme else distance(ours, expected)
    if difference:
        return outcome(Verdict.DIFFERS, difference)
    return outcome(Verdict.IDENTICAL, f"{len(sample.sites)} packed layers")


def distance(ours: mx.array, theirs: mx.array) -> str:
    """What differs by more than the tolerance, "" for nothing."""
    ours, theirs = ours.astype(mx.float32), theirs.astype(mx.float32)
    masked = mx.isneginf(theirs)
    ours, theirs = mx.where(masked, 0, ours), mx.where(masked, 0, theirs)
    error = (mx.linalg.norm(ours - theirs) / mx.linalg.norm(theirs)).item()
    return "" if error < TOLERANCE else f"a relative error of {error:.3g}"


# --- a sample --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """A model and what was packed of it.

    Attributes:
        architecture: mlx-lm's module.
        family: Its row.
        producer: Who packs it.
        config: Its config.json.
        model: mlx-lm's model, dense.
        sites: Module path -> the parts of its weight, [E, …] for experts.
        latent: Path of a packed `kv_b_proj` -> its parts.
    """

    architecture: str
    family: Family
    producer: Producer
    config: dict[str, Any]
    model: Any
    sites: Mapping[str, Parts]
    latent: Mapping[str, Parts]


def make_sample(name: str, producer: Producer) -> Sample:
    family = FAMILIES.get(name, Family())
    architecture = family.architecture or name
    config = {**tiny_config(architecture), **family.fields}
    model = build(architecture, config)
    paths = [path for path, module in model.named_modules() if _is_site(path, module)]
    if not (family.fused or any(_block(path) for path in paths)) and architecture != "dbrx":
        raise UnfitError("no experts were packed")
    numbers = _numbers(family, paths)
    modules = dict(model.named_modules())
    sites = {
        path: _pack(producer, modules[path]["weight"], numbers[path]) for path in sorted(paths)
    }
    latent = _latent(model, config, producer) if family.latent else {}
    return Sample(architecture, family, producer, config, model, sites, latent)


def _latent(model: Any, config: Mapping[str, Any], producer: Producer) -> dict[str, Parts]:
    """`kv_b_proj`s, packed; the model gets the values that they then stand for."""
    dense = dict(tree_flatten(model.parameters()))
    whole = whole_kv_b(dense, config)
    packed = {
        name.removesuffix(".weight"): producer.pack(whole[name], number)
        for number, name in enumerate(sorted(whole.keys() - dense.keys()))
    }
    for path, parts in packed.items():
        stem = path.removesuffix(".kv_b_proj")
        keys, values = (dense[f"{stem}.{leaf}.weight"] for leaf in ("embed_q", "unembed_out"))
        heads = producer.dequantise(parts).reshape(keys.shape[0], -1, keys.shape[1])
        model.load_weights(
            [
                (f"{stem}.embed_q.weight", heads[:, : keys.shape[2]].swapaxes(-1, -2)),
                (f"{stem}.unembed_out.weight", heads[:, -values.shape[1] :]),
            ],
            strict=False,
        )
    return packed


def _is_site(path: str, module: Any) -> bool:
    if type(module) not in (nn.Linear, SwitchLinear):
        return False
    *_, last = path.split(".")
    rows, columns = module["weight"].shape[-2:]
    return last not in LEFT_DENSE and columns % 64 == 0 and rows % 32 == 0


def _numbers(family: Family, paths: list[str]) -> dict[str, int]:
    """A number for each site; those that the family stores as one tensor share theirs."""
    numbers: dict[tuple[str, str], int] = {}
    found = {}
    for path in paths:
        stem, _, last = path.rpartition(".")
        forms = {**family.folded, **family.fused, **family.woven}
        fused = next((form for form, parts in forms.items() if last in parts), last)
        found[path] = numbers.setdefault((stem, fused), len(numbers))
    return found


def _pack(producer: Producer, weight: mx.array, number: int) -> Parts:
    if weight.ndim == 2:
        return producer.pack(weight, number)
    experts = [producer.pack(each, number + index) for index, each in enumerate(weight)]
    return {role: mx.stack([parts[role] for parts in experts]) for role in experts[0]}


# --- the reference ---------------------------------------------------------------------------


def reference_logits(sample: Sample) -> mx.array:
    """mlx-lm's, with the same codes, or with the values that they stand for."""
    producer, model = sample.producer, sample.model
    fresh = build(sample.architecture, sample.config)
    if producer.scheme is None:
        dense = {f"{path}.weight": producer.dequantise(p) for path, p in sample.sites.items()}
        weights = {**dict(tree_flatten(model.parameters())), **dense}
        floats = {
            key: value.astype(mx.float32) if mx.issubdtype(value.dtype, mx.floating) else value
            for key, value in weights.items()
        }
        fresh.load_weights(list(floats.items()))
        return logits_of(fresh)
    nn.quantize(fresh, **producer.scheme, class_predicate=lambda path, _: path in sample.sites)
    casts = getattr(fresh, "cast_predicate", lambda _: True)
    latent = {
        name: array.astype(mx.bfloat16 if casts(name) else mx.float32)
        for name, array in tree_flatten(model.parameters())
        if sample.latent and name.split(".")[-2] in ("embed_q", "unembed_out")
    }
    codes = latent | {
        f"{path}.{role}": array
        for path, parts in sample.sites.items()
        for role, array in as_affine(parts).items()
    }
    fresh.load_weights(list(codes.items()), strict=False)
    fresh.eval()
    return logits_of(fresh)


# --- the checkpoint --------------------------------------------------------------------------


def write(sample: Sample, folder: Path, others: Weights | None = None) -> None:
    """The sample as its producer would write it, with other tensors beside it."""
    family = sample.family
    dense = {
        name: array
        for name, array in tree_flatten(sample.model.parameters())
        if name.rpartition(".")[0] not in sample.sites or name.rpartition(".")[2] != "weight"
    }
    for step in family.steps:
        dense = step(dense, sample.config)
    kept = {name: array for name, array in dense.items() if name[:-7] not in sample.latent}
    tensors = dict(_unstacked_biases(kept, sample))
    for path, parts in {**_original_layers(sample), **sample.latent}.items():
        tensors |= _spell(sample.producer, path, parts)
    tensors = {rename(name, family): array for name, array in tensors.items()} | (others or {})
    path = folder / "model.safetensors"
    mx.save_safetensors(str(path), {name: mx.contiguous(array) for name, array in tensors.items()})
    if sample.producer.scheme is None:
        _stamp_float8(path)
    config = {**sample.config, **sample.producer.config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _stamp_float8(path: Path) -> None:
    """Say of the bytes of scales that they are E4M3 numbers, a type that MLX has none for."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    for name, entry in header.items():
        if name.endswith("weight_scale"):
            entry["dtype"] = "F8_E4M3"
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[start:])


def _unstacked_biases(dense: Weights, sample: Sample) -> Iterator[tuple[str, mx.array]]:
    """Dense tensors; the additive biases of expert layers go where their weights go."""
    for name, array in dense.items():
        path, _, leaf = name.rpartition(".")
        if path in sample.sites and leaf == "bias" and _block(path):
            for where, part in _places(path, {"bias": array}, sample).items():
                yield f"{where}.bias", part["bias"]
        else:
            yield name, array


def _block(path: str) -> tuple[str, str] | None:
    """(block, projection) of a stacked expert layer."""
    for stack in STACKS:
        block, found, projection = path.partition(stack)
        if found and "." not in projection:
            return block, projection
    return None


def _places(path: str, parts: Parts, sample: Sample) -> dict[str, Parts]:
    """The family's paths of a layer's parts: one, or one for each expert."""
    family, found = sample.family, _block(path)
    if found is None:
        return {path: parts}
    block, projection = found
    own = family.names.get(projection, projection)
    if family.stacked and (sample.producer.own_stacks or family.always_stacked):
        return {family.stacked.format(b=block, p=own): parts}
    count = next(iter(parts.values())).shape[0]
    return {
        family.experts.format(b=block, e=number, p=own): {r: a[number] for r, a in parts.items()}
        for number in range(count)
    }


def _original_layers(sample: Sample) -> dict[str, Parts]:
    layers: dict[str, Parts] = {}
    for path, parts in sample.sites.items():
        layers |= _places(path, parts, sample)
    if sample.family.always_stacked or sample.producer.own_stacks:
        stacked = {path: parts for path, parts in layers.items() if parts["scales"].ndim == 3}
        rest = {path: parts for path, parts in layers.items() if path not in stacked}
        for form, members in sample.family.folded.items():
            stacked = _fold(stacked, form, members, _below)
        layers = rest | stacked
    for form, members in sample.family.fused.items():
        layers = _fold(layers, form, members, _below)
    by_turns = partial(_by_turns, heads=sample.config.get("num_key_value_heads", 1))
    for form, members in sample.family.woven.items():
        layers = _fold(layers, form, members, by_turns)
    return layers


def _below(arrays: list[mx.array]) -> mx.array:
    return mx.concatenate(arrays, axis=-2)


def _by_turns(arrays: list[mx.array], heads: int) -> mx.array:
    """[o, n] each: the first rows of all of them, then the next, for each head of keys."""
    split = [array.reshape(heads, -1, array.shape[-1]) for array in arrays]
    return mx.concatenate(split, axis=1).flatten(0, 1)


def _fold(
    layers: dict[str, Parts],
    form: str,
    members: tuple[str, ...],
    join: Callable[[list[mx.array]], mx.array],
) -> dict[str, Parts]:
    done = dict(layers)
    for path in layers:
        stem, _, last = path.rpartition(".")
        names = [f"{stem}.{member}" for member in members]
        if last == members[0] and all(name in done for name in names):
            group = [done.pop(name) for name in names]
            done[form.format(stem)] = {
                # Those that are stored as one tensor were packed with one factor.
                role: array if role == "multiplier" else join([each[role] for each in group])
                for role, array in group[0].items()
            }
    return done


def _spell(producer: Producer, path: str, parts: Parts) -> Weights:
    written = producer.finish(parts)
    return {f"{path}.{producer.leaves[role]}": array for role, array in written.items()}
