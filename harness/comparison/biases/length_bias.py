"""Length bias of a metric between two candidates: whether it favours the longer of two answers to an item.

Invariant: lengths are characters; what people say of the same answers is taken off, so a longer answer that
they too find better is no bias. Items on which the one candidate's answer is the longer count as much as
those on which the other's is, so that a favour for a candidate is none for its length; where the longer
answers are nearly all one candidate's, or in too few clusters, the two are one figure, which says so.
"""

from collections.abc import Sequence
from math import exp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.comparison.biases.mean_error import error_interval
from harness.comparison.estimators import Estimate
from harness.comparison.judge_correction import MIN_LABELS
from harness.formatting import Unit
from harness.stats import Array


class LengthFavour(NamedTuple):
    """Favour for the longer of two answers to an item, beyond people's, in the unit of the metric.

    `ratio` is the mean of new to base in length (geometric), `new_longer` the share of the items whose
    lengths differ on which the new answer is the longer one. `is_length` says that both candidates have
    enough of the longer answers, in enough clusters, so that it is not a favour for a candidate.
    """

    favour: Estimate
    ratio: float
    new_longer: float
    is_length: bool


def estimate_length_favour(
    errors: Array, lengths: Sequence[Sequence[int]], clusters: NDArray[np.intp], unit: Unit, most: float = 1.0
) -> LengthFavour | None:
    """Estimate the favour for the longer answer from errors (n,): how much more the new one is overrated.

    `lengths` are those of (base, new), `most` is the largest error that there may be. None where fewer than
    ten items have answers of another length, or in too few clusters.
    """
    base, new = (np.maximum(np.array(of, float), 1.0) for of in lengths)
    differs = base != new
    if differs.sum() < MIN_LABELS:
        return None
    longer, own, groups = (new > base)[differs], errors[differs], clusters[differs]
    is_length = min(longer.sum(), (~longer).sum()) >= MIN_LABELS
    mean = _balance_favours(own, longer, groups) if is_length else None
    if mean is None or mean.se is None:
        is_length, mean = False, stats.clustered_mean(np.where(longer, own, -own), groups)
    if mean.se is None:
        return None
    parts = [own[longer], -own[~longer]] if is_length else [np.where(longer, own, -own)]
    codes = [groups[longer], groups[~longer]] if is_length else [groups]
    found = Estimate(mean.mean, *error_interval(mean, parts, codes, most), mean.n, unit)
    ratio = exp(float(np.log(new / base).mean()))
    return LengthFavour(found, ratio, float(longer.mean()), bool(is_length))


def _balance_favours(errors: Array, longer: NDArray[np.bool_], clusters: NDArray[np.intp]) -> stats.Mean:
    """Estimate the mean of the favours that items with a longer new answer show, and those with a shorter."""
    found = stats.clustered_contrast(errors, longer, clusters)
    return found._replace(mean=found.mean / 2, se=None if found.se is None else found.se / 2)
