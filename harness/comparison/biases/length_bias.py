"""Length bias of a metric between two candidates: whether it favours the longer of two answers to an item.

Invariant: lengths are characters; what people say of the same answers is taken off, so a longer answer that
they too find better is no bias. Items on which the one candidate's answer is the longer count as much as
those on which the other's is, so that a favour for a candidate is none for its length; where the longer
answers are nearly all one candidate's, the two are one figure, which says so.
"""

from collections.abc import Sequence
from math import exp
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.comparison.estimators import Estimate
from harness.comparison.judge_correction import MIN_LABELS
from harness.formatting import Unit
from harness.stats import Array


class LengthFavour(NamedTuple):
    """Favour for the longer of two answers to an item, beyond people's, in the unit of the metric.

    `ratio` is the mean of new to base in length (geometric), `new_longer` the share of the items whose
    lengths differ on which the new answer is the longer one. `is_length` says that both candidates have
    enough of the longer answers, so that it is no favour for a candidate.
    """

    favour: Estimate
    ratio: float
    new_longer: float
    is_length: bool


def favour_for_longer(
    errors: Array, lengths: Sequence[Sequence[int]], clusters: NDArray[np.intp], unit: Unit
) -> LengthFavour | None:
    """Estimate the favour for the longer answer from errors (n,): how much more the new one is overrated.

    `lengths` are those of (base, new). None where fewer than ten items have answers of another length.
    """
    base, new = (np.maximum(np.array(of, float), 1.0) for of in lengths)
    differs = base != new
    if differs.sum() < MIN_LABELS:
        return None
    longer = (new > base)[differs]
    own = np.where(longer, 1.0, -1.0) * errors[differs]
    is_length = min(longer.sum(), (~longer).sum()) >= MIN_LABELS
    mean = stats.clustered_mean(_balance(own, longer) if is_length else own, clusters[differs])
    if mean.se is None:
        return None
    found = Estimate(mean.mean, *stats.t_interval(mean), mean.n, unit)
    ratio = exp(float(np.log(new / base).mean()))
    return LengthFavour(found, ratio, float(longer.mean()), bool(is_length))


def _balance(values: Array, part: NDArray[np.bool_]) -> Array:
    """Return values (n,) whose mean is that of the two parts' means, and whose spread is that within them."""
    means = [values[of].mean() for of in (part, ~part)]
    weights = np.where(part, 0.5 / part.mean(), 0.5 / (~part).mean())
    balanced: Array = sum(means) / 2 + weights * (values - np.where(part, *means))
    return balanced
