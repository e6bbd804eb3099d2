"""Preferences between two answers: win rates, Bradley-Terry strengths, agreement of raters.

Invariant: a tie is half a win for each side, and a skipped item does not count. Where no finite estimate
exists (a side won or lost everything) the result is None and never a large number.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from harness.stats.intervals import Array, wilson
from harness.stats.paired import mcnemar

_ELO = 400 / np.log(10)
_STEPS, _ENOUGH = 50, 1e-10


class WinRate(NamedTuple):
    """The share of comparisons that a side won (ties half), with Wilson's interval and the sign test's p."""

    rate: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int
    p: float


class Strength(NamedTuple):
    """A side's strength in Elo points over the first side, with its interval; None if not finite."""

    elo: float | None
    low: float | None
    high: float | None


def win_rate(wins: int, losses: int, ties: int = 0, alpha: float = 0.05) -> WinRate:
    """Estimate how often one side is preferred, and test that both are equally likely to be.

    The rate is (wins + ties/2)/n with Wilson's interval; the test ignores ties. Not where several raters
    judged the same items: resample by item (`bradley_terry`).

    Raises:
        ValueError: a count is negative, or there is no comparison.

    Source: Wilson 1927; Dixon & Mood 1946 (sign test).
    """
    if min(wins, losses, ties) < 0:
        raise ValueError(f"counts must not be negative: {wins}, {losses}, {ties}")
    n, won = wins + losses + ties, wins + ties / 2
    p = mcnemar(wins, losses).exact
    return WinRate(won / n if n else 0.0, *wilson(won, n, alpha), wins, losses, ties, p)


def bradley_terry(
    first: Sequence[int],
    second: Sequence[int],
    won: Sequence[float],
    items: Sequence[Hashable],
    *,
    draws: int = 1000,
    seed: int = 0,
    alpha: float = 0.05,
) -> list[Strength]:
    """Estimate the strength of every side from comparisons (n,), in Elo points over side 0.

    `first` and `second` number the sides, `won` is 1, ½ or 0 for the first of them, `items` name what was
    compared. Logistic regression without a constant on +1 and −1; the intervals are percentiles over
    resampled items. In a draw whose likelihood has no maximum, both sides of each pair that met get half a
    win more. Not for sides that no chain of comparisons connects.

    Raises:
        ValueError: the lengths differ, there is no comparison, or a result is not in [0, 1].

    Source: Bradley & Terry 1952; existence of the maximum: Ford 1957; half a win: Agresti 2013, §3.3.
    """
    a, b, y = np.asarray(first, int), np.asarray(second, int), np.asarray(won, float)
    if not len(a) == len(b) == len(y) == len(items) or not len(a) or y.min() < 0 or y.max() > 1:
        raise ValueError(f"expected results in [0, 1] of as many pairs, found {len(a)}, {len(b)}, {len(y)}")
    k = int(max(a.max(), b.max())) + 1
    codes = _codes(items)
    n_items = int(codes.max()) + 1
    times = np.random.default_rng(seed).multinomial(n_items, np.full(n_items, 1 / n_items), draws)
    observed_wins = _table(a, b, y, np.ones((1, len(a))), k)  # (1, k, k)
    drawn_wins = _table(a, b, y, times[:, codes].astype(float), k)  # (d, k, k)
    if not _is_connected(observed_wins[0]):
        return [Strength(0.0, 0.0, 0.0), *[Strength(None, None, None)] * (k - 1)]
    have_met = (observed_wins[0] + observed_wins[0].T) > 0
    is_unconnected = np.array([not _is_connected(table) for table in drawn_wins], bool)
    drawn_wins[is_unconnected] += 0.5 * have_met
    best, spread = _fit(observed_wins)[0], _fit(drawn_wins)  # (k,), (d, k)
    ends = np.quantile(spread, [alpha / 2, 1 - alpha / 2], axis=0)
    return [Strength(*(float(_ELO * x) + 0.0 for x in (best[i], ends[0, i], ends[1, i]))) for i in range(k)]


def krippendorff_alpha(units: Iterable[Mapping[Any, Any]], *, graded: bool = False) -> float | None:
    """Return how far raters agree: 1 fully, 0 as by chance, below 0 less than by chance.

    Each unit maps raters to their labels; units with one label are ignored. Labels without order are equal or
    different; `graded` labels are numbers whose distance is squared. None if no unit has two labels, or
    all labels are the same, so that chance would agree as well. Not for ranks, whose distances mean nothing.

    Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability, nominal and interval data.
    """
    pairs: dict[tuple[Any, Any], float] = {}
    for unit in units:
        labels = list(unit.values())
        for i, left in enumerate(labels):
            for j, right in enumerate(labels):
                if i != j:
                    pairs[left, right] = pairs.get((left, right), 0.0) + 1 / (len(labels) - 1)
    totals: dict[Any, float] = {}
    for (left, _), count in pairs.items():
        totals[left] = totals.get(left, 0.0) + count
    n = sum(totals.values())

    def distance(left: Any, right: Any) -> float:
        return (left - right) ** 2 if graded else float(left != right)

    expected = sum(a * b * distance(left, right) for left, a in totals.items() for right, b in totals.items())
    if n <= 1 or expected <= 0:
        return None
    observed = sum(count * distance(left, right) for (left, right), count in pairs.items())
    return 1 - (n - 1) * observed / expected


def _codes(items: Sequence[Hashable]) -> np.ndarray:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(item, len(numbers)) for item in items])


def _table(a: np.ndarray, b: np.ndarray, won: Array, weights: Array, k: int) -> Array:
    """Count wins of side i over side j: weights (d, n) → (d, k, k)."""
    table = np.zeros((len(weights), k, k))
    for i, j, y, w in zip(a, b, won, weights.T, strict=True):
        table[:, i, j] += w * y
        table[:, j, i] += w * (1 - y)
    return table


def _is_connected(wins: Array) -> bool:
    """Tell whether every side beat every other through some chain: only then does the maximum exist."""
    reach = (wins > 0) | np.eye(len(wins), dtype=bool)
    for _ in range(max(1, int(np.ceil(np.log2(len(wins)))))):
        reach = reach @ reach
    return bool(reach.all())


def _fit(wins: Array) -> Array:
    """Maximise the likelihood by Newton's method: wins (d, k, k) → strengths (d, k), the first 0."""
    d, k, _ = wins.shape
    played, beta = wins + wins.transpose(0, 2, 1), np.zeros((d, k))
    for _ in range(_STEPS):
        expected = special.expit(beta[:, :, None] - beta[:, None, :])
        slope = (wins - played * expected).sum(axis=2)[:, 1:]
        weight = played * expected * (1 - expected)
        curvature = -weight
        curvature[:, range(k), range(k)] += weight.sum(axis=2)
        step = np.linalg.solve(curvature[:, 1:, 1:], slope[:, :, None])[:, :, 0]
        beta[:, 1:] += np.clip(step, -2, 2)
        if np.abs(step).max(initial=0) < _ENOUGH:
            break
    return beta
