"""Two sets of rows of the same items → what changed, with intervals; or a refusal that names what differs.

Invariant: an item counts only where both arms scored it, and swapping the arms flips the
sign and nothing else. The headline delta counts an unparsable, truncated or refused answer
as evaluate.py stored it (the metric's worst parts); `delta_valid` leaves such items out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from scipy import special

from harness import stats
from harness.errors import IncompatibleRuns, Problem, UserError
from harness.metrics import Metric, mean_metric
from harness.records import RowsIdentity, SampleResult
from harness.stats import Array, Interval

Estimator = Literal["tango", "cluster-t", "bca", "identical"]
Ends = Callable[[float], Interval]  # two-sided alpha → interval

_MUST_AGREE = (
    "task",
    "task_version",
    "split",
    "template_digest",
    "precision",
    "engine",
    "layout_digest",
    "device_class",
)
_FEW = 10  # clusters with a differing item, below which no resampling or CLT is trusted alone
_INVALID = ("unparsable", "truncated", "refused")
_TIE = 1e-12
_BLOCK = 256  # items scored alone at once


class Estimate(NamedTuple):
    """A score or a delta with its 95 % interval, over n items."""

    score: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired difference of two runs on one task and metric, in the metric's unit; delta = new − base.

    `low` and `high` are the two-sided 1 − alpha interval (95 %), `lower` and `upper` the
    one-sided 1 − alpha bounds that the gate uses. `se` is the interval's half width over its
    quantile, so it is not 0 where nothing differed. `disagreement` is the share of items
    whose score differs, `lost` and `gained` name those that got worse and better. The
    `_valid` figures are None where no item is valid in both arms. `base_passed` counts the
    items with score 1 in the base where all scores are 0 or 1.
    """

    task: str
    metric: str
    slice: str
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
    n_valid: int
    delta_valid: float | None
    low_valid: float | None
    high_valid: float | None
    higher_is_better: bool
    estimator: Estimator
    lower: float
    upper: float
    alpha: float = 0.05
    design_effect: float = 1.0
    base_passed: int | None = None


class _Arms(NamedTuple):
    """Both arms' parts on the items that both scored, in the order of their ids."""

    ids: tuple[str, ...]
    clusters: NDArray[np.intp]
    weights: Array
    base: Array  # (n, k)
    new: Array  # (n, k)
    valid: NDArray[np.bool_]

    def only(self, mask: NDArray[np.bool_]) -> "_Arms":
        codes = np.unique(self.clusters[mask], return_inverse=True)[1]
        return _Arms(
            _named(self.ids, mask),
            codes,
            self.weights[mask],
            self.base[mask],
            self.new[mask],
            self.valid[mask],
        )


class _Difference(NamedTuple):
    """The delta with its interval at any level, and both arms' scores."""

    delta: float
    ends: Ends
    estimator: Estimator
    base: Estimate
    new: Estimate


def check_comparable(a: RowsIdentity, b: RowsIdentity, *, prompting: bool = False) -> None:
    """Refuse two sets of rows that differ in more than their weights (and, unless asked, their prompting).

    Raises:
        IncompatibleRuns: names every field that differs, with both values.
    """
    fields = (*_MUST_AGREE, "prompting_digest", "answer") if prompting else _MUST_AGREE
    differing = [
        f"{f} {getattr(a, f)!r} and {getattr(b, f)!r}" for f in fields if getattr(a, f) != getattr(b, f)
    ]
    if differing:
        raise IncompatibleRuns(
            f"rows of task {a.task!r} cannot be compared: they differ in {'; '.join(differing)}. "
            "Next: evaluate both runs again with the same settings"
        )


def estimate(metric: Metric, rows: Sequence[SampleResult], seed: int = 0) -> Estimate:
    """Estimate the score of one run with its 95 % interval, leaving out rows with an error.

    Wilson for scores that are all 0 or 1, with n over the design effect (and never narrower
    than the clustered t) where items share clusters; the clustered t for graded means; BCa
    over clusters for any other metric. Clipped to the metric's bounds.

    Raises:
        IncompatibleRuns: no row could be scored.
        UserError: an unbounded metric on a single cluster, which has no interval.
    """
    return _same(metric, _arms(metric, rows, rows, ""), seed).base


