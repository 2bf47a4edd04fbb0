"""Which tensors become which parameters: `sanitize`'s outputs against the architecture's table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from mlxpipe.architecture.lineage import Lineage
from mlxpipe.architecture.skeleton import Module, Skeleton
from mlxpipe.errors import MOST, Diagnostic, Origin, nearest
from mlxpipe.naming.groups import Group
from mlxpipe.naming.names import core
from mlxpipe.plan.plan import TURNED, Parameter
from mlxpipe.quant.dialects.fields import CACHE_SCALE
from mlxpipe.quant.verify import Array

#: Leaves that a packed module has beside its dense parameters -> the role they play.
COMPANION_LEAVES = {
    "scales": "scales",
    "biases": "biases",
    "global_scale": "amax",
    "multiplier": "multiplier",
    "permutation": "permutation",
}


#: The output projection, which a model with tied embeddings does not have.
HEAD = "lm_head"


#: A word in the names of parts that hear.
AUDIO = "audio"

#: Companions that change what a layer computes -> what they are.
FATAL_LEAVES = {
    "pre_quant_scale": "a scale of the inputs (AWQ or SmoothQuant in ModelOpt)",
    "rotation": "a rotation of the inputs (QuaRot, SpinQuant)",
    "svdquant_lora_a": "a low-rank branch (SVDQuant)",
    "svdquant_lora_b": "a low-rank branch (SVDQuant)",
    "weight_scale_3": "a third level of scales",
}

#: Scales of a quantised cache, which mlxpipe keeps in full precision.
CACHE_LEAVES = frozenset({"k_scale", "v_scale", "kv_scale", "q_scale", "prob_scale"})


@dataclass(frozen=True, slots=True)
class Binding:
    """The outcome of matching names.

    Attributes:
        parameters: Parameter name -> where it comes from.
        arrays: Parameter name -> dtype and shape of what comes.
        problems: Missing, unexpected and misshapen tensors.
        notes: Companions that were left over when their tensor was dropped.
        unloaded: Canonical names that became no parameter.
    """

    parameters: Mapping[str, Parameter]
    arrays: Mapping[str, Array]
    problems: tuple[Diagnostic, ...]
    notes: tuple[Diagnostic, ...]
    unloaded: tuple[str, ...]


def bind(
    skeleton: Skeleton,
    lineages: Mapping[str, Lineage],
    groups: Mapping[str, Group],
    homes: Mapping[str, str],
) -> Binding:
    """Match `sanitize`'s outputs with the parameters that the model expects.

    Args:
        skeleton: The architecture.
        lineages: Output name -> lineage, from `trace_sanitize`.
        groups: Path -> group.
        homes: Every name that went into `sanitize` -> path of its group.
    """
    tensors = {name: _sources(name, groups[path]) for name, path in homes.items()}
    expected = skeleton.parameters
    names = _align(lineages, expected, skeleton.modules)
    parameters: dict[str, Parameter] = {}
    arrays: dict[str, Array] = {}
    problems: list[Diagnostic] = []
    notes: list[Diagnostic] = []
    for output, lineage in lineages.items():
        name = names.get(output)
        sources = tuple(dict.fromkeys(t for each in lineage.inputs for t in tensors[each]))
        if name is None:
            if output.rpartition(".")[2] in CACHE_LEAVES:
                notes.append(_cache_scale(output, sources))
                continue
            orphan = _is_orphan(output, lineages, tensors, expected)
            (notes if orphan else problems).append(_unexpected(output, sources, expected, orphan))
            continue
        parameters[name] = Parameter(name, output, lineage.inputs, lineage.operations, sources)
        arrays[name] = Array(lineage.dtype, lineage.shape)
        if _is_unturned(lineage, expected.get(name)):
            parameters[name] = replace(parameters[name], instead=TURNED)
            arrays[name] = Array(lineage.dtype, expected[name])
    problems += _missing_all(skeleton, parameters, tensors)
    problems += _misshapen(skeleton.modules, arrays, parameters)
    used = {each for parameter in parameters.values() for each in parameter.inputs}
    unloaded = tuple(name for name in tensors if name not in used)
    return Binding(parameters, arrays, tuple(problems), tuple(notes), unloaded)


def _is_unturned(lineage: Lineage, expected: tuple[int, ...] | None) -> bool:
    """Whether `sanitize` left a depthwise convolution with PyTorch's axes [C, 1, K].

    One that turns it only along with dense experts (qwen3_next) does not where those are packed.
    """
    shape = lineage.shape
    return len(shape) == 3 and shape[1] == 1 != shape[2] and expected == (shape[0], shape[2], 1)


def _sources(name: str, group: Group) -> tuple[str, ...]:
    """The checkpoint's tensors behind a name; what a layout computes comes from its weight."""
    named = {group.canonical(role): group.names(role) for role in group.parts}
    return named.get(name) or group.names("weight")


def _align(
    lineages: Mapping[str, Lineage], expected: Iterable[str], modules: Mapping[str, Module]
) -> dict[str, str]:
    """Output name -> parameter name; a name that differs by wrappers only is found as well."""
    wanted = set(expected)
    packable = {path for path, module in modules.items() if module.quantisable}
    known = wanted | {f"{path}.{leaf}" for path in packable for leaf in COMPANION_LEAVES}
    names = {output: output for output in lineages if output in known}
    taken = set(names)
    by_core = {core(name): name for name in known if name not in taken}
    for output in lineages:
        name = by_core.get(core(output))
        if output not in names and name is not None and name not in taken:
            names[output] = name
            taken.add(name)
    return names


