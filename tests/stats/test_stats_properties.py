"""Invariances of the statistics; recovery of a power law with a floor; tied ranks of candidates."""

import numpy as np
import pytest
from fake_rows import EXACT, LOWER, ratio_metric, rows
from golden import golden
from hypothesis import given
from hypothesis import strategies as st

from harness import stats
from harness.analysis import comparison
from harness.analysis.comparison import estimate_columns, rank_with_ties
from harness.stats import Interval, fit_power_law
from harness.store import MetricColumns

changes = st.lists(st.floats(-1, 1), min_size=6, max_size=30)
shifts = st.floats(-3, 3)
counts = st.integers(0, 40)
seeds = st.integers(0, 2**32 - 1)


@given(st.lists(st.floats(-1, 1), min_size=8, max_size=30), shifts)
def test_a_constant_shift_moves_the_clustered_t_interval(x, shift):
    clusters = np.arange(len(x)) // 2
    plain = stats.t_interval(stats.clustered_mean(x, clusters))
    moved = stats.t_interval(stats.clustered_mean(np.add(x, shift), clusters))
    assert moved == pytest.approx([end + shift for end in plain], abs=1e-9)


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=8), shifts
)
def test_a_constant_shift_moves_the_macro_and_so_does_turning_its_sign(tasks, shift):
    deltas = [d for d, _, _ in tasks]
    ends = [Interval(d - below, d + above) for d, below, above in tasks]
    mean, (low, high) = stats.mover_mean(deltas, ends)
    moved = stats.mover_mean([d + shift for d in deltas], [Interval(a + shift, b + shift) for a, b in ends])
    turned = stats.mover_mean([-d for d in deltas], [Interval(-b, -a) for a, b in ends])
    assert (moved[0], *moved[1]) == pytest.approx((mean + shift, low + shift, high + shift), abs=1e-9)
    assert (turned[0], *turned[1]) == pytest.approx((-mean, -high, -low), abs=1e-9)


@given(counts, counts)
def test_swapping_the_arms_leaves_mcnemar_and_mirrors_a_win_rate(wins, losses):
    assert stats.mcnemar(wins, losses) == stats.mcnemar(losses, wins)
    if wins + losses:
        won, lost = stats.win_rate(wins, losses), stats.win_rate(losses, wins)
        assert (lost.rate, lost.low, lost.high) == pytest.approx((1 - won.rate, 1 - won.high, 1 - won.low))


@given(changes, seeds)
def test_permuting_the_items_changes_nothing(x, seed):
    order = np.random.default_rng(seed).permutation(len(x))
    y, clusters = np.array(x), np.arange(len(x)) % 3
    figures = [
        (
            stats.design_effect(y[o], clusters[o]),
            stats.count_differing_clusters(y[o], clusters[o]),
            stats.clustered_mean(y[o], clusters[o]).se,
        )
        for o in (np.arange(len(x)), order)
    ]
    assert figures[1] == pytest.approx(figures[0], abs=1e-9)


SIZES = [50, 100, 200, 400, 800]
EQUAL = [1.0] * 5


def test_the_constructed_curve_is_recovered_and_scipy_finds_the_same():
    expected, _ = golden("powerlaw_recover")
    fit = fit_power_law(expected["D"], expected["err"], EQUAL)
    params = [float(estimate[0]) for estimate in fit]
    assert params == pytest.approx(expected["abc"], rel=1e-5)
    assert fit.at(6400)[0] == pytest.approx(expected["pred_6400"], abs=1e-6)
    from scipy.optimize import curve_fit

    errors = np.array([0.52, 0.40, 0.33, 0.27, 0.24])
    weights = np.array([1.0, 2.0, 2.0, 3.0, 4.0])
    theirs, _ = curve_fit(
        lambda n, e, b, c: e + b * n**-c, np.array(SIZES, float), errors, (0.1, 2, 0.5), sigma=weights**-0.5
    )
    ours = fit_power_law(SIZES, errors, weights)
    assert [float(estimate[0]) for estimate in ours] == pytest.approx(list(theirs), rel=1e-3)


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        ([1, 2, 3], [1.0] * 3),
        ([1, 2, 3, 3], [1.0] * 4),
        ([0, 1, 2, 3], [1.0] * 4),
        ([1, 2, 3, 4], [1, 1, 1, 0]),
    ],
)
def test_sizes_that_fit_nothing_are_refused(sizes, weights):
    with pytest.raises(ValueError, match="sizes"):
        fit_power_law(sizes, [0.5] * len(sizes), weights)


def columns(scores, metric=EXACT, **options):
    scored = rows(scores, metric, **options)
    return MetricColumns(
        tuple(r.example_id for r in scored), tuple(r.cluster for r in scored),
        tuple(r.parts[metric.name] for r in scored), tuple(r.weight for r in scored),
        tuple(r.status == "error" for r in scored), tuple(r.references for r in scored),
    )  # fmt: skip


def make_scores(n_right, n=200):
    return [1.0] * n_right + [0.0] * (n - n_right)


def test_candidates_that_cannot_be_told_apart_share_a_rank_and_errors_rank_as_wrong():
    arms = {
        "best": columns(make_scores(150)),
        "near": columns(make_scores(147)),
        "far": columns(make_scores(90)),
    }
    assert rank_with_ties(EXACT, arms) == {"best": 1, "near": 1, "far": 3}
    arms = {"bad": columns(make_scores(150), LOWER), "good": columns(make_scores(20), LOWER)}
    assert rank_with_ties(LOWER, arms) == {"good": 1, "bad": 2}
    arms = {"errs": columns([1.0] * 100 + [None] * 100), "answers": columns(make_scores(150))}
    assert rank_with_ties(EXACT, arms) == {"answers": 1, "errs": 2}
    assert estimate_columns(EXACT, arms["errs"]).n_errors == 100


def test_who_answered_other_items_or_none_has_no_rank():
    arms = {"a": columns(make_scores(150)), "b": columns(make_scores(50)), "c": columns(make_scores(9, 20))}
    assert rank_with_ties(EXACT, arms) == {"a": 1, "b": 2}
    assert rank_with_ties(EXACT, {}) == {}
    unbounded = ratio_metric()
    assert rank_with_ties(unbounded, {"none": columns([None, None], unbounded)}) == {}


@pytest.mark.parametrize("options", [{}, {"cluster_size": 5}])
def test_an_estimate_of_columns_is_that_of_rows(options):
    scores = [1.0, 0.0, None, *np.random.default_rng(0).integers(0, 2, 97).astype(float)]
    expected = comparison.estimate(EXACT, rows(scores, **options))
    assert estimate_columns(EXACT, columns(scores, **options)) == expected


def test_an_estimate_of_a_ratio_is_that_of_rows():
    metric, parts = ratio_metric(), np.random.default_rng(1).uniform(1, 9, (60, 2))
    result = estimate_columns(metric, columns(parts, metric))
    assert result == comparison.estimate(metric, rows(parts, metric))
