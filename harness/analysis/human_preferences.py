"""Human preference between two candidates: the order of rating, its result, and win rates.

Invariant: order and sides depend on rater and pair alone. A rater's later rating replaces an earlier one;
skipped items do not count. A tie is half a win, and equal answers are a tie without a rating. A judge's
preferences are corrected by people's ratings of a random part of the same pairs. Which items have equal
answers is part of the sample. Source: `judge_correction`; Wilson 1927 for people alone and unclustered items.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import formatting, stats
from harness.analysis.estimators import Comparison, Estimate
from harness.analysis.judge_correction import MIN_LABELS, GradedArm, PairBias, correct_score, estimate_share
from harness.analysis.people_labels import count_drawn, count_enough_labels
from harness.formatting import Unit
from harness.records import Rating, digest
from harness.spec import PEOPLE
from harness.stats import Array, Strength, WinRate

Side = Literal["a", "b"]
Choice = Literal["a", "b", "tie", "skip"]
_SWAPPED: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie", "skip": "skip"}
_WON = {"a": 1.0, "tie": 0.5, "b": 0.0}
_TIE = 0.5
PREFERENCE = Unit(name="points of win rate beyond 50 %")
UNCHECKED_PREFERENCE = Unit(name=f"{PREFERENCE.name} (by a judge that too few ratings of people check yet)")
_RATE = "rate pairs of their answers (harness rate export FILE --pairs, or harness dashboard, Rate)"


class Turn(NamedTuple):
    """One item shown to a rater, and the side whose answer is on the left."""

    example_id: str
    left: Side


class PreferenceResult(NamedTuple):
    """Result of one pair's ratings; `rate` is the share of items on which side b is preferred.

    Each item has one vote, by the majority of its raters. `strength` is the lead of side b in Elo points,
    with an interval over items. `agreement` is Krippendorff's alpha, None with fewer than two raters.
    """

    n_items: int
    n_ratings: int
    n_skipped: int
    raters: tuple[str, ...]
    rate: WinRate | None
    strength: Strength | None
    agreement: float | None


def turns(ids: Sequence[str], rater: str, rows_a: str, rows_b: str) -> list[Turn]:
    """Shuffle items and sides for one rater of one pair of row sets."""
    draw = random.Random(digest([rater, rows_a, rows_b]))
    order = sorted(ids)
    draw.shuffle(order)
    return [Turn(item, "a" if draw.random() < 0.5 else "b") for item in order]


def find_next_turn(
    ids: Sequence[str], ratings: Iterable[Rating], rater: str, rows_a: str, rows_b: str
) -> Turn | None:
    """Return the first item that the rater has neither rated nor skipped; None if all are done."""
    seen_ids = {r.example_id for r in ratings if (r.rater, r.rows_a, r.rows_b) == (rater, rows_a, rows_b)}
    return next((turn for turn in turns(ids, rater, rows_a, rows_b) if turn.example_id not in seen_ids), None)


def outcome(ratings: Iterable[Rating], rows_a: str, rows_b: str) -> PreferenceResult:
    """Count the preferences between two row sets, in whichever order they were rated."""
    latest = _latest(ratings, rows_a, rows_b)
    votes = [r for r in latest if r.choice != "skip"]
    by_item: dict[str, dict[str, Choice]] = {}
    for r in votes:
        by_item.setdefault(r.example_id, {})[r.rater] = r.choice
    shares = [*map_preference_shares(latest, rows_a, rows_b).values()]
    wins, losses = sum(share > 0.5 for share in shares), sum(share < 0.5 for share in shares)
    strength = None
    if votes:
        n, won = len(votes), [1 - _WON[r.choice] for r in votes]
        strength = stats.bradley_terry([1] * n, [0] * n, won, [r.example_id for r in votes])[1]
    return PreferenceResult(
        n_items=len(by_item),
        n_ratings=len(votes),
        n_skipped=len(latest) - len(votes),
        raters=tuple(sorted({r.rater for r in latest})),
        rate=stats.win_rate(wins, losses, len(shares) - wins - losses) if shares else None,
        strength=strength,
        agreement=stats.krippendorff_alpha(list(by_item.values())),
    )


def map_preference_shares(ratings: Iterable[Rating], rows_a: str, rows_b: str) -> dict[str, float]:
    """Map each rated item to the share of its raters who prefer side b; a tie counts half."""
    won: dict[str, list[float]] = {}
    for r in _latest(ratings, rows_a, rows_b):
        if r.choice != "skip":
            won.setdefault(r.example_id, []).append(1 - _WON[r.choice])
    return {item: sum(shares) / len(shares) for item, shares in won.items()}


def map_counted_shares(
    ratings: Iterable[Rating], ids: Iterable[str], rows_a: str, rows_b: str
) -> dict[str, float]:
    """Map the items whose ratings count to the share of their raters who prefer side b.

    Ratings count up to the pair at which 95 % of the pairs have one, in the order of pair files over all
    raters, or in each rater's own order on the Rate page. `ids` are the items that were shown.
    """
    all_ratings, ids = list(ratings), list(ids)
    latest = [r for r in _latest(all_ratings, rows_a, rows_b) if r.choice != "skip"]
    voted = {(r.rater, r.example_id) for r in latest}
    counted = set[tuple[str, str]]()
    for sides in ((rows_a, rows_b), (rows_b, rows_a)):  # pairs were shuffled with either of the two as side a
        side_ratings = [
            r for r in all_ratings if (r.rows_a, r.rows_b) == sides and (r.rater, r.example_id) in voted
        ]
        orders = dict[str, list[Rating]]()
        for r in side_ratings:  # only the Rate page records the time
            orders.setdefault("" if r.seconds is None else r.rater, []).append(r)
        for order, group in orders.items():
            drawn_turns, rated = turns(ids, order, *sides), {r.example_id for r in group}
            mask = np.array([turn.example_id in rated for turn in drawn_turns], bool)
            counting = {turn.example_id for turn in drawn_turns[: count_drawn(mask, np.ones_like(mask))]}
            counted |= {(r.rater, r.example_id) for r in group if r.example_id in counting}
    return map_preference_shares([r for r in latest if (r.rater, r.example_id) in counted], rows_a, rows_b)


def _latest(ratings: Iterable[Rating], rows_a: str, rows_b: str) -> list[Rating]:
    """List each rater's latest rating of each item of two row sets, in whichever order they were rated."""
    latest: dict[tuple[str, str], Rating] = {}
    for r in ratings:
        if r.rows_a == rows_b != r.rows_b:
            left: Side = "a" if r.left == "b" else "b"
            r = replace(r, run_a=r.run_b, run_b=r.run_a, rows_a=r.rows_b, rows_b=r.rows_a, left=left)
            r = replace(r, choice=_SWAPPED[r.choice])
        if (r.rows_a, r.rows_b) == (rows_a, rows_b):
            latest[r.rater, r.example_id] = r
    return [*latest.values()]


