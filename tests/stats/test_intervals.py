"""Rates, samples, looks and fronts against published numbers, a second source and their error rates."""

import csv
from math import exp

import numpy as np
import pytest
from conftest import find_shared_data
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from scipy import stats as scipy_stats

from harness import stats
from harness.analysis.judge_correction import estimate_length_favour
from harness.formatting import RATE
from harness.stats import StratumFlips
from tests.golden import golden


def test_strata_get_more_items_where_they_vary_and_weights_that_add_up_to_the_pool():
    sizes = stats.neyman_allocation({"a": 100, "b": 100, "c": 10}, {"a": 0.5, "b": 0.1, "c": 0.5}, 60)
    assert sum(sizes.values()) == 60
    assert sizes["a"] > sizes["b"] >= 2
    assert sizes["c"] <= 10
    weights = stats.inclusion_weights(["a", "a", "b"], {"a": 10, "b": 7})
    assert weights == [5, 5, 7]


@pytest.mark.parametrize("n", [1, 300, 7 / 3])
def test_the_interval_of_a_rate_ends_exactly_at_nothing_and_at_everything(n):
    assert stats.wilson(0, n).low == 0 < stats.wilson(0, n).high
    assert stats.wilson(n, n).high == 1 > stats.wilson(n, n).low


points = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12)


