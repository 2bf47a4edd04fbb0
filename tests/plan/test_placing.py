"""Rows as runs, and which experts a pattern covers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mlxpipe.naming.groups import Run
from mlxpipe.naming.leftovers import leftovers
from mlxpipe.naming.names import matches
from mlxpipe.plan.experts import covered
from mlxpipe.plan.placing import runs


@given(st.lists(st.integers(0, 40), max_size=30))
def test_runs_hold_the_rows_in_their_order(rows):
    assert [row for run in runs(rows) for row in range(*run)] == rows


def test_equal_steps_are_one_run():
    assert runs([0, 2, 4, 7, 8]) == (Run(0, 5, 2), Run(7, 9, 1))
    assert runs(list(range(64))) == (Run(0, 64),)


STEMS = [f"model.layers.3.mlp.experts.{number}.down_proj" for number in range(12)]
PATTERNS = st.sampled_from(
    [
        "*.experts.*.down_proj",
        "*.experts.1?.down_proj",
        "*.experts.[0-4].*",
        "*.3.down_proj",
        "model.layers.3.*",
        "*.up_proj",
        r"re:experts\.\d+\.down",
        r"re:experts\.(1|7|11)\.",
        r"re:experts\.1",
        "re:layers.4.*experts",
    ]
)


@given(PATTERNS, st.sampled_from(["glob", "substring", "segments"]))
def test_a_pattern_covers_the_experts_that_it_fits(pattern, matcher):
    fitting = {number for number, stem in enumerate(STEMS) if matches(pattern, stem, matcher)}
    found = covered(pattern, matcher, STEMS)
    assert (set(range(12)) if found is None else found) == fitting


def test_what_is_left_out_depends_on_what_the_architecture_has():
    config = {"num_hidden_layers": 2, "num_nextn_predict_layers": 1, "tie_word_embeddings": True}
    paths = ["model.layers.0.mlp", "model.vision_tower.patch"]
    rule = leftovers(config, paths)
    assert rule.reason("model.visual.blocks.0") == "sees images"
    assert rule.reason("model.vision_tower.blocks.0") == ""
    assert rule.reason("lm_head") == "is tied to the embedding"
    assert rule.reason("model.layers.2.eh_proj") == "drafts tokens ahead"
    assert rule.reason("model.layers.1.eh_proj") == rule.reason("model.layers.3.eh_proj") == ""
    assert rule.reason("model.visuals.blocks.0") == ""