def strengths(ratings: Iterable[Rating]) -> dict[str, Strength]:
    """Estimate each rated run's lead in Elo points over the first run by id, from all pairs."""
    latest = {(r.rater, r.example_id, frozenset((r.rows_a, r.rows_b))): r for r in ratings}
    votes = [r for r in latest.values() if r.choice != "skip"]
    if not votes:
        return {}
    runs = sorted({run for r in votes for run in (r.run_a, r.run_b)})
    leads = stats.bradley_terry(
        [runs.index(r.run_a) for r in votes],
        [runs.index(r.run_b) for r in votes],
        [_WON[r.choice] for r in votes],
        [r.example_id for r in votes],
    )
    return dict(zip(runs, leads, strict=True))


class Wins(NamedTuple):
    """Win rate over the candidate `over`, as preferred `by` people or by a judge, with its 95 % interval.

    `rate` is None if no pair was compared. `uncorrected` is a judge's own rate. People rated `n_ratings`
    pairs; `missing` more are needed before a judge may decide. `unrated` counts pairs without a rating if
    people alone decide; `is_open` says that too many items have no result.
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
        """Number of people's ratings that a decision still needs, alone or to correct a judge."""
        return self.missing or min(max(0, MIN_LABELS - self.n_ratings), self.unrated)

    def counts_as_gain_over(self, name: str) -> bool:
        """Tell whether the rate counts as a gain over a candidate: known, and with enough results."""
        return self.over == name and self.rate is not None and not self.lacking and not self.is_open


class OpenRating(NamedTuple):
    """Reason why a declared win rate may not decide, the next step, and how many ratings it needs."""

    why: str
    then: str
    n_ratings: int = 0


def find_open_rating(wins: Wins, answers: str) -> OpenRating | None:
    """Say what keeps a win rate of these `answers` from deciding; None if it may decide."""
    pair = f"{answers} against those of {wins.over}"
    lacking = formatting.pluralize(wins.lacking, "more rating")
    if wins.lacking and wins.by != PEOPLE:
        why = f"{wins.by} compared {pair}, and needs {lacking} of people of the same pairs before it decides"
        return OpenRating(why, f"{_RATE}, or set gate.uncalibrated_judge to allow", wins.lacking)
    if wins.by == PEOPLE and wins.rate is None:
        return OpenRating(f"there are no ratings of {pair}", _RATE, wins.lacking)
    if wins.lacking:
        rated = f"people have rated {formatting.pluralize(wins.n_ratings, 'pair')} of {pair}"
        return OpenRating(f"{rated}, and {lacking} are needed", _RATE, wins.lacking)
    if wins.is_open:
        why = f"too many items tell nothing of {pair}: they failed, or what was preferred cannot be read"
        return OpenRating(why, "compare again, for a judge with more attempts in its rubric")
    return None if wins.rate else OpenRating(f"{wins.by} has not compared {pair}", "compare again")


class AnswerPairs(NamedTuple):
    """Pairs of answers to the same items, as item → cluster: different pairs and equal pairs."""

    clusters: Mapping[str, str]
    equal: Mapping[str, str]


