"""Claims of the blobs' metadata in an Ollama store."""

from __future__ import annotations

import pytest
from builders import AFFINE_4_64, AFFINE_8_32, AFFINE_8_64, MXFP4, MXFP8, NVFP4
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.quant.modes import Scheme
from mlxpipe.quant.ollama_dialect import Blob, read_metadata

W = "x.weight"


def read(metadata, *packed):
    return read_metadata([Blob("blob", metadata, packed or ((W, "x"),))])


def scheme(metadata):
    reading = read(metadata)
    assert reading.findings == ()
    (claim,) = reading.claims
    assert (claim.source, claim.pattern) == ("metadata", "x")
    return claim.scheme


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["nvfp4", "NVFP4", "NvFp4"], NVFP4),
        (["mxfp4", "MXFP4"], MXFP4),
        (["mxfp8", "MXFP8"], MXFP8),
        (["int4", "INT4", "fp4", "FP4", "q4", "Q4"], AFFINE_4_64),
        (["int8", "INT8", "fp8", "FP8", "q8", "Q8"], AFFINE_8_64),
    ],
)
def test_quant_types_and_their_aliases(names, expected):
    assert {scheme({"quant_type": name}) for name in names} == {expected}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"quant_type": "int4", "group_size": "32"}, Scheme("affine", 4, 32)),
        ({"quant_type": "int4", "bits": "8"}, AFFINE_8_64),
        ({"quant_type": "int4", "bits": "8", "group_size": "32"}, AFFINE_8_32),
        ({"quant_type": "int8", "mode": "mxfp8"}, MXFP8),
        ({"quant_type": "nvfp4", "mode": "affine", "bits": "8"}, AFFINE_8_64),
        ({"mode": "nvfp4"}, NVFP4),
        ({"mode": "affine", "bits": "8", "group_size": "32"}, AFFINE_8_32),
    ],
)
def test_explicit_bits_and_mode_beat_the_types_defaults(metadata, expected):
    assert scheme(metadata) == expected


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"quant_type": "int8"}, AFFINE_8_64),
        ({"mode": "mxfp4"}, MXFP4),
        ({"group_size": "16", "quant_type": "nvfp4"}, NVFP4),
    ],
)
def test_per_tensor_metadata_beats_the_blobs(own, expected):
    """And a type of its own brings its own defaults: the blob's group size is not inherited."""
    shared = {"quant_type": "int4", "group_size": "32"}
    reading = read(
        {**shared, **{f"{W}.{key}": value for key, value in own.items()}},
        (W, "x"),
        ("y.weight", "y"),
    )
    assert {claim.pattern: claim.scheme for claim in reading.claims} == {
        "x": expected,
        "y": Scheme("affine", 4, 32),
    }
    pointers = {claim.pattern: claim.origin.pointer for claim in reading.claims}
    assert pointers["x"].startswith(f"/__metadata__/{W}.")
    assert pointers["y"] == "/__metadata__/quant_type"


def test_a_tensors_own_group_size_refines_the_blobs_type():
    reading = read({"quant_type": "int4", f"{W}.group_size": "128"})
    assert [claim.scheme for claim in reading.claims] == [Scheme("affine", 4, 128)]


@pytest.mark.parametrize(
    ("metadata", "code", "pointer"),
    [
        ({"quant_type": "int5"}, "unknown-quant-type", "quant_type"),
        ({"quant_type": "Q4_K_M"}, "unknown-quant-type", "quant_type"),
        ({f"{W}.quant_type": "nvfp5"}, "unknown-quant-type", f"{W}.quant_type"),
        ({"quant_type": "int4", "group_size": "large"}, "malformed-metadata", "quant_type"),
        ({"quant_type": "int4", "bits": "4.0"}, "malformed-metadata", "quant_type"),
        ({"quant_type": "nvfp4", "group_size": "64"}, "unknown-scheme", "quant_type"),
        ({"mode": "int4"}, "unknown-scheme", "mode"),
    ],
)
def test_what_is_unknown_or_malformed_is_refused_where_it_stands(metadata, code, pointer):
    reading = read(metadata)
    (finding,) = reading.findings
    assert (finding.code, finding.severity) == (code, "error")
    assert finding.origin.pointer == f"/__metadata__/{pointer}"
    assert reading.claims == ()


def test_an_unknown_type_gets_a_near_name():
    (finding,) = read({"quant_type": "nvfp"}).findings
    assert "did you mean 'NVFP4'?" in finding.help


def test_experts_whose_blobs_disagree_are_reported():
    blobs = [
        Blob(f"blob{number}", {"quant_type": kind}, ((f"e.{number}.weight", "e"),))
        for number, kind in enumerate(["nvfp4", "nvfp4", "int4"])
    ]
    reading = read_metadata(blobs)
    assert [claim.scheme for claim in reading.claims] == [NVFP4]
    (finding,) = reading.findings
    assert finding.code == "divided-experts"
    assert "blob0" in finding.found
    assert finding.origin.file == "blob2"


def test_metadata_for_a_tensor_that_is_not_there_is_reported():
    reading = read({"quant_type": "nvfp4", "y.weight.quant_type": "int8"})
    (finding,) = reading.findings
    assert (finding.code, finding.severity) == ("unmatched-metadata", "warning")
    assert W in finding.expected


KEYS = ["quant_type", "mode", "bits", "group_size"]
TEXT = st.sampled_from(["nvfp4", "INT8", "affine", "8", "64", "-1", "²", "x", ""])


@given(
    st.dictionaries(
        st.sampled_from([*KEYS, *(f"{W}.{key}" for key in KEYS), "format"]), TEXT, max_size=6
    )
)
def test_any_metadata_gives_a_claim_or_a_finding_and_never_a_traceback(metadata):
    reading = read(metadata)
    said = any(value for key, value in metadata.items() if key.rpartition(".")[2] in KEYS)
    assert len(reading.claims) + len(reading.findings) == int(said)
    assert all(not claim.scheme.problem() for claim in reading.claims)
