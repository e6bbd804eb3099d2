"""The paired difference of two runs on one task: its estimator, its intervals and its p-values.

Invariant: delta = new − base in the metric's unit; swapping the arms only flips the sign; if few items
changed, no interval is shorter than Tango's for that many; p-values agree with the intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf, isfinite
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from harness import formatting, stats
from harness.analysis.alignment import (
    NO_ERRORS,
    Arms,
    Ends,
    Errors,
    Folds,
    interval_in_folds,
    is_binary,
    is_mean,
    is_weighted_mean,
    quantile,
)
from harness.errors import IncompatibleRuns
from harness.formatting import RATE, Unit
from harness.metrics import Metric, item_scores
from harness.stats import Array, Interval

_JUDGES = ("judge", "entailment")  # prefixes of metrics that another model computes

Estimator = Literal["tango", "cluster-t", "bca", "stratified", "bounds", "identical", "seeds", "ppi", "folds"]
_FEW = 10  # with fewer clusters that have a differing item, neither resampling nor the CLT is trusted alone


class Estimate(NamedTuple):
    """Score or delta with its 95 % interval, over n items; `n_errors` items were not answered."""

    score: float
    low: float
    high: float
    n: int
    unit: Unit = RATE
    n_errors: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired difference of two runs on one task and metric, in the metric's unit; delta = new − base.

    `low` and `high` are the two-sided 1 − alpha interval (95 %), clipped to the metric's bounds; `lower` and
    `upper` are the gate's one-sided 1 − alpha bounds, not clipped. `se` is the half width of the unclipped
    interval divided by its quantile. `disagreement` is the share of items whose score differs; `lost` and
    `gained` name the items that flipped. `base_passed` counts the items that the base passed, if all scores
    are 0 or 1. `df` are the degrees of freedom of the interval's t, None for a normal. If too few clusters
    leave the spread unknown, `refused` says why, `lower` and `upper` are infinite, and `low` and `high` are
    the bounds. `components` are the variances of a mean over seeds, None for one run.
    """

    task: str
    metric: str
    n: int
    n_clusters: int
    base: float
    base_low: float
    base_high: float
    new: float
    new_low: float
    new_high: float
    delta: float
    low: float
    high: float
    se: float
    disagreement: float
    lost: tuple[str, ...]
    gained: tuple[str, ...]
    estimator: Estimator
    lower: float
    upper: float
    alpha: float = 0.05
    design_effect: float = 1.0
    base_passed: int | None = None
    unit: Unit = RATE
    df: float | None = None
    refused: str = ""
    components: stats.VarianceComponents | None = None
    errors: Errors = NO_ERRORS


def mean_change(
    comparisons: Sequence[Comparison],
    weights: Sequence[float] | None = None,
    correlations: Array | None = None,
    n_repeated: int = 0,
) -> Estimate:
    """Average the deltas of tasks, intervals combined by MOVER; `n_repeated` items occur in several tasks."""
    ends = [stats.Interval(c.low, c.high) for c in comparisons]
    delta, (low, high) = stats.mover_mean([c.delta for c in comparisons], ends, weights, correlations)
    return Estimate(delta, low, high, sum(c.n for c in comparisons) - n_repeated)


def orient(comparison: Comparison) -> Comparison:
    """Return the comparison with its sign set so that a negative delta is a loss."""
    c = comparison
    if c.unit.higher_is_better:
        return c
    better = replace(c.unit, higher_is_better=True)
    turned = replace(c, delta=-c.delta, low=-c.high, high=-c.low, lower=-c.upper, upper=-c.lower, unit=better)
    delta_lost, delta_kept = (x if x is None else -x for x in (c.errors.delta_lost, c.errors.delta_kept))
    return replace(turned, errors=replace(c.errors, delta_lost=delta_lost, delta_kept=delta_kept))


def refuse(comparison: Comparison, span: float, why: str) -> Comparison:
    """Return the comparison as one that shows nothing; `span` is the range of its metric."""
    return replace(comparison, low=-span, high=span, lower=-inf, upper=inf, se=inf, df=None, refused=why)


def refuse_failed(comparison: Comparison, span: float, max_share: float) -> Comparison:
    """Refuse a gain over a base that failed on more than the share `max_share` of the items.

    The base's failures score worst, so the new run would gain from them. Failures of a judge, and failures
    without a worst value, count for either arm.
    """
    errors = comparison.errors
    is_either = is_judge(comparison.metric) or not errors.is_scored
    failed = errors.total if is_either else errors.base + errors.both
    if failed <= max_share * errors.n:
        return comparison
    share = f"{formatting.count(failed)} of {formatting.count(errors.n)}"
    why = (
        f"{share} answers failed, more than the {formatting.percent(max_share)} % that gate.max_errors allows"
    )
    return refuse(comparison, span, f"{why} ({errors.cause})")


