"""Error rates of the statistics and of the whole gate with a known truth.

Exact enumeration if the truth is a trinomial, simulation otherwise; a bound is the rate of a correct
implementation plus three Monte-Carlo standard errors.
"""

from math import sqrt

import numpy as np
import pytest
from scipy import special

from harness import stats
from harness.analysis.comparison import compare_rows
from harness.analysis.gate_verdict import apply_rules
from harness.analysis.verdict import TaskComparison
from harness.spec import GatePolicy, Task
from harness.stats import paired
from tests.fake_rows import EXACT, compare_flips, ratio_metric, rows

pytestmark = pytest.mark.slow

POLICY = GatePolicy()


def list_likely_counts(n, p_gain, p_loss):
    """Yield (gains, losses, probability) of a trinomial, without outcomes rarer than one in 10⁹."""
    for gains in range(n + 1):
        for losses in range(n + 1 - gains):
            same = n - gains - losses
            ways = special.gammaln(n + 1) - special.gammaln([gains + 1, losses + 1, same + 1]).sum()
            log = ways + special.xlogy([gains, losses, same], [p_gain, p_loss, 1 - p_gain - p_loss]).sum()
            if log > -21:
                yield gains, losses, float(np.exp(log))
            elif losses > n * p_loss:
                break


def rejection_rate(n, disagreement, delta, rejects):
    p_gain, p_loss = (disagreement + delta) / 2, (disagreement - delta) / 2
    return sum(p for g, k, p in list_likely_counts(n, p_gain, p_loss) if rejects(g, k))


@pytest.mark.parametrize(
    ("n", "disagreement", "limit"),
    [
        *((50, rate, 0.057) for rate in (0.05, 0.10, 0.20)),
        (200, 0.05, 0.052),
        (200, 0.20, 0.052),
        (1000, 0.10, 0.052),
    ],
)
def test_noninferiority_rarely_passes_a_true_loss_of_the_margin(n, disagreement, limit):
    def is_shown(gains: int, losses: int) -> bool:
        return stats.tango_interval(gains, losses, n, 0.1).low > -0.02

    assert rejection_rate(n, disagreement, -0.02, is_shown) <= limit


@pytest.mark.parametrize(("n", "disagreement"), [(50, 0.10), (200, 0.10), (1000, 0.20)])
def test_mcnemar_keeps_its_level(n, disagreement):
    assert rejection_rate(n, disagreement, 0.0, lambda g, k: stats.mcnemar(g, k).exact < 0.05) <= 0.05
    assert rejection_rate(n, disagreement, 0.0, lambda g, k: stats.mcnemar(g, k).midp < 0.05) <= 0.052


@pytest.mark.parametrize(("n", "disagreement"), [(200, 0.10), (500, 0.05), (1000, 0.20)])
def test_tangos_interval_misses_an_equal_model_about_one_time_in_twenty(n, disagreement):
    def misses(gains, losses):
        return abs(paired._tango_z(gains, losses, n, 0.0)) > stats.z_quantile(0.975)

    assert 0.04 <= rejection_rate(n, disagreement, 0.0, misses) <= 0.06


def test_mcnemar_at_few_items_is_as_conservative_as_published():
    exact = rejection_rate(50, 0.10, 0.0, lambda g, k: stats.mcnemar(g, k).exact < 0.05)
    midp = rejection_rate(50, 0.10, 0.0, lambda g, k: stats.mcnemar(g, k).midp < 0.05)
    assert (exact, midp) == pytest.approx((0.009, 0.025), abs=0.002)


def test_the_paired_t_of_bounded_scores_misses_an_equal_model_about_one_time_in_twenty():
    """Fifty scores in [0, 1] of which four in ten differ; three errors of 4,000 samples are 0.01."""
    rng = np.random.default_rng(5)
    x = rng.beta(2, 2, (4000, 50)) - rng.beta(2, 2, (4000, 50))
    x *= rng.random((4000, 50)) < 0.4
    missed = [not low < 0 < high for low, high in (stats.t_interval(stats.paired_delta(0 * r, r)) for r in x)]
    assert 0.04 <= np.mean(missed) <= 0.06


