"""From claims to a verdict: the cases by name, then the laws."""

from __future__ import annotations

import pytest
from builders import AFFINE_4_64, AFFINE_8_32, AFFINE_8_64, MXFP4, NVFP4, evidence
from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.errors import Origin
from mlxpipe.quant.claims import Claim, Reach
from mlxpipe.quant.merge import SHAPES, Fate, judge
from mlxpipe.quant.modes import MODES, Scheme
from mlxpipe.quant.verify import contradiction, solutions
from mlxpipe.spec import BUILT_IN_SOURCES

PATH, GLOBAL, PATTERN = Reach.PATH, Reach.GLOBAL, Reach.PATTERN
ORDER = BUILT_IN_SOURCES
ALL = [
    Scheme(mode.name, bits, size)
    for mode in MODES.values()
    for bits in mode.bits
    for size in mode.group_sizes
]


def claim(source, scheme, reach=PATH):
    pattern = "" if reach is GLOBAL else "x"
    return Claim(source, scheme, reach, pattern, Origin(f"{source}.json", pointer="/x"))


def fates(verdict):
    return [(judged.claim.source, judged.fate) for judged in verdict.judged]


# --- cases -----------------------------------------------------------------------------------


def test_per_path_beats_global_whatever_the_precedence():
    claims = [claim("spec", NVFP4, GLOBAL), claim("metadata", AFFINE_8_64)]
    verdict = judge("x", claims, evidence(AFFINE_8_64, 8, 128), ORDER)
    assert (verdict.scheme, verdict.source) == (AFFINE_8_64, "metadata")
    assert fates(verdict) == [("metadata", Fate.WON), ("spec", Fate.GENERAL)]


def test_a_pattern_is_as_near_as_a_path():
    claims = [claim("config", AFFINE_8_64), claim("spec", AFFINE_4_64, PATTERN)]
    verdict = judge("x", claims, evidence(AFFINE_4_64, 8, 128), ORDER)
    assert (verdict.scheme, verdict.source) == (AFFINE_4_64, "spec")


def test_within_a_source_the_later_rule_wins():
    claims = [claim("spec", AFFINE_4_64, PATTERN), claim("spec", AFFINE_8_64, PATTERN)]
    verdict = judge("x", claims, evidence(AFFINE_8_64, 8, 128), ORDER)
    assert verdict.scheme == AFFINE_8_64
    assert [judged.fate for judged in verdict.judged] == [Fate.WON, Fate.OVERRULED]


def test_global_affine_4_64_keeps_its_4_bits_where_the_shapes_leave_several():
    """The product of 4/64 is that of 8/32 and 2/128; a global mode alone would not tell."""
    for scheme in (AFFINE_4_64, AFFINE_8_32):
        verdict = judge(
            "x", [claim("config", scheme, GLOBAL)], evidence(scheme, 8, 128, known=False), ORDER
        )
        assert (verdict.scheme, verdict.source) == (scheme, "config")


def test_a_global_that_the_tensors_contradict_is_set_aside_with_a_warning():
    verdict = judge("x", [claim("config", NVFP4, GLOBAL)], evidence(AFFINE_8_64, 8, 128), ORDER)
    assert (verdict.scheme, verdict.source) == (AFFINE_8_64, SHAPES)
    assert fates(verdict) == [("config", Fate.SET_ASIDE)]
    (warning,) = verdict.warnings
    assert (warning.code, warning.module) == ("global-set-aside", "x")


def test_a_contradicted_global_is_an_error_where_the_shapes_leave_several():
    found = evidence(AFFINE_4_64, 8, 128, known=False)
    verdict = judge("x", [claim("config", NVFP4, GLOBAL)], found, ORDER)
    assert verdict.problem.code == "contradiction"
    assert fates(verdict) == [("config", Fate.CONTRADICTED)]


