"""Interval of a judge's mean error beside people, or of the mean over several groups of items.

Invariant: never narrower than few errors that differ allow: a judge whose errors are all alike on some items
may well make others elsewhere.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.comparison.judge_correction import FEW
from harness.stats import Array, Interval


def error_interval(
    mean: stats.Mean, groups: Sequence[Array], clusters: Sequence[NDArray[np.intp]], most: float
) -> Interval:
    """Return the t interval of a mean error, or Tango's where errors are few and that is wider.

    It is cut to [−most, most], or to where errors lie beyond. The mean is that of the groups' means, whose
    errors (n,) and clusters (n,) are given. A group in which errors of fewer than ten clusters differ has the
    distances of a difference of two binary scores as large, of as many items as its clusters are worth; the
    groups' distances are joined in quadrature.
    """
    plain = stats.t_interval(mean)
    most = max(most, *(float(np.abs(x).max()) for x in groups))
    guards = [_few_distances(x / most, codes) for x, codes in zip(groups, clusters, strict=True)]
    low, high = (most / len(groups) * stats.quadrature(side) for side in zip(*guards, strict=True))
    ends = min(plain.low, mean.mean - low), max(plain.high, mean.mean + high)
    return Interval(max(ends[0], -most), min(ends[1], most))


def _few_distances(errors: Array, clusters: NDArray[np.intp]) -> tuple[float, float]:
    """Return how far a mean of errors in [−1, 1] may lie below and above; nothing where enough differ."""
    if stats.count_differing_clusters(errors, clusters) >= FEW:
        return 0.0, 0.0
    effect = stats.design_effect(errors, clusters)
    gains, losses = (float(np.clip(sign * errors, 0, None).sum()) / effect for sign in (1, -1))
    n = len(errors) / effect
    ends = stats.tango_interval(gains, losses, n)
    at = (gains - losses) / n
    return at - ends.low, ends.high - at
