"""Paired comparison of two sets of rows of the same items, or a refusal that names the differences.

Invariant: a failed answer scores worst in either arm, so swapping the arms only flips the sign; only a gate
treats the base's failures differently (`base_errors`). Unparsable, truncated and refused answers count as
stored. A judge's scores are corrected only if each arm has a hundred labels of its own answers, or labels for
all graded items, and never in folds. Going down by score, a candidate opens a rank only where its paired
difference to the one that opened the last rank has a 95 % interval without 0; the number of pairs is not
corrected for. Source: Miller 2024, arXiv:2411.00640, for variances over items and over repeated answers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import stats
from harness.analysis import alignment, people_labels
from harness.analysis.estimators import (
    Comparison,
    Estimate,
    estimate_difference,
    identical_difference,
    is_judge,
    refuse,
    refuse_failed,
)
from harness.analysis.judge_correction import GradedArm, correct_difference, correct_score
from harness.errors import IncompatibleRuns
from harness.metrics import Metric, extremes, flips, mean_metric
from harness.records import RowsIdentity, SampleResult

if TYPE_CHECKING:
    from harness.store import MetricColumns

_ALPHA = 0.05

_MUST_AGREE = ("task", "task_version", "split", "scoring_digest")
_MUST_AGREE_HERE = ("template_digest", "precision", "engine", "layout_digest", "device_class")
_PROMPTED_BY = ("prompting_digest", "answer", "decoding", "choice")
Rows = Sequence[SampleResult]


def check_comparable(a: RowsIdentity, b: RowsIdentity, *, prompting: bool = False) -> None:
    """Refuse rows that differ in more than weights, an endpoint's or artefact's engine, and prompting."""
    local_fields = () if a.computes_apart or b.computes_apart else _MUST_AGREE_HERE
    fields = (*_MUST_AGREE, *local_fields, *(_PROMPTED_BY if prompting else ()))
    differing = [
        f"{f} {getattr(a, f)!r} and {getattr(b, f)!r}" for f in fields if getattr(a, f) != getattr(b, f)
    ]
    if differing:
        raise IncompatibleRuns(
            f"rows of task {a.task!r} cannot be compared: they differ in {'; '.join(differing)}. "
            "Next: evaluate both runs again with the same settings"
        )


def estimate(metric: Metric, rows: Sequence[SampleResult]) -> Estimate:
    """Estimate the score of one run with its 95 % interval; failed rows score worst, or are left out.

    Wilson's interval for scores of 0 and 1 (in clusters by effective counts, and never narrower than the
    clustered t), the clustered t for graded means, BCa over clusters for other metrics. It is clipped to the
    metric's bounds, and as wide as these for an unbounded metric on too few clusters.

    Raises:
        IncompatibleRuns: no row could be scored.
    """
    filled = alignment.fill_errors(metric, rows, rows)
    score = identical_difference(metric, alignment.align(metric, filled.base, filled.base)).base
    return score._replace(n_errors=filled.errors.total)


def is_comparable(metric: Metric, base: Sequence[SampleResult], new: Sequence[SampleResult]) -> bool:
    """Tell whether the base scored an item that the new run also scored, or that counts as failed by it."""
    scored = {row.example_id for row in base if row.parts[metric.name] is not None}
    if any(row.parts[metric.name] is not None and row.example_id in scored for row in new):
        return True
    filled = alignment.fill_errors(metric, base, new, base_errors="bounds").new
    return any(row.parts[metric.name] is not None and row.example_id in scored for row in filled)


def compare_rows(
    metric: Metric,
    base: Sequence[SampleResult],
    new: Sequence[SampleResult],
    *,
    alpha: float = 0.05,
    identical: bool = False,
    base_errors: alignment.BaseErrors = "worst",
) -> Comparison:
    """Compare two runs on the same items; `identical` weights have the delta 0 and [0, 0].

    - Scores all 0 or 1, every item its own cluster: Tango's score interval; with unequal inclusion weights
      that of strata (`stats.stratified_flips_interval`).
    - Other means: the clustered t, never narrower than Tango's by effective counts for scores of 0 and 1, or
      where fewer than ten clusters differ.
    - Other metrics and weights: BCa over clusters, guarded in the same way, and widened by the ratio of the t
      quantile (`stats.cluster_df`) to the normal one.

    With fewer than four effective clusters there is no interval. A failed answer scores worst, or is left out
    without a worst value. With `base_errors="bounds"` the interval includes those in which the base's
    failures count as passed and as failed, and items that neither arm answered are left out.

    Raises:
        IncompatibleRuns: the arms hold different items or an item twice, or none was scored in both.
    """
    filled = alignment.fill_errors(metric, base, base if identical else new, base_errors)
    errors, arms = filled.errors, alignment.align(metric, filled.base, filled.new)
    difference = plain = (identical_difference if identical else estimate_difference)(metric, arms)
    if errors.base and filled.base_extremes:
        # Count the base's failed answers as passed, and as failed.
        arms_of_extremes = (alignment.align(metric, rows, filled.new) for rows in filled.base_extremes)
        if_passed, if_failed = (estimate_difference(metric, extreme) for extreme in arms_of_extremes)

        def widest(level: float) -> stats.Interval:
            lows, highs = zip(*(case.ends(level) for case in (plain, if_passed, if_failed)), strict=True)
            return stats.Interval(min(lows), max(highs))

        difference = plain._replace(ends=widest, estimator="bounds")
        errors = replace(errors, delta_lost=if_passed.delta, delta_kept=if_failed.delta)
    changes, moved = flips(metric, arms.base, arms.new)  # (n,)
    n_clusters = int(arms.clusters.max()) + 1
    two_sided, one_sided = difference.ends(alpha), difference.ends(2 * alpha)
    span = metric.bounds[1] - metric.bounds[0]  # a t interval on few clusters can exceed it
    is_passed = alignment.is_binary(metric, arms) and plain.estimator != "stratified"
    return Comparison(
        task=base[0].task, metric=metric.name, unit=metric.unit, n=len(arms.ids), n_clusters=n_clusters,
        base=difference.base.score, base_low=difference.base.low, base_high=difference.base.high,
        new=difference.new.score, new_low=difference.new.low, new_high=difference.new.high,
        delta=difference.delta, low=max(two_sided.low, -span), high=min(two_sided.high, span),
        lower=one_sided.low, upper=one_sided.high,
        se=(two_sided.high - two_sided.low) / (2 * alignment.quantile(difference.df, 1 - alpha / 2)),
        disagreement=float(np.average(np.abs(changes) > stats.TIE, weights=arms.weights)),
        lost=alignment.select_ids(arms.ids, moved & (changes < 0)),
        gained=alignment.select_ids(arms.ids, moved & (changes > 0)),
        estimator=difference.estimator, alpha=alpha, df=difference.df, refused=difference.refused,
        errors=errors, design_effect=stats.design_effect(changes, arms.clusters),
        base_passed=int((arms.base == float(metric.higher_is_better)).sum()) if is_passed else None,
    )  # fmt: skip


def compare_on_target(
    metric: Metric,
    base: Sequence[SampleResult],
    new: Sequence[SampleResult],
    labels: people_labels.Labels,
    max_errors: float,
) -> Comparison | None:
    """Compare two runs on a target, corrected by labels; refused if many answers failed, None if all did."""
    if not is_comparable(metric, base, new):
        return None
    corrected = correct_comparison(metric, compare_rows(metric, base, new), base, new, labels)
    return refuse_failed(corrected, metric.range.span, max_errors)


def compare_validity(
    base: Sequence[SampleResult],
    new: Sequence[SampleResult],
    *,
    clusters: Mapping[str, str] = {},
    alpha: float = 0.05,
    identical: bool = False,
    base_errors: alignment.BaseErrors = "worst",
) -> Comparison:
    """Compare the share of unusable answers; `clusters` joins pooled names that several tasks share."""
    metric = mean_metric("invalid", lambda output, example: None, higher_is_better=False)
    old = alignment.validity_rows(base, clusters)
    now = old if new == base else alignment.validity_rows(new, clusters)
    return compare_rows(metric, old, now, alpha=alpha, identical=identical, base_errors=base_errors)


def labels_missing(metric: str, labels: people_labels.Labels, *arms: Rows) -> int:
    """Count the labels that both arms still need before a judge's grades may decide; 0 for other metrics."""
    if not is_judge(metric):
        return 0
    scored = [people_labels.select_scored(metric, rows) for rows in arms]
    n_items = len(set.intersection(*map(set, scored))) or min(map(len, arms))
    counted = (set(people_labels.select_labels(metric, [*by_item.values()], labels)) for by_item in scored)
    return max(people_labels.count_enough_labels(n_items) - len(set.intersection(*counted)), 0)


