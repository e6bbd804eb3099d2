"""Pareto front and hypervolume of two goals, both to be maximised.

Invariant: a dominated point (matched in both goals and beaten in one) is never on the front.
"""

import numpy as np
from numpy.typing import ArrayLike

from harness.stats.intervals import finite


def pareto_front(points: ArrayLike) -> list[int]:
    """Return the indices of the points (n, 2) that no other dominates, in the order of the first goal.

    Of equal points the first is kept. Not for goals to be minimised: change their sign.

    Raises:
        ValueError: there are no points, one is NaN, or they have not two goals.

    Source: Pareto 1906; definition as in Zitzler & Thiele 1999.
    """
    p = _points(points)
    best, front = -np.inf, []
    for i in sorted(range(len(p)), key=lambda i: (-p[i, 0], -p[i, 1], i)):
        if p[i, 1] > best:
            front.append(i)
            best = p[i, 1]
    return front[::-1]


def hypervolume(points: ArrayLike, reference: tuple[float, float]) -> float:
    """Return the area between the reference and the front of points (n, 2), in the product of both units.

    Points that are not above the reference in both goals add nothing. The result depends strongly on the
    reference: report it. Not for comparing areas of different references or units.

    Raises:
        ValueError: there are no points, one is NaN, or they have not two goals.

    Source: Zitzler & Thiele 1999.
    """
    p, (x0, y0) = _points(points), reference
    inside = p[(p[:, 0] > x0) & (p[:, 1] > y0)]
    if not len(inside):
        return 0.0
    front = inside[pareto_front(inside)]  # x rises, y falls
    widths = np.diff(np.concatenate([[x0], front[:, 0]]))
    return float((widths * (front[:, 1] - y0)).sum())


def _points(points: ArrayLike) -> np.ndarray:
    p = finite(points, "points")
    if p.ndim != 2 or p.shape[1] != 2:
        raise ValueError(f"expected points (n, 2), found {p.shape}")
    return p
