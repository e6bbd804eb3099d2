"""Looks and strata: published bounds, a second way to compute them, and how often they err."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness import stats
from harness.stats import StratumFlips

THIRDS, FIFTHS = (1 / 3, 2 / 3, 1.0), (0.2, 0.4, 0.6, 0.8, 1.0)


@pytest.mark.parametrize(
    ("fractions", "published"),
    [  # Lan-DeMets bounds at one-sided 0.025, as in Jennison & Turnbull 2000 and in gsDesign's manual
        (THIRDS, (3.7103, 2.5114, 1.9930)),
        (FIFTHS, (4.8769, 3.3570, 2.6803, 2.2898, 2.0310)),
    ],
)
def test_the_bounds_are_the_published_ones(fractions, published):
    assert stats.interim_bounds(fractions, 0.025) == pytest.approx(published, abs=1e-4)


@pytest.mark.parametrize("fractions", [(0.3, 1.0), (0.25, 0.6, 1.0)])
def test_the_chance_to_cross_is_alpha_by_the_normal_of_all_looks(fractions):
    bounds = stats.interim_bounds(fractions, 0.05)
    t = np.array(fractions)
    together = np.sqrt(np.minimum.outer(t, t) / np.maximum.outer(t, t))
    kept = scipy_stats.multivariate_normal(cov=together).cdf(bounds)
    assert 1 - kept == pytest.approx(0.05, abs=2e-4)


@pytest.mark.e2e
@given(
    st.lists(st.floats(0.05, 0.95), min_size=1, max_size=3, unique=True), st.sampled_from([0.01, 0.05, 0.1])
)
def test_looking_more_often_never_makes_the_last_bound_lower(fractions, alpha):
    kept = [x for i, x in enumerate(sorted(fractions)) if i == 0 or x - sorted(fractions)[i - 1] > 1e-3]
    bounds = stats.interim_bounds([*kept, 1.0], alpha)
    assert bounds[-1] >= stats.z_quantile(1 - alpha) - 1e-6


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: stats.interim_bounds([]),
        lambda: stats.interim_bounds([0.5, 0.4, 1.0]),
        lambda: stats.interim_bounds([0.5]),
        lambda: stats.interim_bounds([1.0], 0.7),
        lambda: stats.alpha_spent(0.0),
        lambda: stats.stratified_flips_interval([StratumFlips(1, 0, 5, 4)]),
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=r"expected|sample"):
        wrong()


def test_strata_have_tangos_interval_where_asked_in_full_and_always_a_width():
    strata = [StratumFlips(3, 8, 100, 100), StratumFlips(1, 1, 200, 200)]
    assert stats.stratified_flips_interval(strata) == pytest.approx(stats.tango_interval(4, 9, 300))
    found = stats.stratified_flips_interval([StratumFlips(20, 30, 400, 4000)])
    assert found == pytest.approx(stats.tango_interval(20, 30, 400), abs=6e-4)
    low, high = stats.stratified_flips_interval([StratumFlips(0, 0, 50, 500), StratumFlips(0, 0, 50, 1000)])
    assert low < -0.03
    assert high > 0.03


@pytest.mark.e2e
def test_three_looks_at_strata_show_a_true_loss_of_the_margin_to_be_small_at_most_alpha_often():
    """Items differ as strata foresee; the delta of the population is −margin exactly."""
    rng, margin, alpha, n_runs = np.random.default_rng(0), 0.03, 0.05, 800
    pool, rates = (500, 500, 500), (0.30, 0.12, 0.04)
    looks = ((80, 50, 30), (160, 100, 60), (240, 150, 90))
    extra = margin / sum(rates) * 3  # losses beyond gains, in proportion to what differs
    chances = [(d * (1 - extra) / 2, d * (1 + extra) / 2) for d in rates]
    variance = [
        sum(d * (1 / n - 1 / 500) / 9 for d, n in zip(rates, of, strict=True)) + sum(rates) / 3 / 1500
        for of in looks
    ]
    alphas = [
        scipy_stats.norm.sf(z) for z in stats.interim_bounds([variance[-1] / v for v in variance], alpha)
    ]
    passed = 0
    for _ in range(n_runs):
        items = [rng.choice([1, -1, 0], 500, p=(g, b, 1 - g - b)) for g, b in chances]
        for sizes, own in zip(looks, alphas, strict=True):
            seen = [x[:n] for x, n in zip(items, sizes, strict=True)]
            strata = [
                StratumFlips((x > 0).sum(), (x < 0).sum(), len(x), p) for x, p in zip(seen, pool, strict=True)
            ]
            if stats.stratified_flips_interval(strata, 2 * own).low > -margin:
                passed += 1
                break
    assert passed / n_runs <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / n_runs)
    assert passed / n_runs >= alpha / 3  # and the looks are not so careful that they say nothing