def is_judge(metric: str) -> bool:
    """Tell whether a metric's scores are a judge's grades."""
    return metric.startswith(_JUDGES)


def rescale(comparison: Comparison, span: float) -> Comparison:
    """Return the comparison with its changes, but not its scores, as shares of the range `span`."""
    c = comparison
    if span == 1:
        return c
    return replace(
        c,
        **{name: getattr(c, name) / span for name in ("delta", "low", "high", "se", "lower", "upper")},
        unit=replace(RATE, higher_is_better=c.unit.higher_is_better),
    )


def regression_p(comparison: Comparison, margin: float) -> float:
    """Return the one-sided p of H0 "the loss is at most the margin"; a small p shows a regression.

    Tango's for single binary items; otherwise from the t or normal distribution that has the comparison's
    one-sided bound at alpha.
    """
    c = orient(comparison)
    if c.estimator == "tango":
        return stats.tango_regression_p(len(c.gained), len(c.lost), c.n, margin)
    distance = c.delta + margin
    se = (c.upper - c.delta) / quantile(c.df, 1 - c.alpha)
    return float(distance >= 0) if se <= 0 else chance_below(distance / se, c.df)


def at_level(comparison: Comparison, alpha: float) -> Comparison:
    """Return the comparison with its one-sided bounds at another level; the two-sided interval stays.

    Tango's for single binary items (by effective counts at least these for clustered ones); otherwise those
    of the t or normal distribution that fits the bounds at the comparison's own level.
    """
    c = comparison
    if alpha == c.alpha or c.estimator == "identical":
        return replace(c, alpha=alpha)
    times = quantile(c.df, 1 - alpha) / quantile(c.df, 1 - c.alpha)
    lower, upper = c.delta - times * (c.delta - c.lower), c.delta + times * (c.upper - c.delta)
    if c.base_passed is not None:
        rises, falls = (c.gained, c.lost)[:: c.unit.sign]
        effect = 1.0 if c.estimator == "tango" else c.design_effect
        tango = stats.tango_interval(len(rises) / effect, len(falls) / effect, c.n / effect, 2 * alpha)
        exact = c.estimator == "tango"
        lower, upper = tango if exact else (min(tango.low, lower), max(tango.high, upper))
    return replace(c, lower=lower, upper=upper, alpha=alpha)


def chance_below(z: float, df: float | None) -> float:
    """Return the cumulative probability at z of Student's t, or of the normal if `df` is None."""
    return float(special.ndtr(z) if df is None else special.stdtr(df, z))


def difference_p(comparison: Comparison) -> float:
    """Return the two-sided p of H0 “no difference”, from McNemar's mid-p or the interval; 1 if refused."""
    c = comparison
    if c.estimator == "identical" or c.refused:
        return 1.0
    if c.estimator == "tango":
        return stats.mcnemar(len(c.gained), len(c.lost)).midp
    if c.se <= 0:
        return float(c.delta == 0)
    return 2 * chance_below(-abs(c.delta) / c.se, c.df)


class Difference(NamedTuple):
    """Delta with its interval at any level, and both arms' scores; `df` and `refused` as in `Comparison`."""

    delta: float
    ends: Ends
    estimator: Estimator
    base: Estimate
    new: Estimate
    df: float | None = None
    refused: str = ""


def identical_difference(metric: Metric, arms: Arms) -> Difference:
    """Return the difference of an arm with itself."""
    if is_mean(metric, arms):
        score = _mean_estimate(metric, arms.base[:, 0], arms)
    else:
        boot = _bootstrap(arms, lambda w: metric.aggregate(arms.base, w))[0]
        score = _bca_estimate(metric, boot, arms.base, arms)
    score = _score_in_folds(score, metric, arms.base, arms, arms.base_folds)
    return Difference(0.0, lambda alpha: Interval(0.0, 0.0), "identical", score, score)


