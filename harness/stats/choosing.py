"""Numbers behind a choice: Pareto front, value of information, and the error expected with more data.

Invariant: a dominated point (matched in both goals and beaten in one) is never on the front; more information
is never worth less, and never more than perfect information.
"""

from math import exp, inf, lgamma, log, log1p, pi, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from harness.stats.intervals import Array, finite

MIN_SIZES = 4  # with fewer, three parameters fit anything
_EXPONENTS = (0.05, 3.0)
_STEPS, _ROUNDS = 33, 8  # each round narrows the exponent sixteenfold


def pareto_front(points: ArrayLike) -> list[int]:
    """Return the indices of the points (n, 2) that no other dominates, in the order of the first goal.

    Of equal points the first is kept. Not for goals to be minimised: change their sign.
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


def perfect_information(mean: float, sd: float, df: float | None = None) -> float:
    """Return EVPI, the expected loss from choosing the better-looking option now.

    s g(z) − |μ| F(−z), z = |μ|/s. `mean` and `sd` describe the belief about the difference between two
    options: normal or, with `df`, Student's t around the mean with that scale. F is its distribution
    function, and g(z) = φ(z), or f(z) (ν + z²)/(ν − 1) for the t, inf on one degree of freedom or fewer. The
    value is in their unit; 0 if nothing is uncertain. Not for more than two options, nor where the cost of
    a wrong choice is not this difference.
    Source: Raiffa & Schlaifer 1961, section 5.
    """
    if sd < 0:
        raise ValueError(f"expected sd >= 0, found {sd}")
    if sd == 0:
        return 0.0
    z = abs(mean) / sd
    if df is None:
        return sd * exp(-z * z / 2) / sqrt(2 * pi) - abs(mean) * float(special.ndtr(-z))
    if df <= 1:
        return inf
    density = exp(lgamma((df + 1) / 2) - lgamma(df / 2) - log(df * pi) / 2 - (df + 1) / 2 * log1p(z * z / df))
    return sd * density * (df + z * z) / (df - 1) - abs(mean) * float(special.stdtr(df, -z))


def sample_information(mean: float, sd: float, item_sd: float, n: float, df: float | None = None) -> float:
    """Return EVSI, the value of n more items: `perfect_information` with s² / √(s² + σ²/n) for s.

    `sd` is the part of the uncertainty that items could resolve, without the part that needs more seeds.
    `item_sd` is the standard deviation σ of one item's difference, in the unit of the mean, as the value is;
    `df` as for `perfect_information`. Not the net value: subtract what the items cost.
    Source: Raiffa & Schlaifer 1961, section 5.5.
    """
    if min(sd, item_sd) < 0 or n <= 0:
        raise ValueError(f"expected sds >= 0 and n > 0, found {sd}, {item_sd}, {n}")
    if sd == 0:
        return 0.0
    return perfect_information(mean, sd**2 / sqrt(sd**2 + item_sd**2 / n), df)


class PowerLaw(NamedTuple):
    """The curves E + B D^−β, each array (d,): floor E, scale B and exponent β."""

    floor: Array
    scale: Array
    exponent: Array

    def at(self, n: float) -> Array:
        """Return the error of each curve (d,) at n training rows."""
        return self.floor + self.scale * n**-self.exponent


def fit_power_law(sizes: ArrayLike, errors: ArrayLike, weights: ArrayLike) -> PowerLaw:
    """Fit error = E + B D^−β to sizes (k,) by least squares with weights (k,); errors (d, k) are d curves.

    E is at least 0, β in [0.05, 3]; B may be negative, so that noise around a flat curve does not turn into a
    gain. For a given β the fit is linear; β is searched on ever finer grids. Not for errors of different
    recipes: all sizes must share one.
    Source: Hestness et al. 2017 (arXiv:1712.00409), equation 1 with a floor.
    """
    n, w, y = finite(sizes, "sizes", MIN_SIZES), finite(weights, "weights"), finite(errors, "errors")
    y = np.atleast_2d(y)
    if len(set(n)) < len(n) or n.min() < 1 or w.min() <= 0:
        raise ValueError("expected different sizes of 1 or more and weights above 0")
    relative, w = n / n.max(), w / w.sum()
    low = np.full(len(y), _EXPONENTS[0])
    high = np.full(len(y), _EXPONENTS[1])
    for _ in range(_ROUNDS):
        grid = np.linspace(low, high, _STEPS)  # (steps, d)
        residuals = _linear(relative, y, w, grid)[2]
        best = np.argmin(residuals, axis=0)  # (d,)
        low, high = (
            np.take_along_axis(grid, np.clip(best + step, 0, _STEPS - 1)[None], axis=0)[0] for step in (-1, 1)
        )
    exponent = (low + high) / 2
    floor, scale, _ = (values[0] for values in _linear(relative, y, w, exponent[None]))
    return PowerLaw(floor, scale * n.max() ** exponent, exponent)


def _linear(sizes: Array, y: Array, w: Array, exponents: Array) -> tuple[Array, Array, Array]:
    """Fit floor and scale for given exponents (s, d); return both and the squared residuals, each (s, d)."""
    x = sizes ** -exponents[..., None]  # (s, d, k)
    mean_x, mean_y = x @ w, y @ w
    spread = (x**2) @ w - mean_x**2
    scale = ((x * y) @ w - mean_x * mean_y) / spread
    floor = mean_y - scale * mean_x
    is_negative = floor < 0
    scale = np.where(is_negative, ((x * y) @ w) / ((x**2) @ w), scale)
    floor = np.where(is_negative, 0.0, floor)
    squared_residuals = ((y - floor[..., None] - scale[..., None] * x) ** 2) @ w
    return floor, scale, squared_residuals
