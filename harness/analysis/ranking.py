"""Ranks that candidates not shown to differ share, and the mean of a recipe's seeds on their common items.

Invariant: going down by score, a candidate opens a rank only where its paired difference to the one that
opened the last rank has a 95 % interval without 0; pairs are not corrected for their number. Source: Miller
2024, arXiv:2411.00640, for variances over items and over repeated answers.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.analysis.alignment import Arms, align_all, quantile
from harness.analysis.estimators import Estimate, estimate_difference, identical_difference
from harness.metrics import Metric, extremes
from harness.records import SampleResult

if TYPE_CHECKING:
    from harness.store import MetricColumns

_ALPHA = 0.05


def estimate_columns(metric: Metric, columns: "MetricColumns") -> Estimate | None:
    """Estimate a score with its 95 % interval, as `estimate` does of rows; None where nothing was scored."""
    return _estimate(metric, _read(metric, columns), sum(columns.failed))


def _estimate(metric: Metric, own: Arms, n_errors: int) -> Estimate | None:
    scored = _pair(own, own)
    return identical_difference(metric, scored).base._replace(n_errors=n_errors) if scored.ids else None


def rank_with_ties(metric: Metric, columns: Mapping[str, "MetricColumns"]) -> dict[str, int]:
    """Rank candidates by their scores on the same items, 1 the best; those that cannot be told apart share.

    A candidate that answered other items than most, or none that could be scored, gets no rank.
    """
    groups: dict[tuple[str, ...], dict[str, MetricColumns]] = {}
    for name, answered in columns.items():
        groups.setdefault(answered.ids, {})[name] = answered
    largest = max(groups.values(), key=len, default={})
    same_items = {name: _read(metric, answered) for name, answered in largest.items()}
    scores = {name: _estimate(metric, own, 0) for name, own in same_items.items()}
    known = {name: e.unit.sign * e.score for name, e in scores.items() if e is not None}
    ranks: dict[str, int] = {}
    leader = ""
    for place, name in enumerate(sorted(known, key=lambda name: -known[name]), start=1):
        if not leader or _differ(metric, same_items[leader], same_items[name]):
            leader, ranks[name] = name, place
        else:
            ranks[name] = ranks[leader]
    return ranks


def _differ(metric: Metric, one: Arms, other: Arms) -> bool:
    arms = _pair(one, other)
    if not arms.ids:
        return False
    low, high = estimate_difference(metric, arms).ends(_ALPHA)
    return low > 0 or high < 0


def _read(metric: Metric, columns: "MetricColumns") -> Arms:
    """Read a candidate's columns as both arms, NaN without a score; a failed answer scores worst."""
    parts = list(columns.parts)
    for at in np.flatnonzero(columns.failed):
        if parts[at] is None and (found := extremes(metric, columns.references[at])):
            parts[at] = found.worst
    scored = np.array([p is not None for p in parts], bool)
    known = np.array([p for p in parts if p is not None], float)
    filled = np.full((len(parts), *(known.shape[1:] or (1,))), np.nan)
    filled[scored] = known.reshape(-1, filled.shape[1])
    families, folds = _code_families(columns.ids, columns.clusters), columns.folds or [0] * len(columns.ids)
    weights, numbers = np.array(columns.weights, float), np.array(folds)
    return Arms(columns.ids, families, weights, filled, filled, numbers, numbers)


@lru_cache(maxsize=4)
def _code_families(ids: tuple[str, ...], clusters: tuple[str, ...]) -> NDArray[np.intp]:
    """Number the families of items, an item without a cluster being its own; candidates share their items."""
    families = [cluster or item for item, cluster in zip(ids, clusters, strict=True)]
    return np.unique(families, return_inverse=True)[1]


def _pair(base: Arms, new: Arms) -> Arms:
    """Pair two candidates on the items that both have a score of."""
    both = ~np.asarray(np.isnan(np.hstack([base.base, new.new])).any(axis=1), bool)
    arms = base._replace(new=new.new, new_folds=new.new_folds)
    return arms if both.all() else arms.only(both)


class RecipeDifference(NamedTuple):
    """The new recipe's mean less the base's, in the metric's unit, over n items.

    `change` and `score` are the variances over items of that and of the new recipe's own mean.
    """

    delta: float
    change: stats.Variance
    score: stats.Variance
    n: int


def compare_recipes(
    metric: Metric, base: Sequence[Sequence[SampleResult]], new: Sequence[Sequence[SampleResult]]
) -> RecipeDifference:
    """Compare the means over the seeds of two recipes, each given by the rows of its runs.

    The parts of an item are averaged over a recipe's runs; the variances are those of `compare_rows`
    intervals.

    Raises:
        IncompatibleRuns: the runs hold different items, or none was scored in all of them.
    """
    aligned = align_all(metric, (*base, *new))
    old, now = (np.mean([a.new for a in of], axis=0) for of in (aligned[: len(base)], aligned[len(base) :]))
    arms = aligned[0]._replace(base=old, new=now, new_folds=aligned[len(base)].new_folds)
    found = estimate_difference(metric, arms)
    low, high = found.ends(_ALPHA)
    se = (high - low) / (2 * quantile(found.df, 1 - _ALPHA / 2))
    score_se = (found.new.high - found.new.low) / (2 * stats.z_quantile(1 - _ALPHA / 2))
    change, score = stats.Variance(se**2, found.df), stats.Variance(score_se**2, None)
    return RecipeDifference(found.delta, change, score, len(arms.ids))
