"""Win rate of a candidate over another: the share of items on which its answer is preferred.

Invariant: a tie is half a win, and equal answers are one that nobody has to see. A judge's preferences are
corrected by people's of a random part of the same pairs, as its grades are by labels; without enough of them
the figure is the judge's own, and says how many are missing. Which items have equal answers is part of the
sample, so the interval holds its chance as well.
Source: `judge_correction`; Wilson 1927 for people alone, of items that come by themselves.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.comparison.estimators import Comparison, Estimate
from harness.comparison.judge_correction import MIN_LABELS, GradedArm, PairBias, correct_score
from harness.comparison.labelled_answers import count_enough_labels
from harness.formatting import Unit
from harness.spec import PEOPLE
from harness.stats import Array

_TIE = 0.5
PREFERENCE = Unit(name="points of win rate beyond 50 %")
UNCHECKED_PREFERENCE = Unit(name=f"{PREFERENCE.name} (by a judge that too few ratings of people check yet)")


class Wins(NamedTuple):
    """Win rate over the candidate `over`, as preferred `by` people or by a judge, with its 95 % interval.

    `rate` is None where no pair was compared. `uncorrected` is the judge's own, None of people. So many pairs
    were rated by people (`n_ratings`), and so many more are `missing` before a judge may decide; until then
    the rate is not `corrected`. `bias` is what a judge was found to prefer. `unrated` counts the pairs that
    nobody rated, where people are asked alone; `is_open` says that too many items tell nothing.
    """

    over: str
    by: str
    rate: Estimate | None
    n_ratings: int
    uncorrected: float | None = None
    missing: int = 0
    corrected: bool = True
    bias: PairBias | None = None
    unrated: int = 0
    is_open: bool = False

    @property
    def lacking(self) -> int:
        """Number of ratings of people that a decision waits for, by people alone or of a judge's pairs."""
        return self.missing or min(max(0, MIN_LABELS - self.n_ratings), self.unrated)

    @property
    def counts_as_gain(self) -> bool:
        """Whether the rate is known, on pairs enough of which people rated and few of which tell nothing."""
        return self.rate is not None and not self.lacking and not self.is_open


class AnswerPairs(NamedTuple):
    """Pairs of answers to the same items, as item → cluster: those that differ, and those that are equal."""

    clusters: Mapping[str, str]
    equal: Mapping[str, str]


def wins_by_people(over: str, pairs: AnswerPairs, votes: Mapping[str, float]) -> Wins:
    """Estimate the win rate from people's votes, by item the share who prefer the new answer.

    An item goes to the side that most of them prefer. The items rated are a random part of those that
    differ, as the Rate page asks about them.
    """
    items = sorted(pairs.clusters)
    labels = _labels(items, votes)
    n_rated = int((~np.isnan(labels)).sum())
    if items and not n_rated:
        return Wins(over, PEOPLE, None, 0, unrated=len(items))
    ends = _people_rate(labels, _codes(pairs.clusters, items)) if items else (_TIE, 0.0, 1.0)
    return Wins(over, PEOPLE, _spread_over_all(pairs, *ends), n_rated, unrated=len(items) - n_rated)


def wins_by_judge(
    over: str, judge: str, pairs: AnswerPairs, won: Mapping[str, float], votes: Mapping[str, float]
) -> Wins:
    """Estimate the win rate from a judge's preferences in [0, 1], corrected by people's votes on some pairs.

    Nothing is estimated until each pair that differs was judged.
    """
    items = sorted(pairs.clusters)
    n_rated = sum(item in votes for item in items)
    if any(item not in won for item in items):
        return Wins(over, judge, None, n_rated)
    missing = max(count_enough_labels(len(items)) - n_rated, 0)
    if not items:
        return Wins(over, judge, _spread_over_all(pairs, _TIE, 0.0, 1.0), 0, _TIE)
    grades = np.array([won[item] for item in items], float)
    labels = grades if missing else _labels(items, votes)
    found = correct_score(GradedArm(grades, labels, _codes(pairs.clusters, items)))
    ends = (found.score, found.low, found.high) if found else (float(np.nanmean(labels)), 0.0, 1.0)
    own = _spread_over_all(pairs, float(grades.mean()), 0.0, 1.0).score
    return Wins(over, judge, _spread_over_all(pairs, *ends), n_rated, own, missing, not missing)