def wins_by_people(over: str, pairs: AnswerPairs, votes: Mapping[str, float]) -> Wins:
    """Estimate the win rate from people's votes, given per item as the share who prefer the new answer."""
    items = sorted(pairs.clusters)
    labels = _labels(items, votes)
    n_rated = int((~np.isnan(labels)).sum())
    if items and not n_rated:
        return Wins(over, PEOPLE, None, 0, unrated=len(items))
    ends = (_TIE, 0.0, 1.0)
    if items:
        known_labels, clusters = labels[~np.isnan(labels)], _codes(pairs.clusters, items)
        if len(np.unique(clusters)) == len(clusters):  # unclustered items: Wilson's interval
            ends = stats.win_rate(*(int((known_labels == share).sum()) for share in (1, 0, _TIE)))[:3]
        elif (mean := correct_score(GradedArm(np.zeros_like(labels), labels, clusters), power=0.0)) is None:
            ends = float(known_labels.mean()), 0.0, 1.0
        else:
            ends = mean.score, mean.low, mean.high
    return Wins(over, PEOPLE, _spread_over_all(pairs, *ends), n_rated, unrated=len(items) - n_rated)


def wins_by_judge(
    over: str, judge: str, pairs: AnswerPairs, won: Mapping[str, float], votes: Mapping[str, float]
) -> Wins:
    """Estimate the win rate from a judge's preferences of all pairs, corrected by people's votes on some."""
    items = sorted(pairs.clusters)
    n_rated = sum(item in votes for item in items)
    if any(item not in won for item in items):
        return Wins(over, judge, None, n_rated)
    missing = max(count_enough_labels(len(items)) - n_rated, 0)
    if not items:
        return Wins(over, judge, _spread_over_all(pairs, _TIE, 0.0, 1.0), 0, _TIE)
    grades = np.array([won[item] for item in items], float)
    labels = grades if missing else _labels(items, votes)
    ppi = correct_score(GradedArm(grades, labels, _codes(pairs.clusters, items)))
    ends = (ppi.score, ppi.low, ppi.high) if ppi else (float(np.nanmean(labels)), 0.0, 1.0)
    uncorrected = _spread_over_all(pairs, float(grades.mean()), 0.0, 1.0).score
    return Wins(over, judge, _spread_over_all(pairs, *ends), n_rated, uncorrected, missing, not missing)


def preference_gain(wins: Wins) -> Comparison | None:
    """Return a win rate as a gain over ½, with the standard error of the wider side; None without a rate."""
    if wins.rate is None:
        return None
    rate, low, high, n = wins.rate[:4]
    se = max(high - rate, rate - low) / stats.z_quantile(0.975)
    one_sided = stats.z_quantile(0.95) * se
    delta = rate - _TIE
    return Comparison(
        task="", metric=wins.by, n=n, n_clusters=n,
        base=_TIE, base_low=_TIE, base_high=_TIE, new=rate, new_low=low, new_high=high,
        delta=delta, low=low - _TIE, high=high - _TIE, se=se,
        disagreement=1.0, lost=(), gained=(),
        estimator="ppi" if wins.corrected and wins.n_ratings and wins.by != PEOPLE else "bounds",
        lower=delta - one_sided, upper=delta + one_sided,
        unit=PREFERENCE if wins.corrected else UNCHECKED_PREFERENCE,
    )  # fmt: skip


def _labels(items: Sequence[str], votes: Mapping[str, float]) -> Array:
    """Return 1, ½ or 0 (n,) by the majority of an item's votes, NaN without votes."""
    shares = np.array([votes.get(item, np.nan) for item in items], float)
    return np.where(np.isnan(shares), np.nan, (1 + np.sign(shares - _TIE)) / 2)


def _codes(clusters: Mapping[str, str], items: Sequence[str]) -> NDArray[np.intp]:
    return np.unique([clusters[item] for item in items], return_inverse=True)[1]


def _spread_over_all(pairs: AnswerPairs, rate: float, low: float, high: float) -> Estimate:
    """Extend an estimate over differing pairs to all, equal answers as ties; errors add in quadrature."""
    every = {**dict.fromkeys(pairs.clusters, 1.0), **dict.fromkeys(pairs.equal, 0.0)}
    if not every:
        return Estimate(_TIE, 0.0, 1.0, 0)
    differs = np.array(list(every.values()))
    share, lower, upper = estimate_share(differs, _codes({**pairs.clusters, **pairs.equal}, [*every]))[:3]
    if not pairs.clusters:
        return Estimate(_TIE, _TIE - upper / 2, _TIE + upper / 2, len(every))
    at = _TIE + share * (rate - _TIE)
    by_share = sorted((rate - _TIE) * (end - share) for end in (lower, upper))
    below = stats.quadrature([share * (rate - low), by_share[0]])
    above = stats.quadrature([share * (high - rate), by_share[1]])
    return Estimate(at, max(at - below, 0.0), min(at + above, 1.0), len(every))
