"""Intervals of numbers whose items were answered in folds, each fold by a model that did not see its items.

Invariant: an interval is widened about its estimate and never shortened; where too few folds were scored to
know how much their models differ, all is open.
"""

from collections.abc import Callable
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.comparison.alignment import Arms
from harness.errors import IncompatibleRuns
from harness.stats import Interval, Variance

_ALPHA = 0.05
Folds = NDArray[np.intp]
Ends = Callable[[float], Interval]  # two-sided alpha → interval
ValueOf = Callable[[NDArray[np.bool_]], float]  # mask of items (n,) → their score, or difference


class FoldInterval(NamedTuple):
    """An interval at any level with the degrees of freedom of its t, or why there is none."""

    ends: Ends
    df: float | None
    refused: str = ""


def match_folds(arms: Arms) -> Folds | None:
    """Return the fold of each item; None where one model answered all items of both arms.

    Raises:
        IncompatibleRuns: the arms were answered in other folds.
    """
    old, now = arms.base_folds, arms.new_folds
    if old.any() and now.any() and not np.array_equal(old, now):
        raise IncompatibleRuns(
            f"the runs were answered in other folds: {old.max()} of them in the base, {now.max()} in the new "
            "run. Next: harness compare, which makes both in the same folds"
        )
    found = now if now.any() else old
    return found if found.any() else None


def interval_in_folds(plain: FoldInterval, estimate: float, folds: Folds, value_of: ValueOf) -> FoldInterval:
    """Widen the interval of an estimate by what the models of the folds (n,) differ by.

    Each end keeps its proportion of the distance from the estimate. An interval of no width, or of infinite
    width, stays.
    """
    masks = [folds == fold for fold in np.unique(folds)]
    if len(masks) < stats.MIN_FOLDS:
        why = f"items of {len(masks)} folds alone; expected at least {stats.MIN_FOLDS}"
        return FoldInterval(lambda alpha: Interval(-inf, inf), None, why)
    low, high = plain.ends(_ALPHA)
    se = (high - low) / (2 * _quantile(plain.df, _ALPHA))
    if not 0 < se < inf:
        return plain
    means, sizes = [value_of(mask) for mask in masks], [int(mask.sum()) for mask in masks]
    total = stats.cross_validated_variance(Variance(se**2, plain.df), means, sizes)

    def ends(alpha: float) -> Interval:
        wider = _quantile(total.df, alpha) * sqrt(total.variance) / (_quantile(plain.df, alpha) * se)
        own = plain.ends(alpha)
        return Interval(*(estimate + max(wider, 1.0) * (end - estimate) for end in own))

    return FoldInterval(ends, total.df)


def _quantile(df: float | None, alpha: float) -> float:
    return stats.z_quantile(1 - alpha / 2) if df is None else stats.t_quantile(1 - alpha / 2, df)
