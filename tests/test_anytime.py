"""Anytime-valid tests and charts: published numbers, properties, and how often they err."""

from math import exp

import numpy as np
import pytest
from scipy import integrate

from harness import stats
from tests.golden import golden


def e_value(gains: int, losses: int) -> float:
    """Return the evidence of single items that got better or worse."""
    signs = np.array([0.0] + [1.0] * gains + [-1.0] * losses)
    return exp(float(stats.log_mean_wealth(stats.betting_mixture([signs], 1.0)[-1])))


def test_on_single_items_it_is_the_published_process_and_grows_with_losses_alone():
    """The two-sided process is the mean of the two one-sided ones; bets lie on a grid, hence 2 %."""
    expected, _ = golden("e_sign")
    for key, values in expected.items():
        losses, gains = (int("".join(filter(str.isdigit, part))) for part in key.split())
        both = (e_value(gains, losses) + e_value(losses, gains)) / 2
        assert both == pytest.approx(values["uniform"], rel=0.02)
    ratio = integrate.quad(lambda p: (2 * p) ** 12 * (2 * (1 - p)) ** 5, 0.5, 1)[0]
    assert e_value(5, 12) == pytest.approx(2 * ratio, rel=0.01)
    assert e_value(1, 12) > 20
    assert e_value(12, 1) < 1
    assert e_value(0, 0) == pytest.approx(1)
    assert stats.log_mean_wealth(stats.betting_mixture([-np.ones(50_000)], 1.0)[-1]) > 10_000


def test_a_skewed_mean_of_zero_is_rarely_refuted_and_a_loss_soon():
    """Nine items in ten lose a little and one gains much: 26 % of weeks were regressions by sign."""
    rng = np.random.default_rng(0)

    def find_first_look(shift):
        groups = list(rng.choice([-0.05, 0.45], (30, 60), p=[0.9, 0.1]) + shift)
        e = stats.log_mean_wealth(stats.betting_mixture(groups, 2.0))
        return int((e >= np.log(20)).argmax()) + 1 if e.max() >= np.log(20) else 31

    assert np.mean([find_first_look(0.0) <= 30 for _ in range(300)]) <= 0.05
    assert np.median([find_first_look(-0.05) for _ in range(100)]) <= 10


# Seeds


def test_a_making_shares_its_shift_and_an_earlier_gain_allows_no_later_loss():
    groups = [np.full(60, -0.01)] * 3
    for found in (stats.seed_effects(groups, [""] * 3, 0.01), stats.seed_effects(groups, ["a"] * 3, 0.0)):
        assert not found.mean.any()
        assert not found.variance.any()
    groups = [np.zeros(60)]
    assert stats.seed_effects(groups, ["a"], 0.01).variance == pytest.approx([2e-4])
    assert stats.seed_effects(groups, ["a"], 0.01, 4).variance == pytest.approx([1.25e-4])
    groups = [np.full(600, 0.05)] * 5
    assert not stats.seed_effects(groups, ["a"] * 5, 0.01).mean.any()


def test_the_shift_predicted_is_the_best_linear_one_of_the_joint_normal():
    """Second source: condition the joint normal of the nights' means on those seen."""
    rng, sd, n, makings = np.random.default_rng(1), 0.02, 50, ["a", "a", "b"]
    groups = [rng.normal(-0.05, 0.3, n) for _ in makings]
    seen = np.array([g.mean() for g in groups[:2]])
    noise = (5 + sum(float((g**2).sum()) for g in groups[:2])) / (50 + 2 * n)
    among = np.full((2, 2), 2 * sd**2) + np.eye(2) * noise / n  # both of making a
    found = stats.seed_effects(groups, makings, sd)
    of_b = np.full(2, sd**2) @ np.linalg.inv(among)  # b shares the reference alone
    # What makings tell is weighed by the noise known when the next one begins, so all of it here.
    assert found.mean[2] == pytest.approx(of_b @ seen)
    assert found.variance[2] == pytest.approx(2 * sd**2 - of_b @ np.full(2, sd**2))


# Charts


def test_the_chart_is_nists_and_agrees_with_its_own_recursion():
    expected, tolerance = golden("cusum_nist")
    _, x, high, low, alarm = map(np.array, zip(*expected, strict=True))
    found = stats.cusum(x, 325, 0.3175, 4.1959)
    assert found.high == pytest.approx(high, abs=tolerance)
    assert found.low == pytest.approx(low, abs=tolerance)
    assert found.alarm.tolist() == alarm.tolist()
    assert int(found.alarm.argmax()) + 1 == 14
    x = np.random.default_rng(5).normal(0, 1, 200)
    total, expected = 0.0, []
    for value in x:
        total = max(0.0, total + value - 0.5)
        expected.append(total)
    assert stats.cusum(x, 0, 0.5, 5).high == pytest.approx(expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.betting_mixture([np.array([0.0, 2.0])], 1.0),
        lambda: stats.betting_mixture([np.array([])], 1.0),
        lambda: stats.betting_mixture([np.array([np.nan])], 1.0),
        lambda: stats.cusum([], 0, 1, 1),
        lambda: stats.cusum([1.0], 0, -1, 1),
    ],
)
def test_impossible_input_is_refused(call):
    with pytest.raises(ValueError, match=r"found|expected|outside"):
        call()
