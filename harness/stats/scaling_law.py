"""A power law with a floor: the error as a function of the amount of training data.

Invariant: the floor is never below 0; many curves (the draws of a bootstrap) are fitted at once.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from harness.stats.intervals import Array, finite

MIN_SIZES = 4  # with fewer, three parameters fit anything
_EXPONENTS = (0.05, 3.0)
_STEPS, _ROUNDS = 33, 8  # each round narrows the exponent sixteenfold


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

    Raises:
        ValueError: fewer than four sizes, a size twice or below 1, or weights that are not positive.

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
