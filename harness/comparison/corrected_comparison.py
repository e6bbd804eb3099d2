"""Corrected comparison: a judge's score and paired difference with people's labels joined to them.

Invariant: nothing is corrected but where each arm has a hundred labels of its own answers, those of a
difference on the same items; failed answers keep the worst score that they have, which nobody need label.
Source: `judge_correction`.
"""

from collections.abc import Sequence
from dataclasses import replace

from harness.comparison.estimators import Comparison, Estimate, is_judge, quantile, refuse
from harness.comparison.failed_answers import fill_errors
from harness.comparison.judge_correction import Graded, correct_difference, correct_score
from harness.comparison.labelled_answers import (
    ENOUGH_LABELS,
    Labels,
    count_labels,
    grade_arm,
    is_correctable,
)
from harness.metrics import Metric
from harness.records import SampleResult
from harness.stats import Array

Rows = Sequence[SampleResult]


def labels_missing(metric: str, labels: Labels, *arms: Rows) -> int:
    """Count the items that lack labels before a decision may rest on the grades; 0 of no judge.

    Of two arms both answers to an item need one, because their difference is corrected.
    """
    return max(ENOUGH_LABELS - count_labels(metric, labels, *arms), 0) if is_judge(metric) else 0


def correct_estimate(metric: Metric, found: Estimate, rows: Rows, labels: Labels) -> Estimate:
    """Return a judge's score corrected by labels, or the score as it is where they are too few."""
    if not _is_corrected(metric) or labels_missing(metric.name, labels, rows):
        return found
    filled = _filled(metric, rows, rows)[1]
    answered, failed = _split(filled, filled)
    own = correct_score(_arm(metric, filled, answered, labels))
    if own is None:
        return found._replace(low=metric.bounds[0], high=metric.bounds[1])
    worst = _arm(metric, filled, failed, {}).grades
    score, low, high = (_mixed(end, len(answered), worst) for end in (own.score, own.low, own.high))
    return found._replace(score=score, low=low, high=high)


def correct_comparison(
    metric: Metric, found: Comparison, base: Rows, new: Rows, labels: Labels
) -> Comparison:
    """Return a judge's paired difference corrected by labels, or as it is where too few items have both.

    What is said of single items (`lost`, `gained`, `disagreement`, the valid ones) stays the judge's.
    """
    if not _is_corrected(metric) or found.estimator == "identical":
        return found
    filled = _filled(metric, base, new)
    answered, failed = _split(*filled)
    old, now = (_arm(metric, rows, answered, labels) for rows in filled)
    if (old.has_label & now.has_label).sum() < ENOUGH_LABELS:
        return found
    both, one = (correct_difference(old, now, alpha) for alpha in (found.alpha, 2 * found.alpha))
    arms = [own for own in map(correct_score, (old, now)) if own is not None]
    if both is None or one is None or len(arms) < 2:
        return refuse(found, metric.range.span, "people's labels lie in too few clusters")
    worst = [_arm(metric, rows, failed, {}).grades for rows in filled]
    delta, low, high, lower, upper = (
        _mixed(end, len(answered), worst[1] - worst[0])
        for end in (both.score, both.low, both.high, one.low, one.high)
    )
    (b, b_low, b_high), (n, n_low, n_high) = (
        [_mixed(end, len(answered), of) for end in arm[:3]] for arm, of in zip(arms, worst, strict=True)
    )
    return replace(
        found,
        estimator="ppi",
        base=b, base_low=b_low, base_high=b_high,
        new=n, new_low=n_low, new_high=n_high,
        delta=delta, low=low, high=high, lower=lower, upper=upper,
        se=(high - low) / (2 * quantile(both.df, 1 - found.alpha / 2)),
        df=both.df,
        base_passed=None,
    )  # fmt: skip


def _is_corrected(metric: Metric) -> bool:
    return is_judge(metric.name) and is_correctable(metric)


def _filled(metric: Metric, base: Rows, new: Rows) -> tuple[dict[str, SampleResult], dict[str, SampleResult]]:
    """Map the items that both arms scored, or failed to answer, to their rows."""
    filled = fill_errors(metric, base, new)
    old, now = (
        {row.example_id: row for row in rows if row.parts[metric.name] is not None}
        for rows in (filled.base, filled.new)
    )
    shared = sorted(old.keys() & now.keys())
    return {i: old[i] for i in shared}, {i: now[i] for i in shared}


def _split(old: dict[str, SampleResult], now: dict[str, SampleResult]) -> tuple[list[str], list[str]]:
    """Tell the items that both arms answered from those that one of them did not."""
    failed = [i for i in now if "error" in (old[i].status, now[i].status)]
    return [i for i in now if i not in set(failed)], failed


def _arm(metric: Metric, rows: dict[str, SampleResult], ids: Sequence[str], labels: Labels) -> Graded:
    return grade_arm(metric, [rows[i] for i in ids], labels)


def _mixed(value: float, n_answered: int, failed: Array) -> float:
    """Average the value of the answered items with those of the failed ones."""
    return (value * n_answered + float(failed.sum())) / (n_answered + len(failed))