def correct_estimate(
    metric: Metric, uncorrected: Estimate, rows: Rows, labels: people_labels.Labels
) -> Estimate:
    """Return a judge's score corrected by labels, or uncorrected if there are too few."""
    if not _is_corrected(metric, rows) or labels_missing(metric.name, labels, rows):
        return uncorrected
    corrected = correct_score(_arms(metric, rows, rows, labels)[1])
    if corrected is None:
        return uncorrected._replace(low=metric.bounds[0], high=metric.bounds[1])
    return uncorrected._replace(score=corrected.score, low=corrected.low, high=corrected.high)


def correct_comparison(
    metric: Metric, uncorrected: Comparison, base: Rows, new: Rows, labels: people_labels.Labels
) -> Comparison:
    """Return a judge's difference corrected by labels, if enough items have both; flips stay uncorrected."""
    if not _is_corrected(metric, base, new) or uncorrected.estimator == "identical":
        return uncorrected
    if labels_missing(metric.name, labels, base, new):
        return uncorrected
    old, now = _arms(metric, base, new, labels)
    two_sided, one_sided = (
        correct_difference(old, now, alpha) for alpha in (uncorrected.alpha, 2 * uncorrected.alpha)
    )
    base_score, new_score = map(correct_score, (old, now))
    if two_sided is None or one_sided is None or base_score is None or new_score is None:
        return refuse(uncorrected, metric.range.span, "people's labels lie in too few clusters")
    return replace(
        uncorrected,
        estimator="ppi",
        base=base_score.score, base_low=base_score.low, base_high=base_score.high,
        new=new_score.score, new_low=new_score.low, new_high=new_score.high,
        delta=two_sided.score, low=two_sided.low, high=two_sided.high,
        lower=one_sided.low, upper=one_sided.high,
        se=(two_sided.high - two_sided.low)
        / (2 * alignment.quantile(two_sided.df, 1 - uncorrected.alpha / 2)),
        df=two_sided.df,
        base_passed=None,
    )  # fmt: skip