def estimate_difference(metric: Metric, arms: Arms) -> Difference:
    """Estimate the difference with the estimator that suits the metric and its scores.

    Raises:
        IncompatibleRuns: the arms were answered in other folds.
    """
    difference = _difference(metric, arms)
    old_folds, new_folds = arms.base_folds, arms.new_folds
    if old_folds.any() and new_folds.any() and not np.array_equal(old_folds, new_folds):
        raise IncompatibleRuns(
            f"the runs were answered in other folds: {old_folds.max()} of them in the base,"
            f" {new_folds.max()} in the new run. Next: harness compare, which makes both in the same folds"
        )
    folds = new_folds if new_folds.any() else old_folds
    if not folds.any():  # one model answered all items of both arms
        return difference

    def change(mask: NDArray[np.bool_]) -> float:
        weights = arms.weights[mask]
        return float(metric.aggregate(arms.new[mask], weights) - metric.aggregate(arms.base[mask], weights))

    old = _score_in_folds(difference.base, metric, arms.base, arms, arms.base_folds)
    now = _score_in_folds(difference.new, metric, arms.new, arms, arms.new_folds)
    if difference.refused:
        return difference._replace(base=old, new=now)
    ends, df, refused = interval_in_folds(difference.ends, difference.df, difference.delta, folds, change)
    return Difference(difference.delta, ends, "folds", old, now, df, refused)


def _score_in_folds(score: Estimate, metric: Metric, parts: Array, arms: Arms, folds: Folds) -> Estimate:
    """Widen an arm's interval by the differences between its folds' models, within the metric's bounds."""
    if not folds.any():
        return score

    def ends(alpha: float) -> Interval:
        times = quantile(None, 1 - alpha / 2) / quantile(None, 0.975)
        return Interval(*(score.score + times * (end - score.score) for end in (score.low, score.high)))

    widened, *_ = interval_in_folds(
        ends, None, score.score, folds, lambda mask: float(metric.aggregate(parts[mask], arms.weights[mask]))
    )
    low, high = widened(0.05)
    return score._replace(low=max(low, metric.bounds[0]), high=min(high, metric.bounds[1]))


def _difference(metric: Metric, arms: Arms) -> Difference:
    old, now, binary = arms.base[:, 0], arms.new[:, 0], is_binary(metric, arms)
    if is_mean(metric, arms):
        mean, changes = stats.paired_delta(old, now, arms.clusters), now - old
        scores = _mean_estimate(metric, old, arms), _mean_estimate(metric, now, arms)
        if binary and mean.n_clusters == mean.n:
            difference = Difference(mean.mean, _score_ends(metric, changes, arms), "tango", *scores)
        else:
            ends = _guard_ends(_t_ends(mean), mean.mean, metric, changes, arms, binary)
            df = None if mean.se is None else mean.df
            difference = Difference(mean.mean, ends, "cluster-t", *scores, df)
    else:

        def both_and_delta(weights: Array) -> Array:
            base, new = metric.aggregate(arms.base, weights), metric.aggregate(arms.new, weights)
            return np.stack([base, new, new - base])

        *arm_boots, changed = _bootstrap(arms, both_and_delta)
        changes, df = item_scores(metric, arms.new) - item_scores(metric, arms.base), _bca_df(arms)
        ends = _guard_ends(_bca_ends(changed, df), changed.estimate, metric, changes, arms, False)
        each = zip(arm_boots, (arms.base, arms.new), strict=True)
        base, new = (_bca_estimate(metric, boot, parts, arms) for boot, parts in each)
        difference = Difference(changed.estimate, ends, "bca", base, new, df)
    if stats.has_few_clusters(arms.clusters):
        n, weigh = int(arms.clusters.max()) + 1, stats.effective_clusters(arms.clusters)
        unequal = f" of unequal size, which weigh {weigh:.1f}" if weigh < n - stats.TIE else ""
        few = f"{formatting.count(len(arms.ids))} items in {formatting.pluralize(n, 'cluster')}{unequal}"
        why = f"too few clusters for an interval: {few}; expected at least {stats.MIN_CLUSTERS}"
        return difference._replace(ends=lambda alpha: Interval(-inf, inf), df=None, refused=why)
    uneven = bool(np.ptp(arms.weights) > 0)
    if not (
        uneven and int(arms.clusters.max()) + 1 == len(arms.ids) and binary and is_weighted_mean(metric, arms)
    ):
        return difference
    # Items of equal weight come from the same stratum.
    parts = [(weight, (now - old)[arms.weights == weight]) for weight in np.unique(arms.weights)]
    strata = [
        stats.StratumFlips(
            float((x > 0).sum()), float((x < 0).sum()), len(x), max(len(x), round(weight * len(x)))
        )
        for weight, x in parts
    ]
    return difference._replace(ends=partial(stats.stratified_flips_interval, strata), estimator="stratified")


def _bootstrap(arms: Arms, statistic: stats.Statistic) -> list[stats.Bootstrap]:
    """Bootstrap over clusters with the inclusion weights; no draws if there are too few clusters."""
    even = bool((arms.weights == 1).all())  # the weights if all items were evaluated

    def weigh(draws: Array) -> Array:
        return np.atleast_2d(statistic(draws if even else draws * arms.weights))

    if arms.clusters.max() > 0 and not stats.has_few_clusters(arms.clusters):
        return stats.bootstrap(weigh, arms.clusters, seed=0)
    none: Array = np.array([])
    return [stats.Bootstrap(float(row[0]), none, none) for row in weigh(np.ones((1, len(arms.ids))))]


