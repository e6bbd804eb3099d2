"""Favour for the longer answer from few clusters: what its interval holds, and when it is left open."""

import numpy as np
import pytest

from harness import stats
from harness.comparison.judge_correction import estimate_length_favour
from harness.formatting import RATE

FAVOUR = 0.1


def world(seed, n, longer_share, size):
    """Make errors of which 0.1 is for the longer answer and 0.3 for the new one, in clusters of one length each."""
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


@pytest.mark.parametrize(("n", "share", "size"), [(100, 0.9, 1), (50, 0.7, 5), (100, 0.5, 5), (300, 0.9, 5)])
def test_the_interval_holds_the_favour_whatever_the_clusters(n, share, size):
    found = [estimate_length_favour(*world(seed, n, share, size), RATE) for seed in range(200)]
    told = [f.favour for f in found if f is not None and f.is_length]
    assert len(told) >= 50
    held = np.mean([f.low <= FAVOUR <= f.high for f in told])
    assert held >= 0.95 - 2 * (0.95 * 0.05 / len(told)) ** 0.5


def test_longer_answers_in_three_clusters_are_not_told_from_the_candidate():
    errors, _, cluster = world(1, 60, 0.5, 5)
    longer = np.where(cluster < 3, 70, 150)  # three clusters of five have the shorter new answer
    found = estimate_length_favour(errors, (np.full(60, 100), longer), cluster, RATE)
    assert (found.is_length, found.new_longer) == (False, 0.75)
    assert estimate_length_favour(
        errors, (np.full(60, 100), np.where(cluster < 4, 70, 150)), cluster, RATE
    ).is_length


def test_a_contrast_has_the_error_and_degrees_of_freedom_of_least_squares_by_their_matrices():
    draw = np.random.default_rng(0)
    n, clusters = 40, draw.integers(0, 9, 40)
    group, values = draw.random(n) < 0.4, draw.normal(size=n) + clusters * 0.2
    design = np.column_stack([np.ones(n), group])
    solved = np.linalg.inv(design.T @ design) @ design.T
    left = np.eye(n) - design @ solved
    parts = []
    for c in range(9):
        own = np.flatnonzero(clusters == c)
        size, axes = np.linalg.eigh(left[np.ix_(own, own)])
        parts.append(left[:, own] @ (axes / np.sqrt(size)) @ axes.T @ solved[1, own])
    parts = np.array(parts)
    forms = [parts @ of @ parts.T for of in (np.eye(n), (clusters[:, None] == clusters) * 1.0)]
    found = stats.clustered_contrast(values, group, clusters)
    assert found.mean == pytest.approx(values[group].mean() - values[~group].mean())
    assert found.se == pytest.approx(np.linalg.norm(parts @ values))
    assert found.df == pytest.approx(min(np.trace(m) ** 2 / (m**2).sum() for m in forms))
