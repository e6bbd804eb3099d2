"""Paired statistics on arrays: intervals, tests, the bootstrap, and what a sample can show.

Invariant: pure and seeded. The same arrays give the same numbers, nothing is read or
written, and an interval never collapses to a point because nothing was seen to differ
(where a formula does that, its docstring says so and names what to use instead).
Rates and deltas are in [0, 1] and [−1, 1]; `delta` is new − base; `alpha` is two-sided
for intervals and one-sided for tests of a margin, as each docstring says.
"""

from collections.abc import Callable, Sequence
from math import inf, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]

_CHUNK = 2**19  # weights held at once in a bootstrap: 4 MiB, which stays in the cache
_TIE = 1e-12


class Interval(NamedTuple):
    """Both ends of a confidence interval, in the unit of the estimate."""

    low: float
    high: float


class Mean(NamedTuple):
    """A mean with its standard error; `se` is None where one cluster leaves it unknown."""

    mean: float
    se: float | None
    df: int
    n: int
    n_clusters: int


class McNemar(NamedTuple):
    """Two-sided p-values of McNemar's test."""

    exact: float
    midp: float


class Bootstrap(NamedTuple):
    """A statistic, its values over resampled clusters (d,) and with one cluster left out (g,)."""

    estimate: float
    draws: Array
    jackknife: Array


def z_quantile(p: float) -> float:
    """Return the standard normal quantile of a probability in (0, 1)."""
    return float(special.ndtri(p))


def t_quantile(p: float, df: float) -> float:
    """Return Student's t quantile of a probability in (0, 1)."""
    return float(special.stdtrit(df, p))


def clustered_mean(values: ArrayLike, clusters: ArrayLike) -> Mean:
    """Estimate a mean whose items (n,) may share a cluster (n,).

    SE² = n⁻² Σ_c (Σ_{i∈c} (x_i − x̄))² · G/(G − 1), df = G − 1; with clusters of one item
    each it is the usual s²/n with ddof 1. Not for binary scores with few items that differ
    (the SE shrinks to 0 there: `tango_interval`), and below some 25 clusters only roughly right.

    Raises:
        ValueError: there are no values, or the lengths differ.

    Source: Miller 2024, arXiv:2411.00640.
    """
    x, codes, n_clusters = _with_codes(values, clusters)
    mean, n = float(x.mean()), len(x)
    if n_clusters < 2:
        return Mean(mean, None, 0, n, n_clusters)
    sums = np.bincount(codes, x - mean)  # (g,)
    variance = float(sums @ sums) / n**2 * n_clusters / (n_clusters - 1)
    return Mean(mean, sqrt(variance), n_clusters - 1, n, n_clusters)


def paired_delta(base: ArrayLike, new: ArrayLike, clusters: ArrayLike | None = None) -> Mean:
    """Estimate mean(new − base) over the same items (n,), by the CLT or by clusters.

    Without `clusters` each item is its own. Not for metrics that are no mean of items
    (`bootstrap`), and see `clustered_mean` for binary scores.

    Raises:
        ValueError: the arms differ in length, or are empty.

    Source: Miller 2024, arXiv:2411.00640.
    """
    old, now = np.asarray(base, float), np.asarray(new, float)
    if old.shape != now.shape:
        raise ValueError(f"the arms must hold the same items: {old.shape} and {now.shape}")
    return clustered_mean(now - old, np.arange(len(old)) if clusters is None else clusters)


def t_interval(mean: Mean, alpha: float = 0.05) -> Interval:
    """Return mean ± t_{1−α/2, df} · SE, in the unit of the values.

    Not where the SE is 0 because nothing differs.

    Raises:
        ValueError: the SE is unknown (fewer than two clusters).

    Source: Student 1908.
    """
    if mean.se is None:
        raise ValueError("one cluster has no standard error: at least two are needed")
    half = t_quantile(1 - alpha / 2, mean.df) * mean.se
    return Interval(mean.mean - half, mean.mean + half)