def compare_rows(
    metric: Metric,
    base: Sequence[SampleResult],
    new: Sequence[SampleResult],
    *,
    slice: str = "",  # noqa: A002 (the noun of the rows)
    seed: int = 0,
    alpha: float = 0.05,
    identical: bool = False,
) -> Comparison:
    """Compare two runs on the same items; with `slice` on the items of that slice only.

    - Scores all 0 or 1, every item its own cluster: Tango's score interval.
    - Other means of items: the clustered t. For scores of 0 and 1 it is never narrower than
      Tango's interval with all counts divided by the design effect of the differences
      (`stats.design_effect`); for graded scores the same holds where fewer than ten clusters
      differ, a graded difference counting as its share of the metric's range.
    - Other metrics, and unequal inclusion weights: BCa over clusters, guarded in the same way.
    - `identical` says that both runs have the same weights: delta 0 and [0, 0], by identity.

    An unbounded metric has no such guard: where none of its items differ the interval is a point.

    Raises:
        IncompatibleRuns: the arms hold different items or an item twice, or none was scored in both.
        UserError: an unbounded metric on a single cluster, which has no interval.
    """
    arms = _arms(metric, base, base if identical else new, slice)
    found = _same(metric, arms, seed) if identical else _difference(metric, arms, seed)
    changes = _improvements(metric, arms)  # (n,)
    n_clusters = int(arms.clusters.max()) + 1
    both_ends, one_end = found.ends(alpha), found.ends(2 * alpha)
    valid = _on_valid(metric, arms, found, seed, alpha)
    return Comparison(
        task=base[0].task,
        metric=metric.name,
        slice=slice,
        n=len(arms.ids),
        n_clusters=n_clusters,
        base=found.base.score,
        base_low=found.base.low,
        base_high=found.base.high,
        new=found.new.score,
        new_low=found.new.low,
        new_high=found.new.high,
        delta=found.delta,
        low=both_ends.low,
        high=both_ends.high,
        se=(both_ends.high - both_ends.low) / (2 * _quantile(found.estimator, n_clusters, 1 - alpha / 2)),
        disagreement=float(np.mean(np.abs(changes) > _TIE)),
        lost=_named(arms.ids, changes < -_TIE),
        gained=_named(arms.ids, changes > _TIE),
        n_valid=int(arms.valid.sum()),
        delta_valid=valid.score if valid else None,
        low_valid=valid.low if valid else None,
        high_valid=valid.high if valid else None,
        higher_is_better=metric.higher_is_better,
        estimator=found.estimator,
        lower=one_end.low,
        upper=one_end.high,
        alpha=alpha,
        design_effect=stats.design_effect(changes, arms.clusters),
        base_passed=int(arms.base.sum()) if _is_binary(arms) else None,
    )


def compare_validity(
    base: Sequence[SampleResult],
    new: Sequence[SampleResult],
    *,
    seed: int = 0,
    alpha: float = 0.05,
    identical: bool = False,
) -> Comparison:
    """Compare the share of unparsable, truncated and refused answers over the rows of any tasks.

    A rise is a loss. Give the generated rows of tasks where a refusal is not what is wanted.

    Raises:
        IncompatibleRuns: the arms hold different items, or none was answered in both.
    """
    metric = mean_metric("invalid", lambda output, example: None, higher_is_better=False)
    return compare_rows(metric, _validity(base), _validity(new), seed=seed, alpha=alpha, identical=identical)


def oriented(comparison: Comparison) -> Comparison:
    """Return the comparison with the sign turned so that a negative delta is a loss."""
    if comparison.higher_is_better:
        return comparison
    c = comparison
    return replace(
        c, delta=-c.delta, low=-c.high, high=-c.low, lower=-c.upper, upper=-c.lower, higher_is_better=True
    )


def regression_p(comparison: Comparison, margin: float) -> float:
    """Return the one-sided p of H0 "the loss is at most the margin"; small shows a regression.

    Tango's for single binary items; else from the one-sided bound, as the t or normal
    distribution that has it at alpha: p < alpha where the bound is beyond the margin.
    """
    c = oriented(comparison)
    if c.estimator == "tango":
        return stats.tango_regression_p(len(c.gained), len(c.lost), c.n, margin)
    distance = c.delta + margin
    se = (c.upper - c.delta) / _quantile(c.estimator, c.n_clusters, 1 - c.alpha)
    if se <= 0:
        return float(distance >= 0)
    if c.estimator == "cluster-t" and c.n_clusters > 1:
        return float(special.stdtr(c.n_clusters - 1, distance / se))
    return float(special.ndtr(distance / se))


def _arms(
    metric: Metric, base: Sequence[SampleResult], new: Sequence[SampleResult], only_slice: str
) -> _Arms:
    old, now = _by_id(base), _by_id(new)
    if old.keys() != now.keys():
        raise IncompatibleRuns(_different_items(old.keys() - now.keys(), now.keys() - old.keys()))
    ids = [
        i
        for i in sorted(old)
        if (not only_slice or old[i].slice == only_slice)
        and old[i].parts[metric.name] is not None
        and now[i].parts[metric.name] is not None
    ]
    if not ids:
        where = f"slice {only_slice!r} of " if only_slice else ""
        raise IncompatibleRuns(f"{where}metric {metric.name!r}: found no item that both runs scored")
    codes = np.unique([old[i].cluster or i for i in ids], return_inverse=True)[1]
    return _Arms(
        ids=tuple(ids),
        clusters=codes,
        weights=np.array([old[i].weight for i in ids], float),
        base=np.array([old[i].parts[metric.name] for i in ids], float),
        new=np.array([now[i].parts[metric.name] for i in ids], float),
        valid=np.array([old[i].status == now[i].status == "ok" for i in ids]),
    )


