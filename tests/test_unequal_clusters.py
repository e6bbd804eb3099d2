"""Graded scores in clusters of unequal size: a second source, how often a bound errs, and what is refused."""

from dataclasses import replace
from math import inf, isinf

import numpy as np
import pytest
from fake_rows import EXACT, ratio_metric, rows

from harness import stats
from harness.comparison import compare_rows, difference_p, regression_p
from harness.gating import TaskComparison
from harness.gating.rules import apply_rules
from harness.metrics import mean_metric
from harness.spec import GatePolicy, Task, TaskData

GRADED = mean_metric("graded", lambda output, example: None, bounds=(-inf, inf))
ONE_LARGE = np.repeat([200, 5], [1, 20])
ONE_HUNDRED = np.repeat([100, 1], [1, 100])
TWO_HUNDREDS = np.repeat([100, 2], [2, 100])
LOG_NORMAL = np.ceil(np.random.default_rng(4).lognormal(1.5, 1, 30)).astype(int)


def make_clustered_rows(values, sizes, metric=GRADED, **changes):
    named = np.repeat(np.arange(len(sizes)), sizes)
    made = rows(values, metric, **changes)
    return [replace(row, cluster=f"c{c}") for row, c in zip(made, named, strict=True)]


def draw_differences(rng, sizes, correlation, draws):
    """Draw graded differences of mean 0 (draws, n) that share so much with their cluster."""
    own = rng.normal(size=(draws, sizes.sum()))
    shared = np.repeat(rng.normal(size=(draws, len(sizes))), sizes, axis=1)
    return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own


def compute_by_matrices(sizes, x):
    """Return CR2's squared error of the mean and Bell and McCaffrey's df, by the matrices themselves."""
    n, clusters = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    hat, alike = np.full((n, n), 1 / n), (clusters[:, None] == clusters).astype(float)
    columns = []
    for c in range(len(sizes)):
        mine = clusters == c
        values, vectors = np.linalg.eigh((np.eye(n) - hat)[np.ix_(mine, mine)])
        root = vectors @ np.diag(np.where(values > 1e-9, values, 1) ** -0.5 * (values > 1e-9)) @ vectors.T
        columns.append((np.eye(n) - hat)[:, mine] @ root @ np.ones(mine.sum()) / n)
    g = np.column_stack(columns)
    form = g.T @ alike @ g
    return float(((g.T @ x) ** 2).sum()), np.trace(form) ** 2 / np.trace(form @ form)


@pytest.mark.parametrize("sizes", [(3, 4, 5, 6, 7), (20, 20, 1, 1, 1, 1, 1, 1, 15, 12), (2,) * 6])
def test_error_and_degrees_of_freedom_agree_with_the_matrices_of_the_paper(sizes):
    x = np.random.default_rng(0).normal(size=sum(sizes))
    squared, df = compute_by_matrices(sizes, x)
    found = stats.clustered_mean(x, np.repeat(np.arange(len(sizes)), sizes))
    assert found.se**2 == pytest.approx(squared, rel=1e-9)
    assert found.df == pytest.approx(
        min(df, stats.effective_clusters(np.repeat(range(len(sizes)), sizes)) - 1)
    )


