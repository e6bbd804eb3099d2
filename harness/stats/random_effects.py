"""Random effects over training seeds.

Invariant: with fewer than three seeds the variance of training is unknown, and no interval
claims to hold it.
"""

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from harness.stats.intervals import Interval, t_quantile

MIN_SEEDS = 3


class RandomEffects(NamedTuple):
    """A mean over R seeds; `seed_sd` is the standard deviation between them."""

    mean: float
    se: float
    df: int
    seed_sd: float
    n_seeds: int


def random_effects(estimates: Sequence[float], standard_errors: Sequence[float]) -> RandomEffects | None:
    """Average the estimates of R seeds on the same items; None with fewer than three.

    SE² = σ̄² + s²/R, df = R − 1: σ̄ the mean of the seeds' own standard errors over items, which
    bounds that of their mean whatever the seeds share, and s² the variance between the seeds'
    estimates. What items and seeds do together is in both terms, so the SE errs on the wide
    side. Not for seeds evaluated on different items, nor to judge one checkpoint.

    Raises:
        ValueError: the lists differ in length, or a number is NaN or infinite, or an SE negative.

    Source: Miller 2024, arXiv:2411.00640, for the two variances; t on R − 1: Hartung & Knapp 2001.
    """
    x, se = np.asarray(estimates, float), np.asarray(standard_errors, float)
    if x.shape != se.shape or not np.isfinite([x, se]).all() or (se < 0).any():
        raise ValueError(f"expected as many finite estimates and SEs: {list(x)} and {list(se)}")
    r = len(x)
    if r < MIN_SEEDS:
        return None
    spread = float(x.std(ddof=1))
    return RandomEffects(float(x.mean()), sqrt(float(se.mean()) ** 2 + spread**2 / r), r - 1, spread, r)


def random_effects_interval(found: RandomEffects, alpha: float = 0.05) -> Interval:
    """Return mean ± t_{1−α/2, R−1} · SE, in the unit of the estimates.

    Not for one checkpoint, whose training does not vary.

    Raises:
        ValueError: alpha is not in (0, 1).

    Source: Hartung & Knapp 2001.
    """
    half = t_quantile(1 - alpha / 2, found.df) * found.se
    return Interval(found.mean - half, found.mean + half)


def random_effects_p(found: RandomEffects) -> float:
    """Return the two-sided p of H0: the mean over seeds is 0; 1 where nothing varies and it is 0.

    2 T_{R−1}(−|mean|/SE). Not for a margin, nor to show that nothing differs.

    Source: Hartung & Knapp 2001.
    """
    if found.se == 0:
        return float(found.mean == 0)
    return float(2 * special.stdtr(found.df, -abs(found.mean) / found.se))
