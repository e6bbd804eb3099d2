"""Rates, samples and power: published numbers, a second source, and bad input."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats import power as sm_power

from harness import stats
from tests.golden import golden


@pytest.mark.parametrize("prior", [(1.0, 1.0), (0.5, 0.5)])
def test_the_beta_interval_agrees_with_scipy(prior):
    expected = scipy_stats.beta(prior[0] + 8, prior[1] + 2).interval(0.95)
    assert stats.beta_interval(8, 10, prior=prior) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 40), st.integers(0, 40))
def test_the_beta_interval_is_mirrored_by_counting_failures(successes, failures):
    n = successes + failures + 1
    low, high = stats.beta_interval(successes, n)
    assert stats.beta_interval(n - successes, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_the_standard_error_of_a_rate_is_the_published_one():
    expected, tolerance = golden("se_math")
    found = [stats.binomial_se(p, 5000) for p in (0.655, 0.630)]
    assert found == pytest.approx(expected, abs=tolerance)


def test_asking_again_lowers_the_variance_as_published():
    """Expected scores uniform on (0, 1): variance 1/12 between items, 1/6 within."""
    expected, tolerance = golden("resample_var")
    found = {k: stats.score_variance(1 / 12, 1 / 6, int(k)) for k in expected}
    assert found == pytest.approx(expected, abs=tolerance)
    cut, tolerance = golden("resample_cut")
    assert {k: 1 - v / found["1"] for k, v in found.items()} == pytest.approx(cut, abs=tolerance)


def test_the_items_needed_are_the_published_969():
    expected, tolerance = golden("miller_n_969")
    assert stats.paired_n(1 / 9, 0.03) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("k", [1, 10])
def test_the_detectable_delta_with_answers_asked_k_times_is_the_published_one(k):
    expected, tolerance = golden(f"miller_mde_198_K{k}")
    variance = stats.score_variance(1 / 9, 2 / 6, k)
    assert stats.detectable_delta(variance, 198) == pytest.approx(expected, abs=tolerance)


def test_the_items_needed_agree_with_statsmodels():
    # A normal test for one sample, its effect in standard deviations.
    effect = 0.05 / sqrt(0.2)
    second = sm_power.NormalIndPower(ddof=0).solve_power(effect, alpha=0.05, power=0.8, ratio=0)
    assert stats.paired_n(0.2, 0.05) == pytest.approx(second, rel=1e-4)


def test_items_and_detectable_delta_are_inverse():
    assert stats.detectable_delta(0.1, stats.paired_n(0.1, 0.04)) == pytest.approx(0.04)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.binomial_se(1.2, 10),
        lambda: stats.beta_interval(1, 2, prior=(0.0, 1.0)),
        lambda: stats.score_variance(-0.1, 0.1, 1),
        lambda: stats.paired_n(0.1, 0.0),
        lambda: stats.detectable_delta(0.1, 0),
        lambda: stats.z_quantile(1.0),
        lambda: stats.clustered_mean([0.1, float("nan")], [0, 1]),
        lambda: stats.clustered_mean([], []),
        lambda: stats.paired_delta([], []),
    ],
)
def test_impossible_input_is_refused(call):
    with pytest.raises(ValueError, match=r"found|needed|must"):
        call()


# A part of a pool


def test_the_difference_estimator_has_the_published_error_on_hellaswag():
    """500 of 10,042 items at 10 % disagreement: 1.38 points."""
    base, new = np.ones(500), np.r_[np.zeros(25), np.ones(475)]
    base[475:] = 0  # 25 lost, 25 gained
    assert 100 * stats.difference_estimate(base, new, 10_042).se == pytest.approx(1.38, abs=0.01)


def test_the_difference_estimators_error_is_that_of_repeated_draws():
    rng = np.random.default_rng(0)
    pool = rng.choice([-1.0, 0.0, 1.0], 400, p=[0.1, 0.75, 0.15])
    draws = [rng.choice(pool, 100, replace=False) for _ in range(4000)]
    said = np.mean([stats.difference_estimate(np.zeros(100), d, 400).se for d in draws])
    assert said == pytest.approx(np.std([d.mean() for d in draws]), rel=0.05)


def test_a_pool_scored_in_full_has_no_error_and_a_population_has():
    base, new = np.zeros(4), np.array([0.0, 1.0, 0.0, 0.0])
    assert stats.difference_estimate(base, new, 4).se == 0
    assert stats.difference_estimate(base, new, None).se > 0
    assert stats.difference_estimate([0.0], [1.0], 9).se is None


def test_a_stratified_estimate_covers_the_pool():
    rng = np.random.default_rng(1)
    pool = {"near": rng.choice([-1.0, 0.0, 1.0], 200, p=[0.3, 0.4, 0.3]), "far": np.zeros(800)}
    pool["far"][:8] = 1.0
    truth = np.concatenate(list(pool.values())).mean()
    sizes, found = {k: len(v) for k, v in pool.items()}, []
    for _ in range(2000):
        parts = [rng.choice(v, 60, replace=False) for v in pool.values()]
        labels = ["near"] * 60 + ["far"] * 60
        found.append(stats.stratified_estimate(np.concatenate(parts), labels, sizes))
    means = np.array([f.mean for f in found])
    assert means.mean() == pytest.approx(truth, abs=0.003)
    assert np.sqrt(np.mean([f.se**2 for f in found])) == pytest.approx(means.std(), rel=0.05)


def test_one_stratum_is_the_difference_estimator():
    d = [0.0, 1.0, -1.0, 0.0, 0.0]
    one = stats.stratified_estimate(d, ["all"] * 5, {"all": 50})
    assert one == pytest.approx(stats.difference_estimate(np.zeros(5), d, 50))


def test_a_stratum_with_one_drawn_item_leaves_the_error_unknown():
    assert stats.stratified_estimate([0.0, 1.0, 0.0], ["a", "a", "b"], {"a": 9, "b": 9}).se is None


def test_neyman_gives_more_items_to_what_varies_and_never_more_than_there_are():
    found = stats.neyman_allocation({"a": 100, "b": 100, "c": 10}, {"a": 0.5, "b": 0.1, "c": 0.5}, 60)
    assert sum(found.values()) == 60
    assert found["a"] > found["b"] >= 2
    assert found["c"] <= 10


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1),
    st.floats(0, 1),
)
def test_an_allocation_adds_up_and_keeps_its_floor(strata, share):
    pool, spread = {k: v[0] for k, v in strata.items()}, {k: v[1] for k, v in strata.items()}
    low, high = sum(min(2, n) for n in pool.values()), sum(pool.values())
    n = round(low + share * (high - low))
    found = stats.neyman_allocation(pool, spread, n)
    assert sum(found.values()) == n
    assert all(min(2, pool[k]) <= found[k] <= pool[k] for k in pool)


def test_inclusion_weights_add_up_to_the_pool():
    weights = stats.inclusion_weights(["a", "a", "b"], {"a": 10, "b": 7})
    assert weights == [5, 5, 7]


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.difference_estimate([0, 0], [1, 0], 1),
        lambda: stats.stratified_estimate([0.0], ["a"], {"a": 3, "b": 4}),
        lambda: stats.neyman_allocation({"a": 3}, {"a": 0.1}, 4),
        lambda: stats.inclusion_weights(["a"], {"b": 4}),
    ],
)
def test_a_sample_that_does_not_fit_its_pool_is_refused(call):
    with pytest.raises(ValueError):  # noqa: PT011 (each says its own numbers)
        call()


# Permutation


def test_darwins_maize_has_the_published_permutation_p():
    expected, tolerance = golden("darwin")
    found = stats.sign_flip(expected["d"])
    assert found.exact
    assert found.two_sided == pytest.approx(expected["perm_two_sided"], abs=tolerance)
    assert found.greater == pytest.approx(expected["perm_one_sided"], abs=tolerance)


def test_drawn_sign_flips_agree_with_scipy():
    x = np.random.default_rng(2).normal(0.2, 1, 40)
    second = scipy_stats.permutation_test(
        (x,), np.mean, permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(3)
    )
    found = stats.sign_flip(x, seed=4)
    assert not found.exact
    assert found.two_sided == pytest.approx(second.pvalue, abs=0.02)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
def test_turning_all_signs_leaves_the_two_sided_p(x):
    assert stats.sign_flip(x).two_sided == stats.sign_flip([-v for v in x]).two_sided


def test_clusters_flip_as_a_whole():
    x = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert stats.sign_flip(x).greater == 1 / 64
    assert stats.sign_flip(x, [0, 0, 0, 1, 1, 1]).greater == 1 / 4


def test_nothing_that_differs_and_one_cluster_show_nothing():
    assert stats.sign_flip([0.0] * 30).two_sided == 1
    assert stats.sign_flip([0.3, 0.4], ["a", "a"]).two_sided == 1


@pytest.mark.parametrize("n", [1, 3, 7, 10, 50, 100, 150, 300, 7 / 3])
def test_the_interval_of_a_rate_ends_exactly_at_nothing_and_at_everything(n):
    assert stats.wilson(0, n).low == 0 < stats.wilson(0, n).high
    assert stats.wilson(n, n).high == 1 > stats.wilson(n, n).low