def _is_orphan(
    output: str,
    lineages: Mapping[str, Lineage],
    tensors: Mapping[str, tuple[str, ...]],
    expected: Iterable[str],
) -> bool:
    """A companion whose weight `sanitize` dropped, or of a head that is tied: it goes too."""
    path, _, leaf = output.rpartition(".")
    weight = f"{path}.weight"
    if leaf not in COMPANION_LEAVES or weight in lineages:
        return False
    if core(path) == HEAD and all(core(name) != core(weight) for name in expected):
        return True
    return core(weight) in {core(name) for name in tensors}


def _unexpected(
    output: str, sources: tuple[str, ...], expected: Iterable[str], orphan: bool
) -> Diagnostic:
    origin = Origin(sources[0]) if sources else None
    if orphan:
        return Diagnostic(
            "left-over-companion",
            f"'{output}' is left out, because the architecture has no use for its weight",
            origin=origin,
            severity="note",
        )
    leaf = output.rpartition(".")[2]
    if leaf in FATAL_LEAVES:
        return Diagnostic(
            "unsupported-companion",
            f"'{output}' changes the values of its layer in a way that mlxpipe does not compute",
            origin=origin,
            found=FATAL_LEAVES[leaf],
            help="export the checkpoint with it folded into the weights",
        )
    near = nearest(output, expected, 2)
    return Diagnostic(
        "unexpected-tensor",
        f"no module of the architecture has a parameter '{output}'",
        origin=origin,
        found=", ".join(sources[:3]),
        expected=("near names: " + ", ".join(near)) if near else "",
        help="rename it with naming.rules, or say with naming.drop that nothing wants it",
    )


def _cache_scale(output: str, sources: tuple[str, ...]) -> Diagnostic:
    return Diagnostic(
        CACHE_SCALE,
        f"'{output}' is left out: the cache is kept in full precision",
        origin=Origin(sources[0]) if sources else None,
        module=output,
        severity="note",
    )


def _missing_all(
    skeleton: Skeleton,
    parameters: Mapping[str, Parameter],
    tensors: Mapping[str, tuple[str, ...]],
) -> Iterator[Diagnostic]:
    """What has no tensor; a part that is missing whole is one problem.

    A missing audio part is none: mlx-vlm builds one where config.json does not say that there is
    none, and leaves it out again.
    """
    absent = skeleton.parts_without(parameters)
    for part in absent:
        if AUDIO not in part.split("_"):
            yield _missing_part(part, skeleton)
    missing = [
        name
        for name in skeleton.parameters
        if name not in parameters and name.partition(".")[0] not in absent
    ]
    for number, name in enumerate(missing):
        # Names are compared at length, and no list of findings is longer.
        yield _missing(name, tensors if number < MOST else {})


def _missing_part(part: str, skeleton: Skeleton) -> Diagnostic:
    return Diagnostic(
        "missing-part",
        f"the checkpoint has no tensors for '{part}', and a task has `images`",
        module=part,
        expected=f"every part of mlx-vlm's {skeleton.name}",
        help="take a checkpoint with its vision part; naming.drop may have dropped it; "
        "without `images` the language model runs alone",
    )


def _missing(name: str, tensors: Mapping[str, tuple[str, ...]]) -> Diagnostic:
    near = nearest(name, tensors, 2)
    return Diagnostic(
        "missing-tensor",
        f"the architecture needs '{name}', and the checkpoint has no tensor for it",
        module=name.rpartition(".")[0],
        found=("near names: " + ", ".join(near)) if near else "",
        help="a shard may be missing; or the tensor has another name (naming.rules)",
    )


def _misshapen(
    modules: Mapping[str, Module],
    arrays: Mapping[str, Array],
    parameters: Mapping[str, Parameter],
) -> list[Diagnostic]:
    """Shapes that differ from the architecture's; the columns of packed weights are the judge's."""
    problems = []
    for path, module in modules.items():
        packed = f"{path}.scales" in arrays
        for leaf, shape in module.parameters.items():
            name = f"{path}.{leaf}" if path else leaf
            array = arrays.get(name)
            if array is None:
                continue
            rows_only = packed and leaf == "weight"
            found, wanted = (array.shape[:-1], shape[:-1]) if rows_only else (array.shape, shape)
            if found != wanted:
                problems.append(_shape_problem(name, array, shape, rows_only, parameters[name]))
    return problems


def _shape_problem(
    name: str, array: Array, shape: tuple[int, ...], rows_only: bool, parameter: Parameter
) -> Diagnostic:
    what = "rows" if rows_only else "shape"
    return Diagnostic(
        "shape-mismatch",
        f"'{name}' has another {what} than the architecture expects",
        origin=Origin(parameter.tensors[0]) if parameter.tensors else None,
        module=name.rpartition(".")[0],
        found=str(array),
        expected=f"{list(shape)}" + (" before packing" if rows_only else ""),
        help="config.json and the tensors are not of the same model",
    )