def preference_gain(wins: Wins) -> Comparison | None:
    """Write a win rate as a gain: how far it lies beyond the half of an equal candidate; None without one.

    Its standard error is that of the wider side of the interval, which is lopsided near 0 and 1.
    """
    if wins.rate is None:
        return None
    rate, low, high, n = wins.rate[:4]
    se = max(high - rate, rate - low) / stats.z_quantile(0.975)
    one_sided = stats.z_quantile(0.95) * se
    delta = rate - _TIE
    return Comparison(
        task="", metric=wins.by, slice="", n=n, n_clusters=n,
        base=_TIE, base_low=_TIE, base_high=_TIE, new=rate, new_low=low, new_high=high,
        delta=delta, low=low - _TIE, high=high - _TIE, se=se,
        disagreement=1.0, lost=(), gained=(), n_valid=n, delta_valid=None, low_valid=None, high_valid=None,
        estimator="ppi" if wins.corrected and wins.n_ratings and wins.by != PEOPLE else "bounds",
        lower=delta - one_sided, upper=delta + one_sided,
        unit=PREFERENCE if wins.corrected else UNCHECKED_PREFERENCE,
    )  # fmt: skip


def _labels(items: Sequence[str], votes: Mapping[str, float]) -> Array:
    """Return 1, ½ or 0 by the majority of an item's votes, NaN where there is none, (n,)."""
    shares = np.array([votes.get(item, np.nan) for item in items], float)
    return np.where(np.isnan(shares), np.nan, (1 + np.sign(shares - _TIE)) / 2)


def _codes(clusters: Mapping[str, str], items: Sequence[str]) -> NDArray[np.intp]:
    return np.unique([clusters[item] for item in items], return_inverse=True)[1]


def _people_rate(labels: Array, clusters: NDArray[np.intp]) -> tuple[float, float, float]:
    """Return the rate of labels with its interval: Wilson's of items by themselves, else by clusters on t."""
    known = labels[~np.isnan(labels)]
    if len(np.unique(clusters)) == len(clusters):
        found = stats.win_rate(int((known == 1).sum()), int((known == 0).sum()), int((known == _TIE).sum()))
        return found.rate, found.low, found.high
    corrected = correct_score(GradedArm(np.zeros_like(labels), labels, clusters), power=0.0)
    if corrected is None:
        return float(known.mean()), 0.0, 1.0
    return corrected.score, corrected.low, corrected.high


def _spread_over_all(pairs: AnswerPairs, rate: float, low: float, high: float) -> Estimate:
    """Return an estimate over the pairs that differ as one over all of them, the equal ones being ties.

    The two chances, which pairs differ and who wins those, are joined in quadrature. Where none differs, as
    many as may do so elsewhere may all be won, or lost.
    """
    every = {**dict.fromkeys(pairs.clusters, 1.0), **dict.fromkeys(pairs.equal, 0.0)}
    if not every:
        return Estimate(_TIE, 0.0, 1.0, 0)
    share, fewest, most = _share(
        np.array(list(every.values())), _codes({**pairs.clusters, **pairs.equal}, [*every])
    )
    if not pairs.clusters:
        return Estimate(_TIE, _TIE - most / 2, _TIE + most / 2, len(every))
    at = _TIE + share * (rate - _TIE)
    by_share = sorted((rate - _TIE) * (end - share) for end in (fewest, most))
    below = stats.quadrature([share * (rate - low), by_share[0]])
    above = stats.quadrature([share * (high - rate), by_share[1]])
    return Estimate(at, max(at - below, 0.0), min(at + above, 1.0), len(every))


def _share(differs: Array, clusters: NDArray[np.intp]) -> tuple[float, float, float]:
    """Return the share of pairs that differ, and Wilson's interval of as many as the clusters are worth."""
    effect = stats.design_effect(differs, clusters)
    return float(differs.mean()), *stats.wilson(float(differs.sum()) / effect, len(differs) / effect)