def test_a_global_says_nothing_of_dense_weights():
    verdict = judge("x", [claim("config", NVFP4, GLOBAL)], evidence(None, 8, 128), ORDER)
    assert verdict.dense
    assert verdict.warnings == ()
    assert fates(verdict) == [("config", Fate.GENERAL)]


@pytest.mark.parametrize("scheme", [None, NVFP4], ids=["dense", "packed"])
def test_where_nobody_claims_the_shapes_decide(scheme):
    verdict = judge("x", [], evidence(scheme, 8, 128), ORDER)
    assert (verdict.scheme, verdict.source, verdict.problem) == (scheme, SHAPES, None)
    assert verdict.dense == (scheme is None)


def test_where_nobody_claims_and_the_shapes_leave_several_it_stays_open():
    verdict = judge("x", [], evidence(AFFINE_4_64, 8, 128, known=False), ORDER)
    assert (verdict.scheme, verdict.problem, verdict.dense) == (None, None, False)
    assert AFFINE_4_64 in verdict.open


@pytest.mark.parametrize(
    ("scheme", "claimed"),
    [(AFFINE_4_64, AFFINE_8_64), (None, NVFP4), (NVFP4, None)],
    ids=["bits", "packed though dense", "dense though packed"],
)
def test_a_claim_on_a_path_that_the_tensors_contradict_is_an_error(scheme, claimed):
    verdict = judge("x", [claim("config", claimed)], evidence(scheme, 8, 128), ORDER)
    assert (verdict.scheme, verdict.dense) == (None, False)
    assert verdict.problem.code == "contradiction"
    assert verdict.problem.origin == Origin("config.json", pointer="/x")
    assert verdict.problem.help.startswith("override it in the spec")


def test_a_loser_that_contradicts_the_tensors_was_stale_and_a_feasible_one_conflicts():
    found = evidence(AFFINE_4_64, 8, 128, known=False)
    claims = [claim("config", AFFINE_4_64), claim("metadata", NVFP4), claim("sidecar", AFFINE_8_32)]
    verdict = judge("x", claims, found, ORDER)
    assert fates(verdict) == [
        ("config", Fate.WON),
        ("metadata", Fate.STALE),
        ("sidecar", Fate.CONFLICT),
    ]


@pytest.mark.parametrize(
    ("reach", "advice"),
    [(PATH, "trust metadata over config"), (GLOBAL, "override it in the spec")],
)
def test_the_advice_names_a_source_only_where_precedence_would_help(reach, advice):
    """A global cannot beat a claim on the path, however it is ranked."""
    claims = [claim("config", AFFINE_8_64), claim("metadata", AFFINE_4_64, reach)]
    verdict = judge("x", claims, evidence(AFFINE_4_64, 8, 128), ORDER)
    assert advice in verdict.problem.help


@pytest.mark.parametrize("place", range(5))
def test_shapes_may_be_ranked_as_high_as_one_likes(place):
    order = [name for name in ORDER if name != SHAPES]
    order.insert(place, SHAPES)
    claims = [claim("config", NVFP4)]
    verdict = judge("x", claims, evidence(AFFINE_8_64, 8, 128), order)
    trusted = order.index("config") < order.index(SHAPES)
    assert (verdict.problem is None, verdict.source) == (
        (False, "config") if trusted else (True, SHAPES)
    )
    assert fates(verdict) == [("config", Fate.CONTRADICTED if trusted else Fate.STALE)]


def test_tensors_that_fit_no_scheme_are_an_error_of_their_own():
    found = evidence(NVFP4, 8, 128)
    broken = type(found)(found.weight, found.scales, found.biases, in_features=100)
    verdict = judge("x", [], broken, ORDER)
    assert verdict.problem.code == "no-scheme"
    assert "no MLX scheme" in verdict.problem.found


# --- laws ------------------------------------------------------------------------------------

