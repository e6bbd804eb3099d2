"""Judges and people: agreement, rates and means corrected by labels, and preferences between two answers.

Invariant: the interval of a rate is never a point; if all labels of one rater are the same, agreement is
None; if no finite estimate exists (a side won or lost everything) the result is None. A tie is half a win for
each side. Source: Angelopoulos, Bates, Fannjiang, Jordan & Zrnic 2023, Prediction-powered inference,
https://arxiv.org/abs/2301.09633; Angelopoulos, Duchi & Zrnic 2023, PPI++, https://arxiv.org/abs/2311.01453
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import ceil, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from harness.stats.intervals import TIE, Array, bca_interval, bootstrap, finite, wilson, z_quantile
from harness.stats.means import Mean, cluster_df, has_few_clusters
from harness.stats.paired import mcnemar

_FEWEST = 2  # labels needed to know their spread
_ELO = 400 / np.log(10)
_STEPS, _ENOUGH = 50, 1e-10


class Bounded(NamedTuple):
    """An estimate with the ends of its interval."""

    estimate: float
    low: float
    high: float


def cohen_kappa(
    first: ArrayLike, second: ArrayLike, clusters: ArrayLike | None = None, *, seed: int = 0
) -> Bounded | None:
    """Return how far two raters of the same items (n,) agree beyond chance, with a 95 % interval.

    κ = 1 − mean((x − y)²)/(Var x + Var y + (x̄ − ȳ)²): Cohen's kappa for labels 0 and 1, and kappa with
    quadratic weights for graded ones. The interval is BCa over items, or over `clusters`. None if all
    labels of one rater are the same (chance would agree as well) or nothing can be resampled. Not for labels
    without an order (`krippendorff_alpha`), nor for comparing tasks when one has few items of a kind.
    Source: Cohen 1960 and 1968; Fleiss & Cohen 1973 for the quadratic weights.
    """
    x, y = finite(first, "labels"), finite(second, "labels")
    if len(x) != len(y):
        raise ValueError(f"both raters must have labelled the same items: {len(x)} and {len(y)}")
    codes = np.arange(len(x)) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    parts = np.column_stack([x, y, x * x, y * y, x * y])  # (n, 5)
    if min(np.ptp(x), np.ptp(y)) <= TIE or codes.max() < 1:
        return None
    boot = bootstrap(lambda weights: _kappa(weights @ parts / weights.sum(axis=1)[:, None]), codes, seed=seed)
    low, high = bca_interval(boot[0])
    return Bounded(boot[0].estimate, max(low, -1.0), min(high, 1.0))


def rogan_gladen(
    rate: float, n: int, specificity: float, n_negative: int, sensitivity: float, n_positive: int
) -> Bounded | None:
    """Correct the `rate` of n answers that a judge passed for the judge's errors, with a 95 % interval.

    θ = (p + q₀ − 1)/(q₀ + q₁ − 1), cut to [0, 1]; q₀ is the judge's specificity on `n_negative` answers that
    people failed, q₁ its sensitivity on `n_positive` that they passed. The interval adds two items to each
    kind of labelled answers and z² to all answers, and covers the errors of all three rates. None if q₀ +
    q₁ ≤ 1: the judge is no better than chance. Not for graded scores, nor for labels drawn from other answers
    than those of the rate (`prediction_powered_mean`).
    Source: Rogan & Gladen 1978; the interval: Lee, Zeng, Lee & Jones 2025, https://arxiv.org/abs/2511.21140
    """
    if not all(0 <= x <= 1 for x in (rate, specificity, sensitivity)) or min(n, n_negative, n_positive) < 1:
        raise ValueError(
            f"expected rates in [0, 1] of at least one answer: {rate} of {n}, {specificity} of {n_negative}, "
            f"{sensitivity} of {n_positive}"
        )
    z = z_quantile(0.975)
    p, n_all = (n * rate + z * z / 2) / (n + z * z), n + z * z
    (q0, m0), (q1, m1) = (
        ((m * q + 1) / (m + 2), m + 2) for q, m in ((specificity, n_negative), (sensitivity, n_positive))
    )
    youden_adjusted, youden = q0 + q1 - 1, specificity + sensitivity - 1
    if min(youden_adjusted, youden) <= TIE:
        return None
    theta = (p + q0 - 1) / youden_adjusted
    variance_negative, variance_positive = q0 * (1 - q0) / m0, q1 * (1 - q1) / m1
    centre = theta + 2 * z * z * (theta * variance_positive - (1 - theta) * variance_negative)
    spread = p * (1 - p) / n_all + (1 - theta) ** 2 * variance_negative + theta**2 * variance_positive
    half_width = z * sqrt(spread) / youden_adjusted
    rates = (rate + specificity - 1) / youden, centre - half_width, centre + half_width
    return Bounded(*(min(max(x, 0.0), 1.0) for x in rates))


def _kappa(means: Array) -> Array:
    """Return kappa from the means of x, y, x², y² and xy, (d, 5) → (d,); 0 if all labels are the same."""
    x, y, xx, yy, xy = means.T
    chance = (xx - x * x) + (yy - y * y) + (x - y) ** 2  # of labels that are assigned by chance
    kappa: Array = 1 - (xx + yy - 2 * xy) / np.maximum(chance, TIE)
    return np.asarray(np.where(chance > TIE, kappa, 0.0))


class PoweredMean(NamedTuple):
    """A mean from labels and grades; `power` in [0, 1] is the weight of the judge, 0 means labels only."""

    mean: Mean
    power: float


def prediction_powered_mean(
    labels: ArrayLike,
    grades: ArrayLike,
    rest: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    rest_clusters: ArrayLike | None = None,
    power: float | None = None,
) -> PoweredMean:
    """Estimate the mean label of a population where (n,) items have a label and (m,) others only a grade.

    θ = λ·mean(rest) + mean(labels − λ·grades), SE² = Var(labels − λ·grades)/n + λ²·Var(rest)/m with variances
    that divide by n and m, as published. λ = Cov(labels, grades)/((1 + n/m) Var(all grades)), cut to [0, 1],
    is optimal; `power` overrides it: 0 is the mean of the labels, 1 the plain PPI. With `clusters` the sums
    of a cluster's terms are squared, times G/(G − 1) of the labelled clusters; the degrees of freedom are
    those of the labelled items. For a paired difference pass the differences by item. Not where the labelled
    items are not a random sample of all, nor where fewer than some ten labels differ from their grades (their
    spread is unknown then).
    Source: Angelopoulos, Duchi & Zrnic 2023, equations 4 and 6 (PPI++).
    """
    y, f = finite(labels, "labels", _FEWEST), finite(grades, "grades", _FEWEST)
    rest_grades = finite(rest, "grades without a label", 0)
    if len(y) != len(f):
        raise ValueError(f"labels and grades must be as many: {len(y)} and {len(f)}")
    spread = float(np.concatenate([f, rest_grades]).var())
    weight = 0.0 if power is None else power
    if power is None and spread > TIE and len(rest_grades):
        weight = min(max(_covariance(y, f) / ((1 + len(y) / len(rest_grades)) * spread), 0.0), 1.0)
    if not len(rest_grades):
        weight = 0.0
    errors = y - weight * f
    rest_mean = float(rest_grades.mean()) if weight else 0.0
    mean = float(errors.mean()) + weight * rest_mean
    rest_terms = weight * (rest_grades - rest_mean) / max(len(rest_grades), 1)
    terms = np.concatenate([(errors - errors.mean()) / len(y), rest_terms])
    codes, n_labelled = _codes(len(y), len(rest_grades), clusters, rest_clusters)
    labelled = codes[: len(y)]
    if has_few_clusters(labelled):
        return PoweredMean(Mean(mean, None, 0, len(y), n_labelled), weight)
    sums = np.bincount(codes, terms)
    is_clustered = n_labelled < len(y)
    variance = float(sums @ sums) * (n_labelled / (n_labelled - 1) if is_clustered else 1.0)
    return PoweredMean(Mean(mean, sqrt(variance), cluster_df(labelled), len(y), n_labelled), weight)


def labels_needed(labels: ArrayLike, grades: ArrayLike, n_items: int, se: float) -> int | None:
    """Return how many labels in total, existing ones included, give this standard error on `n_items` items.

    σ²(1 − ρ²)/(SE² − ρ²σ²/N), ρ the correlation of labels and grades, σ² the variance of the labels: the
    error of `prediction_powered_mean` at its best power. None if labels of all N items would not suffice.
    Not where few labels differ from their grades.
    Source: Cochran 1977, section 12.6 (the regression estimator in double sampling).
    """
    y, f = finite(labels, "labels", _FEWEST), finite(grades, "grades", _FEWEST)
    if len(y) != len(f) or se <= 0:
        raise ValueError(f"expected as many labels as grades and an SE > 0: {len(y)}, {len(f)}, {se}")
    spread = float(y.var())
    explained = 0.0 if f.var() <= TIE else min(float(_covariance(y, f)) ** 2 / float(f.var()), spread)
    remaining_variance = se**2 - explained / n_items
    if remaining_variance <= 0 or (needed := ceil((spread - explained) / remaining_variance - TIE)) > n_items:
        return None
    return max(needed, _FEWEST)


def _covariance(x: Array, y: Array) -> float:
    return float(((x - x.mean()) * (y - y.mean())).mean())


def _codes(
    n: int, m: int, clusters: ArrayLike | None, rest_clusters: ArrayLike | None
) -> tuple[NDArray[np.intp], int]:
    """Number the clusters of labelled and other items (n + m,), and count those of the labelled ones."""
    if clusters is None or rest_clusters is None:
        return np.arange(n + m), n
    names = np.concatenate([np.asarray(clusters), np.asarray(rest_clusters)]) if m else np.asarray(clusters)
    if len(names) != n + m:
        raise ValueError(f"clusters and items must be as many: {len(names)} and {n + m}")
    codes = np.unique(names, return_inverse=True)[1]
    return codes, len(np.unique(codes[:n]))


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
    Source: Bradley & Terry 1952; existence of the maximum: Ford 1957; half a win: Agresti 2013, §3.3.
    """
    a, b, y = np.asarray(first, int), np.asarray(second, int), np.asarray(won, float)
    if not len(a) == len(b) == len(y) == len(items) or not len(a) or y.min() < 0 or y.max() > 1:
        raise ValueError(f"expected results in [0, 1] of as many pairs, found {len(a)}, {len(b)}, {len(y)}")
    k = int(max(a.max(), b.max())) + 1
    numbers: dict[Hashable, int] = {}
    codes = np.array([numbers.setdefault(item, len(numbers)) for item in items])
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