def _by_id(rows: Sequence[SampleResult]) -> dict[str, SampleResult]:
    found = {row.example_id: row for row in rows}
    if len(found) != len(rows):
        raise IncompatibleRuns(f"found {len(rows) - len(found)} items twice in one run's rows")
    return found


def _different_items(only_base: set[str], only_new: set[str]) -> str:
    shown = ", ".join(sorted(only_base | only_new)[:5])
    return (
        f"the runs hold different items: {len(only_base)} only in the base, {len(only_new)} only in the new "
        f"run ({shown}). Next: evaluate both on the same split and limit"
    )


def _validity(rows: Sequence[SampleResult]) -> list[SampleResult]:
    """Give each row the one part `invalid`, and names that stay apart when tasks are pooled."""
    return [
        replace(
            row,
            example_id=f"{row.task}/{row.example_id}",
            cluster=f"{row.task}/{row.cluster or row.example_id}",
            parts={"invalid": None if row.status == "error" else (float(row.status in _INVALID),)},
        )
        for row in rows
    ]


def _same(metric: Metric, arms: _Arms, seed: int) -> _Difference:
    """Describe an arm compared with itself."""
    if _is_mean(metric, arms):
        score = _mean_estimate(metric, arms.base[:, 0], arms)
    else:
        boot = _bootstrap(metric, arms, lambda w: metric.aggregate(arms.base, w), seed)[0]
        score = _bca_estimate(metric, boot, arms.base, arms)
    return _Difference(0.0, lambda alpha: Interval(0.0, 0.0), "identical", score, score)


def _difference(metric: Metric, arms: _Arms, seed: int) -> _Difference:
    return _mean_difference(metric, arms) if _is_mean(metric, arms) else _bca_difference(metric, arms, seed)


def _mean_difference(metric: Metric, arms: _Arms) -> _Difference:
    old, now = arms.base[:, 0], arms.new[:, 0]
    mean = stats.paired_delta(old, now, arms.clusters)
    binary = _is_binary(arms)
    if binary and mean.n_clusters == mean.n:
        ends, estimator = _score_ends(metric, now - old, arms), "tango"
    else:
        ends, estimator = _guarded(_t_ends(mean), mean.mean, metric, now - old, arms, binary), "cluster-t"
    scores = _mean_estimate(metric, old, arms), _mean_estimate(metric, now, arms)
    return _Difference(mean.mean, ends, cast("Estimator", estimator), *scores)


def _bca_difference(metric: Metric, arms: _Arms, seed: int) -> _Difference:
    def both_and_delta(weights: Array) -> Array:
        old, now = metric.aggregate(arms.base, weights), metric.aggregate(arms.new, weights)
        return np.stack([old, now, now - old])

    old, now, changed = _bootstrap(metric, arms, both_and_delta, seed)
    changes = _item_scores(metric, arms.new) - _item_scores(metric, arms.base)
    ends = _guarded(_bca_ends(changed), changed.estimate, metric, changes, arms, False)
    scores = _bca_estimate(metric, old, arms.base, arms), _bca_estimate(metric, now, arms.new, arms)
    return _Difference(changed.estimate, ends, "bca", *scores)


def _bootstrap(metric: Metric, arms: _Arms, statistic: stats.Statistic, seed: int) -> list[stats.Bootstrap]:
    """Bootstrap over clusters with the inclusion weights; without draws where there is one cluster only."""

    def weighted(draws: Array) -> Array:
        return np.atleast_2d(statistic(draws * arms.weights))

    if arms.clusters.max() > 0:
        return stats.bootstrap(weighted, arms.clusters, seed=seed)
    none: Array = np.array([])
    return [stats.Bootstrap(float(row[0]), none, none) for row in weighted(np.ones((1, len(arms.ids))))]


def _t_ends(mean: stats.Mean) -> Ends | None:
    return None if mean.se is None else lambda alpha: stats.t_interval(mean, alpha)


def _bca_ends(boot: stats.Bootstrap) -> Ends | None:
    return (lambda alpha: stats.bca_interval(boot, alpha)) if boot.draws.size else None


def _score_ends(metric: Metric, changes: Array, arms: _Arms) -> Ends:
    """Return Tango's interval of the items' changes (n,), as shares of the range, by effective counts."""
    scale = metric.bounds[1] - metric.bounds[0]
    effect = stats.design_effect(changes, arms.clusters)
    shares = changes / scale / effect
    gains, losses = float(shares[shares > 0].sum()), float(-shares[shares < 0].sum())

    def ends(alpha: float) -> Interval:
        low, high = stats.tango_interval(gains, losses, len(changes) / effect, alpha)
        return Interval(low * scale, high * scale)

    return ends