def _is_corrected(metric: Metric, *arms: Rows) -> bool:
    return is_judge(metric.name) and people_labels.is_correctable(metric, *arms)


def _arms(metric: Metric, base: Rows, new: Rows, labels: people_labels.Labels) -> tuple[GradedArm, GradedArm]:
    """Return grades and labels of the items that both arms scored or failed to answer."""
    filled = alignment.fill_errors(metric, base, new)
    old, now = (
        {row.example_id: row for row in rows if row.parts[metric.name] is not None}
        for rows in (filled.base, filled.new)
    )
    shared = sorted(old.keys() & now.keys())
    first, second = (
        people_labels.grade_arm(metric, [by_item[i] for i in shared], labels) for by_item in (old, now)
    )
    return first, second


def estimate_columns(metric: Metric, columns: "MetricColumns") -> Estimate | None:
    """Estimate a score with its 95 % interval, as `estimate` does for rows; None if nothing was scored."""
    return _estimate(metric, _read(metric, columns), sum(columns.failed))


def _estimate(metric: Metric, arm: alignment.Arms, n_errors: int) -> Estimate | None:
    scored = _pair(arm, arm)
    return identical_difference(metric, scored).base._replace(n_errors=n_errors) if scored.ids else None


def rank_with_ties(metric: Metric, columns: Mapping[str, "MetricColumns"]) -> dict[str, int]:
    """Rank candidates, 1 the best, on the items that most answered; indistinguishable ones share a rank."""
    groups: dict[tuple[str, ...], dict[str, MetricColumns]] = {}
    for name, candidate_columns in columns.items():
        groups.setdefault(candidate_columns.ids, {})[name] = candidate_columns
    largest = max(groups.values(), key=len, default={})
    same_items = {name: _read(metric, candidate_columns) for name, candidate_columns in largest.items()}
    scores = {name: _estimate(metric, arm, 0) for name, arm in same_items.items()}
    signed_scores = {name: e.unit.sign * e.score for name, e in scores.items() if e is not None}
    ranks: dict[str, int] = {}
    leader = ""
    for rank, name in enumerate(sorted(signed_scores, key=lambda name: -signed_scores[name]), start=1):
        low = high = 0.0
        if leader and (arms := _pair(same_items[leader], same_items[name])).ids:
            low, high = estimate_difference(metric, arms).ends(_ALPHA)
        if not leader or low > 0 or high < 0:
            leader, ranks[name] = name, rank
        else:
            ranks[name] = ranks[leader]
    return ranks


