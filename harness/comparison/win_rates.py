"""Win rate of a candidate over another: the share of items on which its answer is preferred.

Invariant: a tie is half a win, and equal answers are one that nobody has to see. A judge's preferences are
corrected by people's of a random part of the same pairs, as its grades are by labels; without enough of them
the figure is the judge's own, and says how many are missing.
Source: `judge_correction`; Wilson 1927 for people alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from harness import stats
from harness.comparison.estimators import Estimate
from harness.comparison.judge_correction import Graded, correct_score
from harness.comparison.labelled_answers import ENOUGH_LABELS
from harness.spec import PEOPLE

_TIE = 0.5


class Wins(NamedTuple):
    """Win rate over the candidate `over`, as preferred `by` people or by a judge, with its 95 % interval.

    `rate` is None where no pair was compared. `uncorrected` is the judge's own, None of people. So many pairs
    were rated by people (`n_ratings`), and so many more are `missing` before a judge may decide; until then
    the rate is not `corrected`.
    """

    over: str
    by: str
    rate: Estimate | None
    n_ratings: int
    uncorrected: float | None = None
    missing: int = 0
    corrected: bool = True


class Pairs(NamedTuple):
    """Pairs of answers to the same items: those that differ with their clusters, and how many are equal."""

    clusters: Mapping[str, str]
    n_equal: int


def wins_by_people(over: str, pairs: Pairs, votes: Mapping[str, float]) -> Wins:
    """Estimate the win rate from people's votes, by item the share who prefer the new answer.

    The items rated are a random part of those that differ, as the Rate page asks about them.
    """
    rated = {item: share for item, share in votes.items() if item in pairs.clusters}
    if not rated and pairs.clusters:
        return Wins(over, PEOPLE, None, 0)
    shares = list(rated.values())
    found = (
        stats.win_rate(sum(s > _TIE for s in shares), sum(s < _TIE for s in shares), shares.count(_TIE))
        if shares
        else stats.WinRate(_TIE, _TIE, _TIE, 0, 0, 0, 1.0)
    )
    rate = _over_all(pairs, found.rate, found.low, found.high)
    return Wins(over, PEOPLE, rate, len(rated))


def wins_by_judge(
    over: str, judge: str, pairs: Pairs, won: Mapping[str, float], votes: Mapping[str, float]
) -> Wins:
    """Estimate the win rate from a judge's preferences in [0, 1], corrected by people's votes on some pairs.

    Nothing is estimated until each pair that differs was judged.
    """
    items = sorted(pairs.clusters)
    n_rated = sum(item in votes for item in items)
    if any(item not in won for item in items):
        return Wins(over, judge, None, n_rated)
    missing = max(min(ENOUGH_LABELS, len(items)) - n_rated, 0)
    if not items:
        return Wins(over, judge, _over_all(pairs, _TIE, _TIE, _TIE), 0, _TIE)
    grades = np.array([won[item] for item in items], float)
    clusters = np.unique([pairs.clusters[item] for item in items], return_inverse=True)[1]
    labels = grades if missing else np.array([votes.get(item, np.nan) for item in items], float)
    found = correct_score(Graded(grades, labels, clusters))
    ends = (found.score, found.low, found.high) if found else (float(np.nanmean(labels)), 0.0, 1.0)
    own = _over_all(pairs, float(grades.mean()), 0.0, 1.0).score
    return Wins(over, judge, _over_all(pairs, *ends), n_rated, own, missing, not missing)


def _over_all(pairs: Pairs, rate: float, low: float, high: float) -> Estimate:
    """Return an estimate over the pairs that differ as one over all of them, the equal ones being ties."""
    n = len(pairs.clusters) + pairs.n_equal
    share = len(pairs.clusters) / n if n else 0.0
    ties = (1 - share) * _TIE
    return Estimate(share * rate + ties, share * low + ties, share * high + ties, n)