def design_effect(values: ArrayLike, clusters: ArrayLike) -> float:
    """Return by how much clusters inflate the variance of a mean: at least 1.

    1 + (m − 1) ρ, with m the size-weighted mean cluster size Σm_c²/n (Kish 1965) and ρ from
    the ratio of the clustered to the plain variance, shrunk as if one more cluster had been
    seen that differs as a whole: ρ = (c ρ̂ + 1)/(c + 1), c the clusters that hold a value
    other than the median. So ρ is 1 where nothing differs (n/m items' worth of evidence),
    and the data's own where many clusters differ. The shrinkage is ours: with few differing
    items the plain ratio is close to 1 by construction, and proves nothing.

    Not for unequal inclusion weights.

    Raises:
        ValueError: there are no values, or the lengths differ.
    """
    x, codes, _ = _with_codes(values, clusters)
    sizes = np.bincount(codes)
    m = float(sizes @ sizes) / len(x)
    if m == 1:
        return 1.0
    differing = differing_clusters(x, codes)
    return 1 + (m - 1) * (differing * _correlation(x, codes, m) + 1) / (differing + 1)


def differing_clusters(values: ArrayLike, clusters: ArrayLike) -> int:
    """Count the clusters that hold a value other than the median.

    Raises:
        ValueError: there are no values, or the lengths differ.
    """
    x, codes, _ = _with_codes(values, clusters)
    return len(np.unique(codes[np.abs(x - np.median(x)) > _TIE]))


def _correlation(x: Array, codes: NDArray[np.intp], m: float) -> float:
    clustered, plain = clustered_mean(x, codes).se, clustered_mean(x, np.arange(len(x))).se
    if clustered is None or not plain:
        return 1.0
    return min(max((clustered**2 / plain**2 - 1) / (m - 1), 0.0), 1.0)


def _with_codes(values: ArrayLike, clusters: ArrayLike) -> tuple[Array, NDArray[np.intp], int]:
    x, labels = np.asarray(values, float), np.asarray(clusters)
    if not len(x) or x.shape != labels.shape:
        raise ValueError(f"values and clusters must be as many, and some: {x.shape} and {labels.shape}")
    names, codes = np.unique(labels, return_inverse=True)
    return x, codes, len(names)


def wilson(successes: float, n: float, alpha: float = 0.05) -> Interval:
    """Return Wilson's score interval of a rate; counts may be effective (divided by a design effect).

    (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n). Not where coverage must be guaranteed
    (`clopper_pearson`), nor for differences of rates.

    Raises:
        ValueError: not 0 ≤ successes ≤ n, or n is 0.

    Source: Wilson 1927.
    """
    _check_count(successes, n)
    z, p = z_quantile(1 - alpha / 2), successes / n
    half = z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    centre, scale = p + z**2 / (2 * n), 1 + z**2 / n
    return Interval(max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0))


def clopper_pearson(successes: float, n: float, alpha: float = 0.05) -> Interval:
    """Return the exact interval of a rate; each end alone is a one-sided 1 − α/2 bound.

    Quantiles of Beta(x, n − x + 1) and Beta(x + 1, n − x), which also take effective counts
    (Korn & Graubard 1998). Not for estimates shown in tables: it is wider than it needs to be.

    Raises:
        ValueError: not 0 ≤ successes ≤ n, or n is 0.

    Source: Clopper & Pearson 1934.
    """
    _check_count(successes, n)
    rest = n - successes
    low = 0.0 if successes == 0 else float(special.betaincinv(successes, rest + 1, alpha / 2))
    high = 1.0 if rest == 0 else float(special.betaincinv(successes + 1, rest, 1 - alpha / 2))
    return Interval(low, high)


def _check_count(successes: float, n: float) -> None:
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"expected 0 <= successes <= n and n > 0, found {successes} of {n}")