def test_the_clustered_t_covers_from_25_clusters():
    rng, clusters = np.random.default_rng(0), np.repeat(np.arange(25), 8)
    x = rng.normal(size=(4000, 25))[:, clusters] + rng.normal(size=(4000, 200))
    covered = [
        low < 0 < high for low, high in (stats.t_interval(stats.clustered_mean(r, clusters)) for r in x)
    ]
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize(("n", "least"), [(50, 0.90), (200, 0.935)])
def test_bca_covers_the_difference_of_two_ratios(n, least):
    """Bits per byte of both arms, 600 samples with 1,000 draws each; three errors are 0.03."""
    rng, covered = np.random.default_rng(1), []
    for seed in range(600):
        n_bytes = rng.integers(20, 200, n).astype(float)
        old = n_bytes * rng.gamma(20, 0.05, n)
        new = old * rng.normal(1.02, 0.1, n)

        def delta(weights, change=new - old, n_bytes=n_bytes):
            return weights @ change / (weights @ n_bytes)

        low, high = stats.bca_interval(stats.bootstrap(delta, np.arange(n), 1_000, seed)[0])
        covered.append(low < 0.02 < high)
    assert np.mean(covered) >= least - 3 * sqrt(least * (1 - least) / 600)


@pytest.mark.parametrize("together", [0.0, 0.5, 1.0])
def test_few_flips_in_clusters_rarely_show_non_inferiority_at_a_true_loss_of_the_margin(together):
    """60 clusters of 5 items lose 2 % of the items: single items, whole clusters, or half of each."""
    rng, passed = np.random.default_rng(2), []
    base = rows(np.ones(300), cluster_size=5)
    for _ in range(800):
        alone = rng.random(300) < 0.02
        whole = np.repeat(rng.random(60) < 0.02, 5)
        lost = np.where(np.repeat(rng.random(60) < together, 5), whole, alone)
        c = compare_rows(EXACT, base, rows(1.0 - lost, cluster_size=5))
        passed.append(c.lower > -0.02)
    assert np.mean(passed) <= 0.05 + 3 * sqrt(0.05 * 0.95 / 800)


def test_a_bootstrap_that_finds_nothing_differing_does_not_pass_by_it():
    """Ten changed texts in a thousand: samples of 30 mostly contain none, and must not claim a point."""
    metric = ratio_metric()
    bounded = type(metric)(
        "share", True, (0.0, 1.0), metric.parts, metric.score, metric.aggregate, metric.worst
    )
    rng, passed = np.random.default_rng(3), []
    for _ in range(60):
        old = np.stack([np.full(30, 50.0), np.full(30, 50.0)], axis=1)
        new = old * np.stack([rng.random(30) > 0.01, np.ones(30)], axis=1)
        passed.append(compare_rows(bounded, rows(old, bounded), rows(new, bounded)).lower > -0.01)
    assert np.mean(passed) == 0


def pass_rate(n, disagreement, deltas, n_runs=400):
    rng, passed = np.random.default_rng(4), 0
    for _ in range(n_runs):
        tasks = []
        for i, delta in enumerate(deltas):
            gains, losses, _ = rng.multinomial(
                n, [(disagreement + delta) / 2, (disagreement - delta) / 2, 1 - disagreement]
            )
            c = compare_flips(n, int(gains), int(losses))
            tasks.append(TaskComparison(Task(name=f"t{i}", data={}), "capability", c, True, ""))
        passed += apply_rules(tasks, POLICY, validity=None, target=None, identical=False).outcome == "pass"
    return passed / n_runs


@pytest.mark.parametrize(
    ("n", "disagreement", "deltas", "low", "high"),
    [
        pytest.param(100, 0.10, [0.0] * 8, 0.43, 0.58, id="few items, equal"),
        pytest.param(300, 0.10, [0.0] * 8, 0.85, 1.0, id="300 items, equal"),
        pytest.param(300, 0.10, [-0.10] + [0.0] * 7, 0.0, 0.01, id="300 items, one at -10 pp"),
        pytest.param(500, 0.20, [-0.03] * 8, 0.0, 0.01, id="500 items, all at -3 pp"),
    ],
)
def test_the_whole_policy_passes_as_often_as_it_should(n, disagreement, deltas, low, high):
    assert low <= pass_rate(n, disagreement, deltas) <= high
