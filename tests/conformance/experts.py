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

#: Role -> array, [E, …] for experts.
Parts = dict[str, mx.array]

#: How far float32 logits of the same weights may lie apart: ‖ours - theirs‖ / ‖theirs‖.
TOLERANCE = 1e-4

#: Places of a stacked expert layer below its block, the longest first.
STACKS = (".experts.switch_glu.", ".experts.switch_mlp.", ".switch_mlp.", ".experts.")

#: Last segments of linears that producers leave dense, beside everything that is named a gate.
LEFT_DENSE = frozenset({"lm_head", "gate", "router", "layer", "proj", "g_proj", "gate_layer"})


@dataclass(frozen=True, slots=True)
class Producer:
    """Who packs the weights, and how.

    Attributes:
        name: What reports call it.
        pack: [o, i] and the number of a site -> role -> array.
        dequantise: Parts -> [o, i] in float32.
        leaves: Role -> leaf.
        config: What config.json declares.
        scheme: What MLX computes with the same codes, None where the reference is dense.
        own_stacks: Whether it keeps stacks that the family itself stores.
        finish: What becomes of MLX's orientation [..., o, i] when it is written.
    """

    name: str
    pack: Callable[[mx.array, int], Parts]
    dequantise: Callable[[Parts], mx.array]
    leaves: Mapping[str, str]
    config: Mapping[str, Any]
    scheme: Mapping[str, Any] | None
    own_stacks: bool = False
    finish: Callable[[Parts], Parts] = dict


# --- producers -------------------------------------------------------------------------------

AFFINE = {"mode": "affine", "bits": 4, "group_size": 64}
INTEGERS = {"mode": "affine", "bits": 4, "group_size": 32}


def _affine(weight: mx.array, site: int) -> Parts:
    codes, scales, biases = mx.quantize(weight, bits=4, group_size=64)
    return {"weight": codes, "scales": scales, "biases": biases}


def _symmetric(weight: mx.array, site: int) -> Parts:
    """compressed-tensors' symmetric 4-bit integers in groups of 32, stored as u = q + 8."""
    grouped = weight.astype(mx.float32).reshape(*weight.shape[:-1], -1, 32)
    scales = (mx.abs(grouped).max(-1) / 7.5).astype(mx.bfloat16)
    steps = grouped / scales.astype(mx.float32)[..., None]
    codes = mx.clip(mx.round(steps), -8, 7) + 8
    words = codes.astype(mx.uint32).reshape(*weight.shape[:-1], -1, 8)
    packed = (words << (4 * mx.arange(8, dtype=mx.uint32))).sum(-1).astype(mx.uint32)
    return {"weight": packed.view(mx.int32), "scales": scales}


def _symmetric_as_affine(parts: Parts) -> Parts:
    return {
        "weight": parts["weight"].view(mx.uint32),
        "scales": parts["scales"],
        "biases": -8 * parts["scales"],
    }


def _values(parts: Parts, group_size: int) -> mx.array:
    parts = _as_affine(parts)
    triple = (parts["weight"], parts["scales"], parts["biases"])
    values = mx.dequantize(*triple, bits=4, group_size=group_size)
    return values.astype(mx.float32)


def _gptq(parts: Parts) -> Parts:
    """GPTQ's first format: [i/8, o], zero points of 8 stored as 7, every eight in a word."""
    scales = parts["scales"].swapaxes(-1, -2)
    points = mx.full((*scales.shape[:-1], scales.shape[-1] // 8), 0x77777777, dtype=mx.int32)
    return {"weight": parts["weight"].swapaxes(-1, -2), "scales": scales, "zero_points": points}


def _with_shape(parts: Parts) -> Parts:
    shape = [parts["weight"].shape[-2], parts["weight"].shape[-1] * 8]
    return {**parts, "shape": mx.array(shape, mx.int64)}


def _nvfp4(weight: mx.array, site: int) -> Parts:
    """ModelOpt's NVFP4; the tensor scale differs from one tensor to the next."""
    factor = mx.array(0.25 * (1 + site % 5), mx.float32)
    codes, scales = mx.quantize(
        weight.astype(mx.float32) / factor, mode="nvfp4", group_size=16, bits=4
    )
    return {"weight": codes.view(mx.uint8), "scales": scales, "multiplier": factor}


def _nvfp4_values(parts: Parts) -> mx.array:
    codes = parts["weight"].view(mx.uint32)
    values = mx.dequantize(codes, parts["scales"], mode="nvfp4", group_size=16, bits=4)
    factor = parts["multiplier"]
    return values.astype(mx.float32) * factor.reshape(
        *factor.shape, *[1] * (values.ndim - factor.ndim)
    )


PRODUCERS: tuple[Producer, ...] = (
    Producer(
        "mlx-affine",
        _affine,
        lambda parts: _values(parts, 64),
        {"weight": "weight", "scales": "scales", "biases": "biases"},
        {"quantization": AFFINE},
        AFFINE,
        own_stacks=True,
    ),
    Producer(
        "ct-int4",
        _symmetric,
        lambda parts: _values(parts, 32),
        {"weight": "weight_packed", "scales": "weight_scale", "shape": "weight_shape"},
        {
            "quantization_config": {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "quantization_status": "compressed",
                "config_groups": {
                    "group_0": {
                        "targets": ["Linear"],
                        "weights": {
                            "num_bits": 4,
                            "type": "int",
                            "symmetric": True,
                            "strategy": "group",
                            "group_size": 32,
                        },
                    }
                },
                "ignore": ["lm_head"],
            }
        },
        INTEGERS,
        finish=_with_shape,
    ),
    Producer(
        "gptq-int4",
        _symmetric,
        lambda parts: _values(parts, 32),
        {"weight": "qweight", "scales": "scales", "zero_points": "qzeros"},
        {
            "quantization_config": {
                "quant_method": "gptq",
                "checkpoint_format": "gptq",
                "bits": 4,
                "group_size": 32,
                "desc_act": False,
                "sym": True,
            }
        },
        INTEGERS,
        finish=_gptq,
    ),
    Producer(
        "modelopt-nvfp4",
        _nvfp4,
        _nvfp4_values,
        {
            "weight": "weight",
            "scales": "weight_scale",
            "multiplier": "weight_scale_2",
            "inputs": "input_scale",
        },
        {
            "quantization_config": {
                "quant_method": "modelopt",
                "quant_algo": "NVFP4",
                "group_size": 16,
                "ignore": ["lm_head"],
            }
        },
        None,
        finish=lambda parts: {**parts, "inputs": mx.array(1.0)},
    ),
)  # fmt: skip


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
        for role, array in _as_affine(parts).items()
    }
    fresh.load_weights(list(codes.items()), strict=False)
    fresh.eval()
    return logits_of(fresh)


def _as_affine(parts: Parts) -> Parts:
    return parts if "biases" in parts else _symmetric_as_affine(parts)


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
