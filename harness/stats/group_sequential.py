"""Group-sequential tests: alpha spent over a few planned interim analyses.

Invariant: one-sided. The estimates at the looks have independent increments in information, as means of
growing samples have. Stopping early for another reason costs power and never raises the error rate.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np
from scipy import special

from harness.stats.intervals import Array, z_quantile

_NODES = 256  # of the quadrature: the bounds of ten looks are right to six digits
_REACH = 9.0  # standard deviations below which no path is followed


def alpha_spent(fraction: float, alpha: float = 0.05) -> float:
    """Return how much of a one-sided alpha may be spent at this fraction of the information.

    2(1 − Φ(z_{1−α/2}/√t)): little at first, all at the end. Not for looks timed by the results.

    Raises:
        ValueError: the fraction is not in (0, 1], or alpha not in (0, 1).

    Source: Lan & DeMets 1983, the function after O'Brien & Fleming 1979.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"expected a fraction of the information in (0, 1], found {fraction}")
    return float(2 * special.ndtr(-z_quantile(1 - alpha / 2) / sqrt(fraction)))


def interim_bounds(fractions: Sequence[float], alpha: float = 0.05) -> tuple[float, ...]:
    """Return the z that the statistic has to exceed at each look, so that all looks together err at alpha.

    `fractions` are the shares of the last look's information at the looks, rising to 1. Gauss-Legendre
    quadrature carries the density of paths that have not crossed a bound from look to look, and each bound is
    bisected for the error that may be spent there. 1 − Φ(z) is the alpha at which an interval made at that
    look holds together with those of all other looks (a repeated confidence interval). Not for looks planned
    from earlier results, nor for an open-ended series (`betting_mixture`).

    Raises:
        ValueError: the fractions do not rise to 1, or alpha is not in (0, ½).

    Source: Armitage, McPherson & Rowe 1969; Jennison & Turnbull 2000, chapters 7, 9 and 19.
    """
    steps = np.diff([0.0, *fractions])
    if not len(fractions) or steps.min() <= 0 or abs(fractions[-1] - 1) > 1e-9 or not 0 < alpha < 0.5:
        raise ValueError(f"expected fractions that rise to 1 and alpha in (0, 0.5): {fractions}, {alpha}")
    bounds: list[float] = []
    spent_before, nodes, weight = 0.0, np.zeros(1), np.ones(1)  # paths start at 0
    for fraction, step in zip(fractions, steps, strict=True):
        spent = alpha_spent(min(float(fraction), 1.0), alpha)
        limit = _crossing(nodes, weight, float(step), spent - spent_before)
        bounds.append(limit / sqrt(fraction))
        nodes, weight = _carry_paths(nodes, weight, float(step), limit, float(fraction))
        spent_before = spent
    return tuple(bounds)


def _crossing(at: Array, weight: Array, step: float, allowed: float) -> float:
    """Bisect for the limit that this share of the paths exceeds at the next look."""
    low, high = -_REACH, _REACH
    while high - low > 1e-12:
        middle = (low + high) / 2
        beyond = float(weight @ special.ndtr((at - middle) / sqrt(step)))
        low, high = (middle, high) if beyond > allowed else (low, middle)
    return (low + high) / 2


def _carry_paths(at: Array, weight: Array, step: float, limit: float, fraction: float) -> tuple[Array, Array]:
    """Carry the paths below the limit to nodes (k,), each with the share of paths that it represents."""
    nodes, shares = np.polynomial.legendre.leggauss(_NODES)
    low = min(-_REACH * sqrt(fraction), limit - 1.0)
    new_nodes = low + (limit - low) * (nodes + 1) / 2
    gaps = (new_nodes[:, None] - at) / sqrt(step)  # (k, paths)
    density = np.exp(-(gaps**2) / 2) @ weight / sqrt(2 * np.pi * step)
    return new_nodes, density * shares * (limit - low) / 2