def _read(metric: Metric, columns: "MetricColumns") -> alignment.Arms:
    """Read a candidate's columns as both arms, NaN without a score; a failed answer scores worst."""
    parts = list(columns.parts)
    for i in np.flatnonzero(columns.failed):
        if parts[i] is None and (extreme_parts := extremes(metric, columns.references[i])):
            parts[i] = extreme_parts.worst
    scored = np.array([p is not None for p in parts], bool)
    known_parts = np.array([p for p in parts if p is not None], float)
    filled = np.full((len(parts), *(known_parts.shape[1:] or (1,))), np.nan)
    filled[scored] = known_parts.reshape(-1, filled.shape[1])
    families, folds = _code_families(columns.ids, columns.clusters), columns.folds or [0] * len(columns.ids)
    weights, fold_numbers = np.array(columns.weights, float), np.array(folds)
    return alignment.Arms(columns.ids, families, weights, filled, filled, fold_numbers, fold_numbers)


@lru_cache(maxsize=4)
def _code_families(ids: tuple[str, ...], clusters: tuple[str, ...]) -> NDArray[np.intp]:
    """Number the families of items, shared by candidates; an item without a cluster is its own family."""
    families = [cluster or item for item, cluster in zip(ids, clusters, strict=True)]
    return np.unique(families, return_inverse=True)[1]


def _pair(base: alignment.Arms, new: alignment.Arms) -> alignment.Arms:
    """Pair two candidates on the items that have a score in both."""
    in_both = ~np.asarray(np.isnan(np.hstack([base.base, new.new])).any(axis=1), bool)
    arms = base._replace(new=new.new, new_folds=new.new_folds)
    return arms if in_both.all() else arms.only(in_both)


class RecipeDifference(NamedTuple):
    """New recipe's mean minus the base's over n items; variances over items of that and of the new mean."""

    delta: float
    change: stats.Variance
    score: stats.Variance
    n: int


def compare_recipes(
    metric: Metric, base: Sequence[Sequence[SampleResult]], new: Sequence[Sequence[SampleResult]]
) -> RecipeDifference:
    """Compare the means over the seeds of two recipes, each given by the rows of its runs.

    The parts of an item are averaged over a recipe's runs; the variances are those of `compare_rows`
    intervals.

    Raises:
        IncompatibleRuns: the runs hold different items, or none was scored in all of them.
    """
    aligned = alignment.align_all(metric, (*base, *new))
    old, now = (
        np.mean([a.new for a in recipe_arms], axis=0)
        for recipe_arms in (aligned[: len(base)], aligned[len(base) :])
    )
    arms = aligned[0]._replace(base=old, new=now, new_folds=aligned[len(base)].new_folds)
    difference = estimate_difference(metric, arms)
    low, high = difference.ends(_ALPHA)
    se = (high - low) / (2 * alignment.quantile(difference.df, 1 - _ALPHA / 2))
    score_se = (difference.new.high - difference.new.low) / (2 * stats.z_quantile(1 - _ALPHA / 2))
    change, score = stats.Variance(se**2, difference.df), stats.Variance(score_se**2, None)
    return RecipeDifference(difference.delta, change, score, len(arms.ids))