def mcnemar(gains: int, losses: int) -> McNemar:
    """Test that gains and losses are equally likely among the items that differ.

    exact = min(1, 2 P(X ≤ min)), mid-p = P(X ≤ min) + P(X < min), which is the exact p less
    P(X = min), with X ~ Binomial(gains + losses, ½). Not for non-inferiority (a large p does
    not show equality), nor for clustered items.

    Raises:
        ValueError: a count is negative.

    Source: Fagerland, Lydersen & Laake 2013.
    """
    if min(gains, losses) < 0:
        raise ValueError(f"counts must not be negative: {gains}, {losses}")
    total, least = gains + losses, min(gains, losses)
    at_most = float(special.bdtr(least, total, 0.5))
    below = float(special.bdtr(least - 1, total, 0.5)) if least else 0.0
    return McNemar(min(2 * at_most, 1.0), at_most + below)


def tango_z(gains: float, losses: float, n: float, delta: float) -> float:
    """Return Tango's score statistic for a true delta in [−1, 1]; of scores that are 0 or 1.

    z = (b − c − nΔ)/√(n (2p̃ + Δ(1 − Δ))), p̃ = (√(B² − 4AC) − B)/2A the likeliest loss rate at
    Δ, A = 2n, B = −b − c + (2n − b + c)Δ, C = −cΔ(1 − Δ); b gains, c losses. Counts may be
    effective ones. Not for graded scores.

    Raises:
        ValueError: the counts are negative or more than n, or n is 0.

    Source: Tango 1998.
    """
    if min(gains, losses) < 0 or gains + losses > n * (1 + _TIE) or n <= 0:
        raise ValueError(f"expected gains + losses <= n and n > 0, found {gains} + {losses} of {n}")
    return _tango_z(gains, losses, n, delta)


def _tango_z(b: float, c: float, n: float, delta: float) -> float:
    a2, c2 = 2 * n, -c * delta * (1 - delta)
    b2 = -b - c + (2 * n - b + c) * delta
    loss_rate = (sqrt(max(b2 * b2 - 4 * a2 * c2, 0.0)) - b2) / (2 * a2)
    variance = n * (2 * loss_rate + delta * (1 - delta))
    distance = b - c - n * delta
    if variance <= _TIE:
        return 0.0 if abs(distance) <= _TIE else distance * inf
    return distance / sqrt(variance)


def tango_interval(gains: float, losses: float, n: float, alpha: float = 0.05) -> Interval:
    """Return the score interval of (gains − losses)/n; honest with no differing item at all.

    The deltas at which |`tango_z`| = z_{1−α/2}. Each end alone is a one-sided 1 − α/2 bound.
    Not for clustered items unless all three counts are divided by the design effect.

    Raises:
        ValueError: the counts are negative or more than n, or n is 0.

    Source: Tango 1998.
    """
    z, estimate = z_quantile(1 - alpha / 2), (gains - losses) / n
    tango_z(gains, losses, n, estimate)  # refuses counts that cannot be
    low = _crossing(lambda d: _tango_z(gains, losses, n, d) > z, -1.0, estimate)
    high = _crossing(lambda d: _tango_z(gains, losses, n, d) > -z, estimate, 1.0)
    return Interval(low, high)


def _crossing(above: Callable[[float], bool], low: float, high: float) -> float:
    """Bisect for the point where a falling function stops being above its level."""
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (middle, high) if above(middle) else (low, middle)
    return (low + high) / 2


def tango_noninferiority_p(gains: float, losses: float, n: float, margin: float) -> float:
    """Return the one-sided p of H0: delta ≤ −margin; small shows non-inferiority.

    1 − Φ(`tango_z` at −margin). Not for clustered items unless the counts are effective.

    Raises:
        ValueError: the counts are negative or more than n, or n is 0.

    Source: Tango 1998.
    """
    return float(special.ndtr(-tango_z(gains, losses, n, -margin)))


def tango_regression_p(gains: float, losses: float, n: float, margin: float) -> float:
    """Return the one-sided p of H0: delta ≥ −margin; small shows a loss beyond the margin.

    Φ(`tango_z` at −margin). Not for clustered items unless the counts are effective.

    Raises:
        ValueError: the counts are negative or more than n, or n is 0.

    Source: Tango 1998.
    """
    return float(special.ndtr(tango_z(gains, losses, n, -margin)))