def read_learned_and_kept():
    """Return the code instruction-tuning points of "LoRA Learns Less and Forgets Less", by method and epoch."""
    with find_shared_data("rows/published/biderman_tables.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if "code_IFT" in row["table"]]
    learning = {(r["method"], r["duration"]): float(r["value"]) for r in rows if "HumanEval" in r["table"]}
    retention = {(r["method"], r["duration"]): float(r["value"]) for r in rows if "forget" in r["table"]}
    return {key: (learning[key], retention[key]) for key in learning}


def test_the_published_front_of_learning_and_forgetting_is_found_with_its_areas():
    front_points = read_learned_and_kept()
    assert len(front_points) == 20
    front = [list(front_points)[i] for i in stats.pareto_front(list(front_points.values()))]
    assert front == [("r256", "2"), ("r64", "4"), ("r256", "4")]
    assert stats.hypervolume([(0.2, 0.9)], (0.3, 0.1)) == 0, "points below the reference add nothing"
    for method, area in {"r16": 0.090413, "r64": 0.103434, "r256": 0.125818, "full": 0.089802}.items():
        method_points = [point for (name, _), point in front_points.items() if name == method]
        assert stats.hypervolume(method_points, (0.0, 0.40)) == pytest.approx(area, abs=1e-6)


@given(points)
def test_the_front_is_what_nothing_dominates_the_first_goal_rising_and_the_second_falling(p):
    front = [p[i] for i in stats.pareto_front(p)]
    assert {*front} == {q for q in p if not any(x >= q[0] and y >= q[1] and (x, y) != q for x, y in p)}
    assert front == sorted(front)
    assert [y for _, y in front] == sorted((y for _, y in front), reverse=True)


@given(points)
def test_the_hypervolume_is_the_dominated_share_of_a_grid(p):
    x, y = np.meshgrid(*[(np.arange(200) + 0.5) / 200] * 2)
    covered = np.zeros_like(x, dtype=bool)
    for a, b in p:
        covered |= (x < a) & (y < b)
    assert stats.hypervolume(p, (0.0, 0.0)) == pytest.approx(covered.mean(), abs=0.011)


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
    times = np.array(fractions)
    correlation = np.sqrt(np.minimum.outer(times, times) / np.maximum.outer(times, times))
    p_no_crossing = scipy_stats.multivariate_normal(cov=correlation).cdf(bounds)
    assert 1 - p_no_crossing == pytest.approx(0.05, abs=2e-4)


def test_strata_have_tangos_interval_where_asked_in_full_and_always_a_width():
    strata = [StratumFlips(3, 8, 100, 100), StratumFlips(1, 1, 200, 200)]
    assert stats.stratified_flips_interval(strata) == pytest.approx(stats.tango_interval(4, 9, 300))
    interval = stats.stratified_flips_interval([StratumFlips(20, 30, 400, 4000)])
    assert interval == pytest.approx(stats.tango_interval(20, 30, 400), abs=6e-4)
    low, high = stats.stratified_flips_interval([StratumFlips(0, 0, 50, 500), StratumFlips(0, 0, 50, 1000)])
    assert low < -0.03
    assert high > 0.03


def e_value(gains: int, losses: int) -> float:
    """Return the e-value of single items that got better or worse."""
    signs = np.array([0.0] + [1.0] * gains + [-1.0] * losses)
    return exp(float(stats.log_mean_wealth(stats.betting_mixture([signs], 1.0)[-1])))


def test_on_single_items_it_is_the_published_process_and_grows_with_losses_alone():
    """The two-sided process is the mean of the two one-sided ones; bets lie on a grid, hence 2 %."""
    expected, _ = golden("e_sign")
    for key, values in expected.items():
        losses, gains = (int("".join(filter(str.isdigit, part))) for part in key.split())
        two_sided = (e_value(gains, losses) + e_value(losses, gains)) / 2
        assert two_sided == pytest.approx(values["uniform"], rel=0.02)
    ratio = integrate.quad(lambda p: (2 * p) ** 12 * (2 * (1 - p)) ** 5, 0.5, 1)[0]
    assert e_value(5, 12) == pytest.approx(2 * ratio, rel=0.01)
    assert e_value(1, 12) > 20
    assert e_value(12, 1) < 1
    assert e_value(0, 0) == pytest.approx(1)
    assert stats.log_mean_wealth(stats.betting_mixture([-np.ones(50_000)], 1.0)[-1]) > 10_000


def test_a_making_shares_its_shift_and_an_earlier_gain_allows_no_later_loss():
    groups = [np.full(60, -0.01)] * 3
    for effects in (stats.seed_effects(groups, [""] * 3, 0.01), stats.seed_effects(groups, ["a"] * 3, 0.0)):
        assert not effects.mean.any()
        assert not effects.variance.any()
    groups = [np.zeros(60)]
    assert stats.seed_effects(groups, ["a"], 0.01).variance == pytest.approx([2e-4])
    assert stats.seed_effects(groups, ["a"], 0.01, 4).variance == pytest.approx([1.25e-4])
    groups = [np.full(600, 0.05)] * 5
    assert not stats.seed_effects(groups, ["a"] * 5, 0.01).mean.any()


def test_the_shift_predicted_is_the_best_linear_one_of_the_joint_normal():
    """Second source: condition the joint normal of the nights' means on those seen."""
    rng, sd, n, makings = np.random.default_rng(1), 0.02, 50, ["a", "a", "b"]
    groups = [rng.normal(-0.05, 0.3, n) for _ in makings]
    seen_means = np.array([g.mean() for g in groups[:2]])
    noise = (5 + sum(float((g**2).sum()) for g in groups[:2])) / (50 + 2 * n)
    covariance = np.full((2, 2), 2 * sd**2) + np.eye(2) * noise / n  # both nights have making a
    effects = stats.seed_effects(groups, makings, sd)
    weights_of_b = np.full(2, sd**2) @ np.linalg.inv(covariance)  # b shares only the reference
    # Earlier makings are weighted by the noise known when the next one begins: all of it here.
    assert effects.mean[2] == pytest.approx(weights_of_b @ seen_means)
    assert effects.variance[2] == pytest.approx(2 * sd**2 - weights_of_b @ np.full(2, sd**2))


def test_the_chart_is_nists_and_agrees_with_its_own_recursion():
    expected, tolerance = golden("cusum_nist")
    _, x, high, low, alarm = map(np.array, zip(*expected, strict=True))
    chart = stats.cusum(x, 325, 0.3175, 4.1959)
    assert chart.high == pytest.approx(high, abs=tolerance)
    assert chart.low == pytest.approx(low, abs=tolerance)
    assert chart.alarm.tolist() == alarm.tolist()
    assert int(chart.alarm.argmax()) + 1 == 14
    x = np.random.default_rng(5).normal(0, 1, 200)
    total, expected = 0.0, []
    for value in x:
        total = max(0.0, total + value - 0.5)
        expected.append(total)
    assert stats.cusum(x, 0, 0.5, 5).high == pytest.approx(expected)


FAVOUR = 0.1


def world(seed, n, longer_share, size):
    """Make clustered errors that favour the longer answer by 0.1 and the new one by 0.3."""
    draw = np.random.default_rng(seed)
    cluster = np.arange(n) // size
    longer = (draw.random(cluster[-1] + 1) < longer_share)[cluster]
    shared = draw.normal(0, 0.5, cluster[-1] + 1)[cluster] if size > 1 else 0.0
    noise = draw.choice([-1.0, 0.0, 0.0, 1.0], n)
    return (
        noise + 0.3 + FAVOUR * np.where(longer, 1, -1) + shared,
        (np.full(n, 100), np.where(longer, 150, 70)),
        cluster,
    )


@pytest.mark.parametrize(("n", "share", "size"), [(100, 0.9, 1), (50, 0.7, 5)])
def test_the_interval_holds_the_favour_whatever_the_clusters(n, share, size):
    estimates = [estimate_length_favour(*world(seed, n, share, size), RATE) for seed in range(200)]
    favours = [estimate.favour for estimate in estimates if estimate is not None and estimate.is_length]
    assert len(favours) >= 50
    coverage = np.mean([estimate.low <= FAVOUR <= estimate.high for estimate in favours])
    assert coverage >= 0.95 - 2 * (0.95 * 0.05 / len(favours)) ** 0.5


def test_a_contrast_has_the_error_and_degrees_of_freedom_of_least_squares_by_their_matrices():
    draw = np.random.default_rng(0)
    n, clusters = 40, draw.integers(0, 9, 40)
    group, values = draw.random(n) < 0.4, draw.normal(size=n) + clusters * 0.2
    design = np.column_stack([np.ones(n), group])
    solution = np.linalg.inv(design.T @ design) @ design.T
    residual_maker = np.eye(n) - design @ solution
    parts = []
    for cluster in range(9):
        members = np.flatnonzero(clusters == cluster)
        size, axes = np.linalg.eigh(residual_maker[np.ix_(members, members)])
        parts.append(residual_maker[:, members] @ (axes / np.sqrt(size)) @ axes.T @ solution[1, members])
    parts = np.array(parts)
    variances = [parts @ weights @ parts.T for weights in (np.eye(n), (clusters[:, None] == clusters) * 1.0)]
    contrast = stats.clustered_contrast(values, group, clusters)
    assert contrast.mean == pytest.approx(values[group].mean() - values[~group].mean())
    assert contrast.se == pytest.approx(np.linalg.norm(parts @ values))
    assert contrast.df == pytest.approx(min(np.trace(m) ** 2 / (m**2).sum() for m in variances))
