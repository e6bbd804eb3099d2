"""Corrections for multiple testing: Holm and Benjamini-Hochberg.

Invariant: an adjusted p-value is never below the original, and their order is kept.
"""

from collections.abc import Sequence

import numpy as np

from harness.stats.intervals import Array


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false rejection stays at the level.

    max_{j ≤ i} min(1, (k − j + 1) p_(j)) over the sorted p-values, in the order given. Valid
    under any dependence. Not where the share of false discoveries is what matters
    (`benjamini_hochberg`).

    Raises:
        ValueError: a p-value is not in [0, 1].

    Source: Holm 1979.
    """
    p = _p_array(p_values)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(x) for x in adjusted]


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that, on average, at most the level's share of the rejected ones is false.

    min_{j ≥ i} min(1, k p_(j)/j) over the sorted p-values, in the order given. Valid for independent or
    positively dependent tests, as comparisons with one reference are. Not where a single false alarm is too
    many (`holm`).

    Raises:
        ValueError: a p-value is not in [0, 1].

    Source: Benjamini & Hochberg 1995; Benjamini & Yekutieli 2001 for the dependence.
    """
    p = _p_array(p_values)
    order = np.argsort(p, kind="stable")[::-1]
    steps = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(x) for x in adjusted]


def _p_array(p_values: Sequence[float]) -> Array:
    p = np.asarray(p_values, float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be numbers in [0, 1], found {list(p_values)}")
    return p