#: Few schemes, so that claims often agree, and fit the tensors, and fit them by accident.
SCHEMES = st.sampled_from([AFFINE_4_64, AFFINE_8_32, AFFINE_8_64, NVFP4, MXFP4])
EVIDENCE = st.builds(
    evidence, SCHEMES | st.none(), st.just(8), st.sampled_from([128, 256]), known=st.booleans()
)
ORDERS = st.permutations(ORDER)


@st.composite
def any_claim(draw, source=None):
    reach = draw(st.sampled_from(Reach))
    schemes = SCHEMES if reach is GLOBAL else SCHEMES | st.none()
    names = st.sampled_from([name for name in ORDER if name != SHAPES])
    return claim(source or draw(names), draw(schemes), reach)


CLAIMS = st.lists(any_claim(), max_size=6)
DISTINCT = st.sets(st.sampled_from(ORDER[:-1])).flatmap(
    lambda sources: st.tuples(*(any_claim(source) for source in sorted(sources)))
)


@given(DISTINCT, EVIDENCE, ORDERS, st.randoms())
def test_the_verdict_depends_on_precedence_and_not_on_the_order_of_sources(
    claims, found, order, random
):
    shuffled = random.sample(claims, len(claims))
    assert judge("x", claims, found, order) == judge("x", shuffled, found, order)


@given(CLAIMS, EVIDENCE, ORDERS)
def test_a_claim_on_a_path_beats_every_global(claims, found, order):
    verdict = judge("x", claims, found, order)
    first = [judged.claim.reach for judged in verdict.judged if judged.fate is Fate.WON]
    if any(each.reach is not GLOBAL for each in claims):
        assert GLOBAL not in first
        assert not verdict.with_fate(Fate.SET_ASIDE) or verdict.source == SHAPES


@given(CLAIMS, EVIDENCE, ORDERS)
def test_schemes_are_whole_records(claims, found, order):
    verdict = judge("x", claims, found, order)
    if verdict.scheme is not None:
        said = {each.scheme for each in claims if each.source == verdict.source}
        assert verdict.scheme in (said or set(solutions(found)))


@given(CLAIMS, EVIDENCE, ORDERS)
def test_a_verdict_without_a_problem_never_contradicts_the_tensors(claims, found, order):
    verdict = judge("x", claims, found, order)
    if verdict.problem is None and not verdict.open:
        assert contradiction(verdict.scheme, found) == ""


@given(CLAIMS, EVIDENCE, ORDERS)
def test_every_claim_has_exactly_one_fate(claims, found, order):
    verdict = judge("x", claims, found, order)
    heard = [id(judged.claim) for judged in verdict.judged]
    assert sorted(heard) == sorted(map(id, claims))
    assert len(verdict.with_fate(Fate.WON)) + len(verdict.with_fate(Fate.CONTRADICTED)) <= 1


@given(CLAIMS, EVIDENCE, st.permutations(ORDER[:-1]))
def test_inference_never_overrides_a_valid_claim(claims, found, order):
    """With the shapes last, the nearest and most trusted claim holds if it can."""
    order = [*order, SHAPES]
    nearest = [each for each in claims if each.reach is not GLOBAL] or claims
    best = min((order.index(each.source) for each in nearest), default=None)
    if best is None:
        return
    winner = [each for each in nearest if each.source == order[best]][-1]
    if contradiction(winner.scheme, found) == "":
        verdict = judge("x", claims, found, order)
        assert (verdict.scheme, verdict.source) == (winner.scheme, winner.source)


@given(CLAIMS, EVIDENCE, ORDERS)
def test_a_loser_is_stale_only_if_the_tensors_say_so(claims, found, order):
    verdict = judge("x", claims, found, order)
    for judged in verdict.judged:
        impossible = contradiction(judged.claim.scheme, found) != ""
        if judged.fate in (Fate.STALE, Fate.CONTRADICTED):
            assert impossible
        if judged.fate in (Fate.WON, Fate.CONFLICT):
            assert not impossible