def _guarded(
    plain: Ends | None, delta: float, metric: Metric, changes: Array, arms: _Arms, binary: bool
) -> Ends:
    """Widen an interval to Tango's distances where few changes could make it too short."""
    if not isfinite(metric.bounds[1] - metric.bounds[0]):
        return plain or _refuse_single_cluster(metric)
    if plain and not binary and stats.differing_clusters(changes, arms.clusters) >= _FEW:
        return plain
    guard, shift = _score_ends(metric, changes, arms), delta - float(changes.mean())

    def ends(alpha: float) -> Interval:
        low, high = (end + shift for end in guard(alpha))
        own = plain(alpha) if plain else Interval(low, high)
        return Interval(min(own.low, low), max(own.high, high))

    return ends


def _mean_estimate(metric: Metric, scores: Array, arms: _Arms) -> Estimate:
    mean = stats.clustered_mean(scores, arms.clusters)
    single = _is_binary(arms) and mean.n_clusters == mean.n
    plain = None if single else _t_ends(mean)
    return _score_estimate(metric, mean.mean, plain, scores, arms)


def _bca_estimate(metric: Metric, boot: stats.Bootstrap, parts: Array, arms: _Arms) -> Estimate:
    return _score_estimate(metric, boot.estimate, _bca_ends(boot), _item_scores(metric, parts), arms)


def _score_estimate(metric: Metric, score: float, plain: Ends | None, items: Array, arms: _Arms) -> Estimate:
    """Join an arm's interval with Wilson's, by effective counts, under the same rule as a delta's."""
    low, high = metric.bounds
    if not isfinite(high - low):
        own = (plain or _refuse_single_cluster(metric))(0.05)
        return Estimate(score, max(own.low, low), min(own.high, high), len(items))
    few = stats.differing_clusters(items, arms.clusters) < _FEW
    ends = [plain(0.05)] if plain else []
    if not plain or few or _is_binary(arms):
        n = len(items) / stats.design_effect(items, arms.clusters)
        share = min(max((score - low) / (high - low), 0.0), 1.0)
        ends += [Interval(*(low + end * (high - low) for end in stats.wilson(share * n, n)))]
    lows, highs = zip(*ends, strict=True)
    return Estimate(score, max(min(lows), low), min(max(highs), high), len(items))


def _refuse_single_cluster(metric: Metric) -> Ends:
    raise UserError(
        Problem(
            f"metric {metric.name}",
            "items of a single cluster",
            "at least two clusters, since the metric has no upper bound",
            "raise the limit of items, or give the items clusters of their own",
        )
    )


def _on_valid(metric: Metric, arms: _Arms, found: _Difference, seed: int, alpha: float) -> Estimate | None:
    n_valid = int(arms.valid.sum())
    if n_valid == 0:
        return None
    if n_valid < len(arms.ids):
        kept = arms.only(arms.valid)
        found = (_same if found.estimator == "identical" else _difference)(metric, kept, seed)
    return Estimate(found.delta, *found.ends(alpha), n_valid)


def _is_mean(metric: Metric, arms: _Arms) -> bool:
    """Tell whether the aggregate is the mean of one part, with weights that are all the same."""
    if arms.base.shape[1] != 1 or np.ptp(arms.weights) > 0:
        return False
    uneven = np.arange(1.0, len(arms.ids) + 1)
    return bool(np.isclose(metric.aggregate(arms.base, uneven), np.average(arms.base[:, 0], weights=uneven)))


def _is_binary(arms: _Arms) -> bool:
    return arms.base.shape[1] == 1 and bool(np.isin([arms.base, arms.new], (0.0, 1.0)).all())


def _item_scores(metric: Metric, parts: Array) -> Array:
    """Score every item alone: parts (n, k) → (n,)."""
    blocks = [parts[at : at + _BLOCK] for at in range(0, len(parts), _BLOCK)]
    return np.concatenate([metric.aggregate(block, np.eye(len(block))) for block in blocks])


def _improvements(metric: Metric, arms: _Arms) -> Array:
    change = _item_scores(metric, arms.new) - _item_scores(metric, arms.base)
    return change if metric.higher_is_better else -change


def _named(ids: Sequence[str], mask: NDArray[np.bool_]) -> tuple[str, ...]:
    return tuple(id_ for id_, chosen in zip(ids, mask, strict=True) if chosen)


def _quantile(estimator: str, n_clusters: int, p: float) -> float:
    is_t = estimator == "cluster-t" and n_clusters > 1
    return stats.t_quantile(p, n_clusters - 1) if is_t else stats.z_quantile(p)
