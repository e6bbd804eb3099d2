"""Bias of a judge of pairs: what it prefers in an answer beside being the better one.

Invariant: position is judged by each pair's two orders, so a judge without a preference for a place gives one
half whatever the answers are. What people prefer of the same pairs is taken off a preference for the longer
answer, or for a candidate.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.comparison.biases.length_bias import LengthFavour, estimate_length_favour
from harness.comparison.biases.mean_error import error_interval
from harness.comparison.estimators import Estimate
from harness.comparison.judge_correction import MIN_LABELS
from harness.formatting import RATE
from harness.stats import Array


class PairBias(NamedTuple):
    """Preferences of a judge of pairs, each None where too few pairs tell.

    `first` is the share of comparisons that the answer shown first won, `longer` the share of pairs of
    unequal length in which the longer answer was preferred. Beside people, on the pairs that they rated: by
    how much more it favours the new candidate (`favour`), and the longer answer (`longer_beside_people`), in
    win rate.
    """

    first: Estimate | None = None
    longer: Estimate | None = None
    favour: Estimate | None = None
    longer_beside_people: LengthFavour | None = None


class JudgedPair(NamedTuple):
    """One pair of unlike answers as a judge compared it, and as people did where they rated it.

    `won` says how far the new answer is preferred, `first` how far the one shown first; `lengths` are those
    of (base, new).
    """

    won: float
    first: float
    lengths: tuple[int, int]
    cluster: str
    vote: float | None = None


def bias_of(pairs: Mapping[str, JudgedPair]) -> PairBias:
    """Estimate what a judge prefers in the pairs that it compared, by item."""
    every = list(pairs.values())
    unequal = [pair for pair in every if pair.lengths[0] != pair.lengths[1]]
    rated = [pair for pair in every if pair.vote is not None]
    errors = np.array([pair.won - (pair.vote or 0.0) for pair in rated], float)
    lengths = [[pair.lengths[arm] for pair in rated] for arm in (0, 1)]
    return PairBias(
        first=_rate(every, np.array([pair.first for pair in every], float)),
        longer=_rate(unequal, np.array([_longer_won(pair) for pair in unequal], float)),
        favour=_mean(rated, errors),
        longer_beside_people=estimate_length_favour(errors, lengths, _codes(rated), RATE)
        if len(rated) >= MIN_LABELS
        else None,
    )


def _longer_won(pair: JudgedPair) -> float:
    return pair.won if pair.lengths[1] > pair.lengths[0] else 1 - pair.won


def _codes(pairs: list[JudgedPair]) -> NDArray[np.intp]:
    return np.unique([pair.cluster for pair in pairs], return_inverse=True)[1]


def _rate(pairs: list[JudgedPair], values: Array) -> Estimate | None:
    """Estimate a share of pairs with Wilson's interval of as many as their clusters are worth."""
    if len(pairs) < MIN_LABELS:
        return None
    effect = stats.design_effect(values, _codes(pairs))
    ends = stats.wilson(float(values.sum()) / effect, len(values) / effect)
    return Estimate(float(values.mean()), *ends, len(values))


def _mean(pairs: list[JudgedPair], values: Array) -> Estimate | None:
    """Estimate a mean over pairs with its interval; None where they are too few, or in too few clusters."""
    if len(pairs) < MIN_LABELS:
        return None
    codes = _codes(pairs)
    mean = stats.clustered_mean(values, codes)
    if mean.se is None:
        return None
    return Estimate(mean.mean, *error_interval(mean, [values], [codes], 1.0), mean.n)
