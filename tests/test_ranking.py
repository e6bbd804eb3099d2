"""Ranks: what the items cannot tell apart shares one, what they can does not."""

import numpy as np
import pytest
from fake_rows import EXACT, LOWER, ratio_metric, rows

from harness import comparison
from harness.comparison import rank_with_ties
from harness.store import MetricColumns


def columns(scores, metric=EXACT, **options):
    of = rows(scores, metric, **options)
    return MetricColumns(
        tuple(r.example_id for r in of),
        tuple(r.cluster for r in of),
        tuple(r.parts[metric.name] for r in of),
        tuple(r.weight for r in of),
        tuple(r.status == "error" for r in of),
        tuple(r.references for r in of),
    )


def make_scores(n_right, n=200):
    return [1.0] * n_right + [0.0] * (n - n_right)


def test_candidates_that_cannot_be_told_apart_share_a_rank_and_errors_rank_as_wrong():
    found = {
        "best": columns(make_scores(150)),
        "near": columns(make_scores(147)),
        "far": columns(make_scores(90)),
    }
    assert rank_with_ties(EXACT, found) == {"best": 1, "near": 1, "far": 3}
    found = {"bad": columns(make_scores(150), LOWER), "good": columns(make_scores(20), LOWER)}
    assert rank_with_ties(LOWER, found) == {"good": 1, "bad": 2}
    found = {"errs": columns([1.0] * 100 + [None] * 100), "answers": columns(make_scores(150))}
    assert rank_with_ties(EXACT, found) == {"answers": 1, "errs": 2}
    assert comparison.estimate_columns(EXACT, found["errs"]).n_errors == 100


def test_who_answered_other_items_or_none_has_no_rank():
    found = {"a": columns(make_scores(150)), "b": columns(make_scores(50)), "c": columns(make_scores(9, 20))}
    assert rank_with_ties(EXACT, found) == {"a": 1, "b": 2}
    assert rank_with_ties(EXACT, {}) == {}
    unbounded = ratio_metric()
    assert rank_with_ties(unbounded, {"none": columns([None, None], unbounded)}) == {}


@pytest.mark.parametrize("options", [{}, {"cluster_size": 5}])
def test_an_estimate_of_columns_is_that_of_rows(options):
    scores = [1.0, 0.0, None, *np.random.default_rng(0).integers(0, 2, 97).astype(float)]
    expected = comparison.estimate(EXACT, rows(scores, **options))
    assert comparison.estimate_columns(EXACT, columns(scores, **options)) == expected


def test_an_estimate_of_a_ratio_is_that_of_rows():
    metric, parts = ratio_metric(), np.random.default_rng(1).uniform(1, 9, (60, 2))
    found = comparison.estimate_columns(metric, columns(parts, metric))
    assert found == comparison.estimate(metric, rows(parts, metric))