def test_clusters_of_one_size_keep_students_degrees_of_freedom_and_single_items_are_never_refused():
    assert stats.clustered_mean(np.arange(12.0), np.arange(12) // 2).df == 5
    assert stats.clustered_mean(np.arange(12.0), np.arange(12)).df == 11
    c = compare_rows(EXACT, rows([1, 0]), rows([0, 0]))
    assert not c.refused
    assert not isinf(c.lower)
    assert errors(TWO_HUNDREDS, 0.0)[1] <= 0.06


@pytest.mark.parametrize(
    ("sizes", "weigh"), [(ONE_LARGE, 2.2), (ONE_HUNDRED, 4.0), (TWO_HUNDREDS, 7.8), (np.full(9, 4), 9.0)]
)
def test_large_clusters_weigh_as_few(sizes, weigh):
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    assert stats.effective_clusters(clusters) == pytest.approx(weigh, abs=0.05)


def errors(sizes, correlation, draws=1000):
    """Return how often a lower 95 % bound lies above the truth: by Σ·G/(G − 1) on G − 1 as before, and now."""
    x = draw_differences(np.random.default_rng(1), sizes, correlation, draws)
    clusters, g, n = np.repeat(np.arange(len(sizes)), sizes), len(sizes), int(sizes.sum())
    sums = np.add.reduceat(x - x.mean(axis=1, keepdims=True), np.cumsum(sizes) - sizes, axis=1)
    before = x.mean(axis=1) / np.sqrt((sums**2).sum(axis=1) * g / (g - 1)) * n
    found = (stats.clustered_mean(row, clusters) for row in x)
    now = [m.se is not None and stats.t_interval(m, 0.10).low > 0 for m in found]
    return float((before > stats.t_quantile(0.95, g - 1)).mean()), float(np.mean(now))


@pytest.mark.parametrize(
    ("sizes", "least_before"),
    [
        pytest.param(ONE_LARGE, 0.30, id="200 and 20 of 5"),
        pytest.param(ONE_HUNDRED, 0.25, id="100 and 100 single"),
        pytest.param(TWO_HUNDREDS, 0.13, id="2 of 100 and 100 of 2"),
        pytest.param(LOG_NORMAL, 0.06, id="log-normal"),
    ],
)
def test_a_bound_over_unequal_clusters_errs_no_more_often_than_it_says(sizes, least_before):
    before, now = errors(sizes, 0.6)
    assert before > least_before
    assert now <= 0.06


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (ONE_LARGE, "300 items in 21 clusters of unequal size, which weigh 2.2"),
        (np.array([40, 40]), "80 items in 2 clusters;"),
        (np.array([9]), "9 items in 1 cluster;"),
    ],
)
@pytest.mark.parametrize("metric", [GRADED, EXACT, ratio_metric()], ids=["graded", "0 and 1", "ratio"])
def test_too_few_clusters_have_an_infinite_interval_that_says_why(sizes, said, metric):
    rng, n = np.random.default_rng(2), int(sizes.sum())
    parts = (n, 2) if len(metric.parts) == 2 else n
    base, new = (
        make_clustered_rows(rng.integers(0, 2, parts) + 1.0 * (metric is not EXACT), sizes, metric)
        for _ in "ab"
    )
    c = compare_rows(metric, base, new)
    assert (c.lower, c.upper, c.se, c.df) == (-inf, inf, inf, None)
    assert said in c.refused
    assert "expected at least 4" in c.refused
    assert (c.low, c.high) == ((-1, 1) if metric is EXACT else (-inf, inf))
    assert (regression_p(c, 0.02), difference_p(c)) == (0.5, 1.0)


def test_a_task_of_too_few_clusters_leaves_the_gate_open_and_is_named():
    base, new = np.full(300, 0.9), np.full(300, 0.9)
    arms = [make_clustered_rows(arm, ONE_LARGE, EXACT, task="chat") for arm in (base, new)]
    compared = compare_rows(EXACT, *arms)
    task = Task(name="chat", data=TaskData())
    admitted = TaskComparison(task, "capability", compared, True, "")
    found = apply_rules([admitted], GatePolicy(), validity=None, target=None, identical=False)
    assert (found.outcome, found.items_needed) == ("inconclusive", None)
    assert "chat: too few clusters for an interval: 300 items in 21 clusters" in found.sentence


@pytest.mark.parametrize("seed", range(4))
def test_p_values_and_interval_are_of_one_distribution(seed):
    x = draw_differences(np.random.default_rng(seed), LOG_NORMAL, 0.4, 1)[0]
    c = compare_rows(
        GRADED, make_clustered_rows(0 * x, LOG_NORMAL), make_clustered_rows(x + 0.9 * seed / 3, LOG_NORMAL)
    )
    expected = stats.clustered_mean(x, np.repeat(range(len(LOG_NORMAL)), LOG_NORMAL)).df
    assert c.df == pytest.approx(expected)
    assert c.df < len(LOG_NORMAL) - 5
    assert (difference_p(c) < 0.05) == (not c.low <= 0 <= c.high)
    assert regression_p(c, -c.upper + 1e-6) > 0.05 > regression_p(c, -c.upper - 1e-6)


def test_a_bootstrap_over_unequal_clusters_is_wider_as_t_is_than_z():
    metric, n = ratio_metric(), int(TWO_HUNDREDS.sum())
    x = 10 + draw_differences(np.random.default_rng(8), TWO_HUNDREDS, 0.6, 1)[0]
    base, new = (np.column_stack([arm, np.ones(n)]) for arm in (np.full(n, 10.0), x))
    c = compare_rows(metric, *(make_clustered_rows(arm, TWO_HUNDREDS, metric) for arm in (base, new)))
    clusters = np.repeat(np.arange(len(TWO_HUNDREDS)), TWO_HUNDREDS)
    (boot,) = stats.bootstrap(lambda w: w @ (x - 10) / w.sum(axis=-1), clusters)
    narrow, wider = stats.bca_interval(boot), stats.t_quantile(0.975, c.df) / stats.z_quantile(0.975)
    assert c.df == pytest.approx(1.56, abs=0.01)
    assert (c.high - c.low) / (narrow.high - narrow.low) == pytest.approx(wider, rel=0.02)
    assert (difference_p(c) < 0.05) == (not c.low <= 0 <= c.high)
