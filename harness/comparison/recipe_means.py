"""Mean of a recipe's seeds on the items that all of them answered, and how much it varies with these.

Invariant: seeds share their items, so the items' variance is that of the mean answer; what varies between
seeds is no part of it.
Source: Miller 2024, arXiv:2411.00640, for variances over items and over repeated answers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from harness import stats
from harness.comparison.alignment import Arms, align
from harness.comparison.estimators import estimate_difference, quantile
from harness.comparison.failed_answers import fill_errors
from harness.errors import IncompatibleRuns
from harness.metrics import Metric
from harness.records import SampleResult

_ALPHA = 0.05


class RecipeDifference(NamedTuple):
    """The new recipe's mean less the base's, in the metric's unit, over n items.

    `change` and `score` are the variances over items of that and of the new recipe's own mean.
    """

    delta: float
    change: stats.Variance
    score: stats.Variance
    n: int


def compare_recipes(
    metric: Metric,
    base: Sequence[Sequence[SampleResult]],
    new: Sequence[Sequence[SampleResult]],
    *,
    seed: int = 0,
) -> RecipeDifference:
    """Compare the means over the seeds of two recipes, each given by the rows of its runs.

    The parts of an item are averaged over a recipe's runs; the variances are what the intervals of
    `compare_rows` amount to on the averages, so that few items that differ make none too small.

    Raises:
        IncompatibleRuns: the runs hold different items, or none was scored in all of them.
    """
    arms = _mean_arms(metric, base, new)
    found = estimate_difference(metric, arms, seed)
    low, high = found.ends(_ALPHA)
    se = (high - low) / (2 * quantile(found.df, 1 - _ALPHA / 2))
    score_se = (found.new.high - found.new.low) / (2 * stats.z_quantile(1 - _ALPHA / 2))
    change, score = stats.Variance(se**2, found.df), stats.Variance(score_se**2, None)
    return RecipeDifference(found.delta, change, score, len(arms.ids))


def _mean_arms(
    metric: Metric, base: Sequence[Sequence[SampleResult]], new: Sequence[Sequence[SampleResult]]
) -> Arms:
    runs = [fill_errors(metric, rows, rows).base for rows in (*base, *new)]  # a failed answer scores worst
    arms = [align(metric, runs[0], rows, "") for rows in runs]
    shared = set.intersection(*(set(a.ids) for a in arms))
    if not shared:
        found = f"metric {metric.name!r}: found no item that all {len(arms)} runs scored"
        raise IncompatibleRuns(f"{found}. Next: evaluate all on the same split and limit")
    arms = [a.only(np.array([i in shared for i in a.ids])) for a in arms]
    old, now = (np.mean([a.new for a in of], axis=0) for of in (arms[: len(base)], arms[len(base) :]))
    return arms[0]._replace(base=old, new=now, new_folds=arms[len(base)].new_folds)
