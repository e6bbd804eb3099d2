"""Anytime-valid tests and charts: published numbers, properties, and how often they err."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize

from harness import stats
from tests.golden import golden

counts = st.integers(0, 40)


def test_the_sign_e_value_is_the_published_one():
    expected, tolerance = golden("e_sign")
    for key, values in expected.items():
        losses, gains = (int("".join(filter(str.isdigit, part))) for part in key.split())
        assert stats.sign_e_value(gains, losses) == pytest.approx(values["KT"], abs=tolerance)
        assert stats.sign_e_value(gains, losses, 1.0) == pytest.approx(values["uniform"], abs=tolerance)


def test_the_sign_e_value_is_the_integral_of_the_likelihood_ratio():
    def ratio(p):
        return (2 * p) ** 12 * (2 * (1 - p)) ** 5

    assert stats.sign_e_value(5, 12, 1.0) == pytest.approx(integrate.quad(ratio, 0, 1)[0])


@given(counts, counts)
def test_swapping_the_arms_leaves_the_evidence(gains, losses):
    assert stats.sign_e_value(gains, losses) == pytest.approx(stats.sign_e_value(losses, gains))


@given(counts, counts)
def test_the_expected_evidence_of_the_next_item_is_todays(gains, losses):
    """A martingale: under equal chances the mean over gain and loss is the value before."""
    after = (stats.sign_e_value(gains + 1, losses) + stats.sign_e_value(gains, losses + 1)) / 2
    assert after == pytest.approx(stats.sign_e_value(gains, losses))


def test_many_gains_are_no_alarm():
    assert stats.sign_alarm(1, 12)
    assert not stats.sign_alarm(12, 1)
    assert not stats.sign_alarm(5, 5)
    assert stats.sign_e_value(0, 5000) > 1e100  # and does not overflow


def crossings(n_runs, n_looks, seed, draw, evidence):
    rng = np.random.default_rng(seed)
    return np.mean([evidence(draw(rng, n_looks)).max() >= 20 for _ in range(n_runs)])


def test_betting_rarely_shows_non_inferiority_at_a_true_loss_of_the_margin():
    def draw(rng, n):
        return rng.choice([-1.0, 0.0, 1.0], n, p=[0.06, 0.90, 0.04])

    rate = crossings(1500, 1000, 0, draw, lambda d: stats.betting_process(d, 0.02))
    assert rate <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1500)


def test_betting_shows_non_inferiority_of_an_equal_model_in_time():
    def draw(rng, n):
        return rng.choice([-1.0, 0.0, 1.0], n, p=[0.02, 0.96, 0.02])

    assert crossings(200, 3000, 1, draw, lambda d: stats.betting_process(d, 0.05)) > 0.9


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50), st.floats(0.01, 0.5))
def test_wealth_is_never_negative_and_never_looks_ahead(changes, margin):
    whole = stats.betting_process(changes, margin)
    part = stats.betting_process(changes[: max(1, len(changes) // 2)], margin)
    assert (whole > 0).all()
    assert whole[: len(part)] == pytest.approx(part)


def test_the_normal_mixture_boundary_is_the_published_one():
    expected, tolerance = golden("normal_mixture")
    rho = stats.normal_mixture_rho(250)
    assert rho == pytest.approx(expected["rho_opt_v250_a05"], abs=tolerance)
    for v, radius in expected["radius"].items():
        assert stats.normal_mixture_radius(float(v), rho) == pytest.approx(radius, abs=tolerance)


def test_the_rho_chosen_makes_the_boundary_smallest():
    best = optimize.minimize_scalar(lambda rho: float(stats.normal_mixture_radius(250, rho)), bounds=(1, 200))
    assert stats.normal_mixture_rho(250) == pytest.approx(best.x, rel=1e-3)


@pytest.mark.parametrize("sequence", [stats.normal_mixture_sequence, stats.betting_sequence])
def test_a_confidence_sequence_holds_the_mean_at_all_times(sequence):
    rng, missed = np.random.default_rng(2), 0
    for _ in range(150):
        low, high = sequence(rng.beta(2, 6, 300), (0.0, 1.0))
        missed += bool((low > 0.25).any() or (high < 0.25).any())
    assert missed / 150 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


@pytest.mark.parametrize("sequence", [stats.normal_mixture_sequence, stats.betting_sequence])
def test_a_confidence_sequence_only_narrows_and_stays_within_the_bounds(sequence):
    low, high = sequence(np.random.default_rng(3).uniform(-1, 1, 200), (-1.0, 1.0))
    assert (np.diff(low) >= -1e-12).all()
    assert (np.diff(high) <= 1e-12).all()
    assert low.min() >= -1
    assert high.max() <= 1


def test_betting_is_narrower_where_values_vary_little():
    x = np.random.default_rng(4).normal(0.5, 0.02, 400).clip(0, 1)
    hoeffding, betting = (f(x, (0.0, 1.0)) for f in (stats.normal_mixture_sequence, stats.betting_sequence))
    assert betting.high[-1] - betting.low[-1] < 0.5 * (hoeffding.high[-1] - hoeffding.low[-1])


def test_the_chart_is_nists():
    expected, tolerance = golden("cusum_nist")
    _, x, high, low, alarm = map(np.array, zip(*expected, strict=True))
    found = stats.cusum(x, 325, 0.3175, 4.1959)
    assert found.high == pytest.approx(high, abs=tolerance)
    assert found.low == pytest.approx(low, abs=tolerance)
    assert found.alarm.tolist() == alarm.tolist()
    assert int(found.alarm.argmax()) + 1 == 14


def test_the_chart_agrees_with_its_own_recursion():
    x = np.random.default_rng(5).normal(0, 1, 200)
    total, expected = 0.0, []
    for value in x:
        total = max(0.0, total + value - 0.5)
        expected.append(total)
    assert stats.cusum(x, 0, 0.5, 5).high == pytest.approx(expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.sign_e_value(-1, 2),
        lambda: stats.betting_process([0.0, 2.0], 0.02),
        lambda: stats.betting_process([0.0], 1.0),
        lambda: stats.betting_process([], 0.02),
        lambda: stats.normal_mixture_radius(-1.0, 3.0),
        lambda: stats.betting_sequence([0.5, float("nan")], (0, 1)),
        lambda: stats.normal_mixture_sequence([2.0], (0, 1)),
        lambda: stats.cusum([], 0, 1, 1),
        lambda: stats.cusum([1.0], 0, -1, 1),
    ],
)
def test_impossible_input_is_refused(call):
    with pytest.raises(ValueError, match=r"found|expected|outside"):
        call()


def test_before_anything_is_seen_the_evidence_is_one():
    assert stats.sign_e_value(0, 0) == pytest.approx(1)
