"""Corrected comparison: a judge's score and paired difference with people's labels joined to them.

Invariant: nothing is corrected but where each arm has a hundred labels of its own answers, or as many as it
has graded items, those of a difference on the same ones. Answers of folds are not: a correction would forget
what the models of the folds differ by. A failed answer is a drawn item like any other, and
its grade and label are both the worst there is: who fails is a part of the chance in a score.
Source: `judge_correction`.
"""

from collections.abc import Sequence
from dataclasses import replace

from harness.comparison.estimators import Comparison, Estimate, is_judge, quantile, refuse
from harness.comparison.failed_answers import fill_errors
from harness.comparison.judge_correction import GradedArm, correct_difference, correct_score
from harness.comparison.labelled_answers import (
    Labels,
    count_enough_labels,
    count_labels,
    grade_arm,
    is_correctable,
    select_scored,
)
from harness.metrics import Metric
from harness.records import SampleResult

Rows = Sequence[SampleResult]


def labels_missing(metric: str, labels: Labels, *arms: Rows) -> int:
    """Count the items that lack labels before a decision may rest on the grades; 0 of no judge.

    Of two arms both answers to an item need one, because their difference is corrected. An item whose answer
    failed, or has no readable grade, needs none, unless all are such: nobody could give it one.
    """
    if not is_judge(metric):
        return 0
    graded = set.intersection(*(set(select_scored(metric, rows)) for rows in arms))
    n_items = len(graded) or min(map(len, arms))
    return max(count_enough_labels(n_items) - count_labels(metric, labels, *arms), 0)


def correct_estimate(metric: Metric, found: Estimate, rows: Rows, labels: Labels) -> Estimate:
    """Return a judge's score corrected by labels, or the score as it is where they are too few."""
    if not _is_corrected(metric, rows) or labels_missing(metric.name, labels, rows):
        return found
    own = correct_score(_arms(metric, rows, rows, labels)[1])
    if own is None:
        return found._replace(low=metric.bounds[0], high=metric.bounds[1])
    return found._replace(score=own.score, low=own.low, high=own.high)


def correct_comparison(
    metric: Metric, found: Comparison, base: Rows, new: Rows, labels: Labels
) -> Comparison:
    """Return a judge's paired difference corrected by labels, or as it is where too few items have both.

    What is said of single items (`lost`, `gained`, `disagreement`, the valid ones) stays the judge's.
    """
    if not _is_corrected(metric, base, new) or found.estimator == "identical":
        return found
    if labels_missing(metric.name, labels, base, new):
        return found
    old, now = _arms(metric, base, new, labels)
    both, one = (correct_difference(old, now, alpha) for alpha in (found.alpha, 2 * found.alpha))
    b, n = map(correct_score, (old, now))
    if both is None or one is None or b is None or n is None:
        return refuse(found, metric.range.span, "people's labels lie in too few clusters")
    return replace(
        found,
        estimator="ppi",
        base=b.score, base_low=b.low, base_high=b.high,
        new=n.score, new_low=n.low, new_high=n.high,
        delta=both.score, low=both.low, high=both.high, lower=one.low, upper=one.high,
        se=(both.high - both.low) / (2 * quantile(both.df, 1 - found.alpha / 2)),
        df=both.df,
        base_passed=None,
    )  # fmt: skip


def _is_corrected(metric: Metric, *arms: Rows) -> bool:
    return is_judge(metric.name) and is_correctable(metric, *arms)


def _arms(metric: Metric, base: Rows, new: Rows, labels: Labels) -> tuple[GradedArm, GradedArm]:
    """Put grades and labels side by side on the items that both arms scored, or failed to answer."""
    filled = fill_errors(metric, base, new)
    old, now = (
        {row.example_id: row for row in rows if row.parts[metric.name] is not None}
        for rows in (filled.base, filled.new)
    )
    shared = sorted(old.keys() & now.keys())
    first, second = (grade_arm(metric, [of[i] for i in shared], labels) for of in (old, now))
    return first, second