def bootstrap(
    statistic: Statistic, clusters: ArrayLike, n_draws: int = 10_000, seed: int = 0
) -> list[Bootstrap]:
    """Resample clusters (n,) with replacement, and leave each one out once.

    `statistic` takes weights (d, n), how often each item was drawn, to values (d,) or to
    several statistics (s, d) of the same draws; one `Bootstrap` comes back for each. Of a
    difference both arms must share the weights. Not where fewer than some 50 clusters, or
    hardly any differing items, leave nothing to resample.

    Raises:
        ValueError: there are fewer than two clusters.

    Source: Efron & Tibshirani 1993, chapters 6 and 11; clusters: Field & Welsh 2007.
    """
    names, codes = np.unique(np.asarray(clusters), return_inverse=True)
    g, n = len(names), len(codes)
    if g < 2:
        raise ValueError("resampling needs at least two clusters")
    rng, step = np.random.default_rng(seed), max(1, _CHUNK // n)
    items = slice(None) if (codes == np.arange(n)).all() else codes  # a slice saves a copy of the weights
    estimate = _rows(statistic, np.ones((1, n)))  # (s, 1)
    draws = np.hstack(
        [
            _rows(statistic, _drawn(rng, min(step, n_draws - at), g)[:, items])
            for at in range(0, n_draws, step)
        ]
    )  # (s, d)
    blocks = [np.arange(at, min(at + step, g))[:, None] for at in range(0, g, step)]
    left_out = np.hstack([_rows(statistic, (codes != block).astype(float)) for block in blocks])  # (s, g)
    return [Bootstrap(float(e[0]), d, j) for e, d, j in zip(estimate, draws, left_out, strict=True)]


def _rows(statistic: Statistic, weights: Array) -> Array:
    return np.atleast_2d(statistic(weights))


def _drawn(rng: np.random.Generator, n_draws: int, g: int) -> Array:
    """Draw g of g clusters with replacement, as counts (d, g); many times faster than numpy's multinomial."""
    picks = rng.integers(0, g, (n_draws, g), dtype=np.int32)  # (d, g)
    picks += g * np.arange(n_draws, dtype=np.int32)[:, None]
    return np.bincount(picks.ravel(), minlength=n_draws * g).reshape(n_draws, g).astype(float)


def bca_interval(boot: Bootstrap, alpha: float = 0.05) -> Interval:
    """Return the bias-corrected and accelerated interval of a bootstrapped statistic.

    Quantiles of the draws at Φ(z0 + (z0 + z_q)/(1 − a(z0 + z_q))), q = α/2 and 1 − α/2;
    z0 = Φ⁻¹(share of draws below the estimate, ties counted half); a = Σu³/(6 (Σu²)^{3/2}),
    u the jackknife's mean minus its values. Plain percentiles where the jackknife does not
    vary or no draw lies on one side. Not where nothing differs (it is a point there), and
    coverage at n = 50 is nearer 90 % than 95 %.

    Source: Efron 1987; Efron & Tibshirani 1993, section 14.3.
    """
    q = np.array([alpha / 2, 1 - alpha / 2])
    tie = _TIE * max(1.0, abs(boot.estimate))
    distance = boot.draws - boot.estimate
    below = float(np.mean(distance < -tie) + np.mean(np.abs(distance) <= tie) / 2)
    u = boot.jackknife.mean() - boot.jackknife
    spread = float(u @ u)
    if spread > tie**2 and 0 < below < 1:
        z0, a = z_quantile(below), float((u**3).sum()) / (6 * spread**1.5)
        shifted = z0 + special.ndtri(q)
        q = special.ndtr(z0 + shifted / (1 - a * shifted))
    low, high = np.quantile(boot.draws, q)
    return Interval(float(low), float(high))


def mover_mean(estimates: Sequence[float], intervals: Sequence[Interval]) -> tuple[float, Interval]:
    """Average independent estimates with equal weight, and combine their intervals.

    L = θ̄ − √(Σ w²(θ̂_i − l_i)²), U = θ̄ + √(Σ w²(u_i − θ̂_i)²), w = 1/k: each task's own
    asymmetry and width near 0 are kept, and the level is that of the intervals given (for a
    one-sided bound give one-sided bounds). Not for tasks that share items.

    Raises:
        ValueError: there are no estimates, or not as many intervals.

    Source: Zou & Donner 2008; Zou, Huang & Zhang 2009 (method of variance estimates recovery).
    """
    if not estimates or len(estimates) != len(intervals):
        raise ValueError(f"found {len(estimates)} estimates and {len(intervals)} intervals")
    theta, ends = np.array(estimates), np.array(intervals)  # (k,), (k, 2)
    half = np.sqrt(((ends - theta[:, None]) ** 2).sum(axis=0)) / len(theta)
    mean = float(theta.mean())
    return mean, Interval(mean - float(half[0]), mean + float(half[1]))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false rejection stays at the level.

    max_{j ≤ i} min(1, (k − j + 1) p_(j)) over the sorted p-values, in the order given. Valid
    under any dependence. Not where the share of false discoveries is what matters.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(x) for x in adjusted]