def _t_ends(mean: stats.Mean) -> Ends | None:
    return None if mean.se is None else lambda alpha: stats.t_interval(mean, alpha)


def _bca_df(arms: Arms) -> float | None:
    """Return the degrees of freedom for items in clusters, which a bootstrap over clusters ignores."""
    return stats.cluster_df(arms.clusters) if 1 < int(arms.clusters.max()) + 1 < len(arms.ids) else None


def _bca_ends(boot: stats.Bootstrap, df: float | None) -> Ends | None:
    """Return BCa's interval with both distances scaled by the ratio of the t quantile to z."""

    def ends(alpha: float) -> Interval:
        wider = quantile(df, 1 - alpha / 2) / stats.z_quantile(1 - alpha / 2)
        low, high = stats.bca_interval(boot, alpha)
        return Interval(*(boot.estimate + wider * (end - boot.estimate) for end in (low, high)))

    return ends if boot.draws.size else None


def _score_ends(metric: Metric, changes: Array, arms: Arms) -> Ends:
    """Return Tango's interval of the items' changes (n,), as shares of the range, by effective counts."""
    scale = metric.bounds[1] - metric.bounds[0]
    ends = tango_ends(changes / scale, arms.clusters)
    return lambda alpha: Interval(*(end * scale for end in ends(alpha)))


def tango_ends(changes: Array, clusters: ArrayLike) -> Ends:
    """Return Tango's interval of changes (n,) in [−1, 1] of items in clusters (n,), by effective counts."""
    effect = stats.design_effect(changes, clusters)
    gains, losses = (float(np.clip(sign * changes, 0, None).sum()) / effect for sign in (1, -1))
    return lambda alpha: stats.tango_interval(gains, losses, len(changes) / effect, alpha)


def _guard_ends(
    plain: Ends | None, delta: float, metric: Metric, changes: Array, arms: Arms, binary: bool
) -> Ends:
    """Widen an interval to Tango's distances where few changes could make it too short."""
    if not isfinite(metric.bounds[1] - metric.bounds[0]):
        return _open_ends(plain)
    many = not binary and stats.count_differing_clusters(changes, arms.clusters, effective=True) >= _FEW
    if plain and many:
        return plain
    guard, shift = _score_ends(metric, changes, arms), delta - float(changes.mean())

    def ends(alpha: float) -> Interval:
        low, high = (end + shift for end in guard(alpha))
        interval = plain(alpha) if plain else Interval(low, high)
        return Interval(min(interval.low, low), max(interval.high, high))

    return ends


def _open_ends(plain: Ends | None) -> Ends:
    """Return infinite ends if all clusters of an unbounded metric agree, instead of a single point."""

    def ends(alpha: float) -> Interval:
        interval = plain(alpha) if plain else Interval(-inf, inf)
        return interval if interval.high - interval.low > stats.TIE else Interval(-inf, inf)

    return ends


def _mean_estimate(metric: Metric, scores: Array, arms: Arms) -> Estimate:
    mean = stats.clustered_mean(scores, arms.clusters)
    single = is_binary(metric, arms) and mean.n_clusters == mean.n
    plain = None if single else _t_ends(mean)
    return _score_estimate(metric, mean.mean, plain, scores, arms)


def _bca_estimate(metric: Metric, boot: stats.Bootstrap, parts: Array, arms: Arms) -> Estimate:
    plain = _bca_ends(boot, _bca_df(arms))
    return _score_estimate(metric, boot.estimate, plain, item_scores(metric, parts), arms)


def _score_estimate(metric: Metric, score: float, plain: Ends | None, items: Array, arms: Arms) -> Estimate:
    """Combine an arm's interval with Wilson's, by effective counts, by the same rule as a delta's."""
    low, high = metric.bounds
    if not isfinite(high - low):
        interval = _open_ends(plain)(0.05)
        return Estimate(score, max(interval.low, low), min(interval.high, high), len(items), metric.unit)
    few = stats.count_differing_clusters(items, arms.clusters, effective=True) < _FEW
    ends = [plain(0.05)] if plain else []
    if not plain or few or is_binary(metric, arms):
        n = len(items) / stats.design_effect(items, arms.clusters)
        share = min(max((score - low) / (high - low), 0.0), 1.0)
        ends += [Interval(*(low + end * (high - low) for end in stats.wilson(share * n, n)))]
    lows, highs = zip(*ends, strict=True)
    return Estimate(score, max(min(lows), low), min(max(highs), high), len(items), metric.unit)
