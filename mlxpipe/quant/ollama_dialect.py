"""What Ollama writes into each blob's `__metadata__`: `quant_type` and `group_size`.

Bare keys speak of every packed tensor in the blob, `<W>.quant_type` of tensor W alone. Ollama's
importer stamps the model's global scheme on each blob, so for a path that config.json overrides the
stamp is wrong: it is a claim like any other, not a fact. Source: Ollama's `x/create` and
`x/models`. Unlike Ollama, an unknown type is an error here, not 8-bit affine with groups of 32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlxpipe.errors import Diagnostic, Origin, nearest
from mlxpipe.quant.claims import Claim, Reach, Reading
from mlxpipe.quant.modes import Scheme, complete

#: quant_type in capitals -> scheme where group_size is omitted.
QUANT_TYPES: Mapping[str, Scheme] = {
    "NVFP4": Scheme("nvfp4", 4, 16),
    "MXFP4": Scheme("mxfp4", 4, 32),
    "MXFP8": Scheme("mxfp8", 8, 32),
    **dict.fromkeys(("INT4", "FP4", "Q4"), Scheme("affine", 4, 64)),
    **dict.fromkeys(("INT8", "FP8", "Q8"), Scheme("affine", 8, 64)),
}

KEYS = ("quant_type", "mode", "bits", "group_size")


@dataclass(frozen=True, slots=True)
class Blob:
    """One shard as this dialect needs it.

    Attributes:
        label: What diagnostics call the file.
        metadata: Its header's `__metadata__`.
        packed: Its packed main tensors, each with the path it feeds; a fused tensor feeds several.
    """

    label: str
    metadata: Mapping[str, str]
    packed: tuple[tuple[str, str], ...]


def read_metadata(blobs: Iterable[Blob], source: str = "metadata") -> Reading:
    """The claims that blobs make of their packed tensors."""
    claims: dict[str, Claim] = {}
    findings: list[Diagnostic] = []
    for blob in blobs:
        findings += _strangers(blob)
        for tensor, path in blob.packed:
            fields, origin = _fields(blob, tensor)
            if not fields:
                continue
            outcome = _scheme(fields, origin) if fields.keys() - {"group_size"} else _lone(origin)
            if isinstance(outcome, Diagnostic):
                findings.append(outcome)
                continue
            claim = _claim(source, path, outcome, fields, origin)
            earlier = claims.setdefault(path, claim)
            if earlier.scheme != claim.scheme:
                findings.append(_divided(earlier, claim))
    return Reading(tuple(claims.values()), tuple(findings))


def _divided(first: Claim, second: Claim) -> Diagnostic:
    return Diagnostic(
        "divided-experts",
        f"the blobs of '{first.pattern}' do not agree, and a stacked layer needs one scheme",
        origin=second.origin,
        found=f"{second} here, {first} at {first.origin}",
        help="say which is right in the spec's quantization.overrides",
        module=first.pattern,
        severity="warning",
    )


def _claim(
    source: str, path: str, scheme: Scheme, fields: Mapping[str, str], origin: Origin
) -> Claim:
    stamp = ", ".join(f"{key} {value}" for key, value in fields.items())
    return Claim(source, scheme, Reach.PATH, path, origin, f"the blob's stamp: {stamp}")


def _fields(blob: Blob, tensor: str) -> tuple[dict[str, str], Origin]:
    """What the blob says of one tensor: its own keys, over the blob's."""
    own = {key: value for key in KEYS if (value := blob.metadata.get(f"{tensor}.{key}"))}
    shared = {key: value for key in KEYS if (value := blob.metadata.get(key))}
    prefix = f"{tensor}." if own else ""
    first = next((key for key in KEYS if key in (own or shared)), "")
    pointer = f"/__metadata__/{prefix}{first}"
    # A type of its own brings its own defaults, so the blob's group size does not reach it.
    fields = own if "quant_type" in own or "mode" in own else {**shared, **own}
    return fields, Origin(blob.label, pointer=pointer)


def _scheme(fields: Mapping[str, str], origin: Origin) -> Scheme | Diagnostic:
    name = fields.get("quant_type", "")
    default = QUANT_TYPES.get(name.upper())
    if name and default is None:
        return _unknown_type(name, origin)
    try:
        numbers = {key: int(fields[key]) for key in ("bits", "group_size") if key in fields}
    except ValueError:
        return Diagnostic(
            "malformed-metadata",
            "a blob's metadata holds something other than a number",
            origin=origin,
            found=", ".join(f"{key}: {value!r}" for key, value in fields.items()),
            expected="whole numbers for bits and group_size",
        )
    mode = fields.get("mode", default.mode if default else None)
    same_mode = default is not None and default.mode == mode
    bits = numbers.get("bits", default.bits if default and same_mode else None)
    size = numbers.get("group_size", default.group_size if default and same_mode else None)
    try:
        return complete(mode, bits, size)
    except ValueError as problem:
        return Diagnostic("unknown-scheme", str(problem), origin=origin)


def _lone(origin: Origin) -> Diagnostic:
    return Diagnostic(
        "malformed-metadata",
        "a blob's metadata has a group size and no quant_type: it names no scheme",
        origin=origin,
        severity="warning",
    )


def _unknown_type(name: str, origin: Origin) -> Diagnostic:
    near = nearest(name.upper(), QUANT_TYPES)
    return Diagnostic(
        "unknown-quant-type",
        f"unknown quant_type '{name}'",
        origin=origin,
        expected="one of " + ", ".join(QUANT_TYPES),
        help=f"did you mean '{near[0]}'?" if near else "declare the scheme in the spec's overrides",
    )


def _strangers(blob: Blob) -> list[Diagnostic]:
    """Keys for a tensor that is not among the blob's packed ones."""
    known = {tensor for tensor, _ in blob.packed}
    return [
        Diagnostic(
            "unmatched-metadata",
            f"the metadata names '{tensor}', which is no packed tensor of this blob",
            origin=Origin(blob.label, pointer=f"/__metadata__/{key}"),
            expected="one of " + ", ".join(sorted(known)) if known else "",
            severity="warning",
        )
        for key in blob.metadata
        if key.endswith(".quant_type") and (tensor := key.removesuffix(".quant_type")) not in known
    ]