def paired_se(disagreement: float, n: float, delta: float = 0.0, effect: float = 1.0) -> float:
    """Return the standard error of a paired delta of binary scores to be expected.

    √(effect · (d − δ²)/n), d the share of items that differ (never less than |δ|), `effect`
    the design effect. Not for graded scores, whose differences are smaller than 1.

    Source: Miller 2024, arXiv:2411.00640 (its variance for single binary answers).
    """
    return sqrt(effect * (max(disagreement, abs(delta)) - delta**2) / n)


def noninferiority_power(delta: float, margin: float, se: float, alpha: float = 0.05) -> float:
    """Return the chance to show delta > −margin (one-sided α) when the true delta is given.

    Φ((δ + m)/SE − z_{1−α}); for a δ at or beyond −m it is the chance to miss the loss.
    A normal approximation: not below some five differing items.

    Raises:
        ValueError: the SE is not positive.

    Source: Chow, Shao & Wang 2008.
    """
    return _power((delta + margin) / _positive(se), alpha)


def regression_power(delta: float, margin: float, se: float, alpha: float = 0.05) -> float:
    """Return the chance to show delta < −margin (one-sided α) when the true delta is given.

    Φ(−(δ + m)/SE − z_{1−α}); 1 minus it is what a veto misses. Under Holm over k tasks give
    α/k, its hardest step. A normal approximation: not below some five differing items.

    Raises:
        ValueError: the SE is not positive.

    Source: Chow, Shao & Wang 2008.
    """
    return _power(-(delta + margin) / _positive(se), alpha)


def noninferiority_n(
    disagreement: float, margin: float, alpha: float = 0.05, power: float = 0.8, delta: float = 0.0
) -> float:
    """Return the items needed to show delta > −margin, one-sided α, with the power asked.

    (z_{1−α} + z_power)² (d − δ²)/(m + δ)², not rounded, d the share of items that differ.
    With clusters multiply by the design effect.

    Raises:
        ValueError: the true delta is at or beyond −margin, so no number of items would do.

    Source: Lu & Bean 1995; Chow, Shao & Wang 2008.
    """
    if delta + margin <= 0:
        raise ValueError(f"a true delta of {delta} cannot be shown to be above −{margin}")
    z = z_quantile(1 - alpha) + z_quantile(power)
    return z**2 * (disagreement - delta**2) / (margin + delta) ** 2


def detectable_delta(disagreement: float, n: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """Return the smallest true |delta| that a two-sided paired test finds with the power asked.

    (z_{1−α/2} + z_power) √(d/n), d the share of items that differ. Not for a margin
    (`noninferiority_n`).

    Source: Miller 2024, arXiv:2411.00640.
    """
    return (z_quantile(1 - alpha / 2) + z_quantile(power)) * sqrt(disagreement / n)


def _power(distance: float, alpha: float) -> float:
    return float(special.ndtr(distance - z_quantile(1 - alpha)))


def _positive(se: float) -> float:
    if se <= 0:
        raise ValueError("a standard error of 0 says nothing about power: use a score interval's width")
    return se
