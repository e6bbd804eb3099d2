"""Human preference between two candidates: the order of rating, and its result.

Invariant: pure. Order and sides depend on rater and pair alone, so a rater who comes back goes on where
they were, and whose answer stands on the left tells nothing. A rater's later rating of an item counts
instead of an earlier one; a skipped item counts for nothing.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from harness import stats
from harness.records import Rating, digest
from harness.stats import Strength, WinRate

Side = Literal["a", "b"]
Choice = Literal["a", "b", "tie", "skip"]
_SWAPPED: dict[Choice, Choice] = {"a": "b", "b": "a", "tie": "tie", "skip": "skip"}
_WON = {"a": 1.0, "tie": 0.5, "b": 0.0}
_DRAWN = 0.95  # of the pairs up to one, in the order of drawing, have a rating where ratings count


class Turn(NamedTuple):
    """One item that a rater is asked, and whose answer stands on the left."""

    example_id: str
    left: Side


class PreferenceResult(NamedTuple):
    """Result of one pair's ratings; `rate` is the share of items on which side b is preferred.

    One vote an item: that of most of its raters. `strength` is side b's over side a in Elo points,
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
    ids: Sequence[str], done: Iterable[Rating], rater: str, rows_a: str, rows_b: str
) -> Turn | None:
    """Return the first item that the rater has not rated or skipped yet; None where all are done."""
    seen = {r.example_id for r in done if (r.rater, r.rows_a, r.rows_b) == (rater, rows_a, rows_b)}
    return next((turn for turn in turns(ids, rater, rows_a, rows_b) if turn.example_id not in seen), None)


def outcome(ratings: Iterable[Rating], rows_a: str, rows_b: str) -> PreferenceResult:
    """Count what was preferred of two row sets, whichever of the two was called a."""
    latest = _latest(ratings, rows_a, rows_b)
    votes = [r for r in latest if r.choice != "skip"]
    by_item: dict[str, dict[str, Choice]] = {}
    for r in votes:
        by_item.setdefault(r.example_id, {})[r.rater] = r.choice
    shares = [*map_preference_shares(latest, rows_a, rows_b).values()]
    wins, losses = sum(share > 0.5 for share in shares), sum(share < 0.5 for share in shares)
    return PreferenceResult(
        n_items=len(by_item),
        n_ratings=len(votes),
        n_skipped=len(latest) - len(votes),
        raters=tuple(sorted({r.rater for r in latest})),
        rate=stats.win_rate(wins, losses, len(shares) - wins - losses) if shares else None,
        strength=_strength(votes) if votes else None,
        agreement=stats.krippendorff_alpha(list(by_item.values())),
    )


def map_preference_shares(ratings: Iterable[Rating], rows_a: str, rows_b: str) -> dict[str, float]:
    """Map each rated item to the share of its raters who prefer side b, a tie being half of one."""
    won: dict[str, list[float]] = {}
    for r in _latest(ratings, rows_a, rows_b):
        if r.choice != "skip":
            won.setdefault(r.example_id, []).append(1 - _WON[r.choice])
    return {item: sum(of) / len(of) for item, of in won.items()}


def map_counted_shares(
    ratings: Iterable[Rating], ids: Iterable[str], rows_a: str, rows_b: str
) -> dict[str, float]:
    """Map the items whose ratings count to the share of their raters who prefer side b, of `ids` shown.

    They count up to where 95 % of the pairs have one, in the order of pair files, of all raters together, or
    in each rater's own, that of the Rate page: picked pairs are no random part of those that differ.
    """
    found, ids = list(ratings), list(ids)
    latest = [r for r in _latest(found, rows_a, rows_b) if r.choice != "skip"]
    voted = {(r.rater, r.example_id) for r in latest}
    counted = set[tuple[str, str]]()
    for sides in ((rows_a, rows_b), (rows_b, rows_a)):  # pairs are shuffled as one of the two was called a
        given = [r for r in found if (r.rows_a, r.rows_b) == sides and (r.rater, r.example_id) in voted]
        orders = dict[str, list[Rating]]()
        for r in given:  # only the page takes the time
            orders.setdefault("" if r.seconds is None else r.rater, []).append(r)
        for order, of in orders.items():
            drawn = _select_counted_items(turns(ids, order, *sides), {r.example_id for r in of})
            counted |= {(r.rater, r.example_id) for r in of if r.example_id in drawn}
    return map_preference_shares([r for r in latest if (r.rater, r.example_id) in counted], rows_a, rows_b)


def _select_counted_items(order: Sequence[Turn], rated: set[str]) -> set[str]:
    """Return the items up to the last one where 95 % have a rating."""
    n_rated = last = 0
    for place, turn in enumerate(order, 1):
        n_rated += turn.example_id in rated
        last = place if n_rated >= _DRAWN * place else last
    return {turn.example_id for turn in order[:last]}


def _latest(ratings: Iterable[Rating], rows_a: str, rows_b: str) -> list[Rating]:
    """List each rater's latest rating of each item of two row sets, whichever of the two was called a."""
    turned = (_swap_sides(r, rows_b) for r in ratings)
    own = (r for r in turned if (r.rows_a, r.rows_b) == (rows_a, rows_b))
    return [*{(r.rater, r.example_id): r for r in own}.values()]


def strengths(ratings: Iterable[Rating]) -> dict[str, Strength]:
    """Estimate each rated run's strength in Elo points over the first one by id, from all pairs."""
    latest = {(r.rater, r.example_id, frozenset((r.rows_a, r.rows_b))): r for r in ratings}
    votes = [r for r in latest.values() if r.choice != "skip"]
    if not votes:
        return {}
    runs = sorted({run for r in votes for run in (r.run_a, r.run_b)})
    found = stats.bradley_terry(
        [runs.index(r.run_a) for r in votes],
        [runs.index(r.run_b) for r in votes],
        [_WON[r.choice] for r in votes],
        [r.example_id for r in votes],
    )
    return dict(zip(runs, found, strict=True))


def _strength(votes: Sequence[Rating]) -> Strength:
    ones, zeros = [1] * len(votes), [0] * len(votes)
    won = [1 - _WON[r.choice] for r in votes]
    return stats.bradley_terry(ones, zeros, won, [r.example_id for r in votes])[1]


def _swap_sides(r: Rating, rows_b: str) -> Rating:
    """Swap the sides of a rating whose a is the pair's b."""
    if r.rows_a != rows_b or r.rows_a == r.rows_b:
        return r
    return replace(
        r,
        run_a=r.run_b,
        run_b=r.run_a,
        rows_a=r.rows_b,
        rows_b=r.rows_a,
        left="a" if r.left == "b" else "b",
        choice=_SWAPPED[r.choice],
    )
