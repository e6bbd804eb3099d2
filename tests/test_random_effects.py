"""Random effects over seeds: against a second source, and what must not change them."""

from math import sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from harness import stats

deltas = st.lists(st.floats(-1, 1), min_size=3, max_size=8)


def test_without_error_over_items_the_interval_is_students_t_over_seeds():
    x = [0.71, 0.75, 0.80, 0.69]
    found = stats.random_effects_interval(stats.random_effects(x, [0.0] * 4))
    expected = scipy_stats.ttest_1samp(x, 0.0).confidence_interval()
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_without_error_over_items_the_p_is_students():
    x = [0.02, 0.05, -0.01]
    found = stats.random_effects_p(stats.random_effects(x, [0.0] * 3))
    assert found == pytest.approx(scipy_stats.ttest_1samp(x, 0.0).pvalue)


def test_the_errors_over_items_and_over_seeds_add_up():
    found = stats.random_effects([0.1, 0.2, 0.3], [0.03, 0.03, 0.03])
    assert found.se == pytest.approx(sqrt(0.03**2 + 0.1**2 / 3))
    assert (found.df, found.seed_sd) == (2, pytest.approx(0.1))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_with_fewer_than_three_seeds_nothing_is_known(n):
    assert stats.random_effects([0.1] * n, [0.02] * n) is None


def test_a_third_seed_changes_the_interval():
    two_more = [stats.random_effects([0.1, 0.2, x], [0.02] * 3) for x in (0.15, 0.6)]
    assert stats.random_effects_interval(two_more[0]) != stats.random_effects_interval(two_more[1])


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        stats.random_effects([0.1, 0.2, float("nan")], [0.1] * 3)
    with pytest.raises(ValueError, match="finite"):
        stats.random_effects([0.1, 0.2, 0.3], [0.1, -0.1, 0.1])


def test_seeds_that_agree_exactly_show_a_difference_and_equal_ones_show_none():
    same = stats.random_effects([0.1] * 3, [0.0] * 3)
    none = stats.random_effects([0.0] * 3, [0.0] * 3)
    assert (stats.random_effects_p(same), stats.random_effects_p(none)) == (pytest.approx(0), 1)


@given(deltas)
def test_turning_all_signs_mirrors_the_interval(x):
    low, high = stats.random_effects_interval(stats.random_effects(x, [0.01] * len(x)))
    mirrored = stats.random_effects([-d for d in x], [0.01] * len(x))
    assert stats.random_effects_interval(mirrored) == pytest.approx((-high, -low), abs=1e-9)


@given(deltas, st.floats(0, 0.2))
def test_a_larger_error_over_items_never_narrows(x, more):
    narrow, wide = (stats.random_effects(x, [se] * len(x)).se for se in (0.05, 0.05 + more))
    assert wide >= narrow


def test_the_interval_covers_when_items_and_seeds_both_vary():
    """Items shared by all seeds: coverage is at least the nominal one, from seeds alone to items alone."""
    rng = np.random.default_rng(0)
    for seed_sd, n in ((0.05, 400), (0.01, 100), (0.0, 100)):
        covered = 0
        for _ in range(1000):
            shared = rng.normal(0, 0.4, n)
            own = rng.normal(0, 0.2, (3, n)) + rng.normal(0, seed_sd, 3)[:, None] + shared
            estimates, errors = own.mean(axis=1), own.std(axis=1, ddof=1) / sqrt(n)
            low, high = stats.random_effects_interval(stats.random_effects(estimates, errors))
            covered += low < 0 < high
        assert covered >= 935
