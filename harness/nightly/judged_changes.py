"""Changes of a night that a judge grades, beside people's labels: corrected by them, or why not.

Invariant: pure. A change is corrected as `harness compare` corrects a difference, where people labelled as
many answers of both sides; an answer that came back as it was keeps its label. The night's evidence stays
that of the grades.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from harness import comparison, formatting
from harness.comparison import Labels, answer_digest, compare_on_target, correct_estimate, labels_missing
from harness.metrics import Metric
from harness.records import SampleResult

Ends = tuple[float, float, float]
Rows = Sequence[SampleResult]


@dataclass(frozen=True, slots=True)
class JudgedChange:
    """One night's answers to the target beside those of the reference, as a judge grades both.

    Of `n_changed` answers that are others than in the reference `n_unlabelled` have no label of people.
    `delta` is their change by the judge, `corrected` the one that labels correct, with its interval; `score`
    is that of the whole reference by the judge, `corrected_score` the one that labels correct, of which it
    lacks `n_missing`. Numbers are in [0, 1]; None is what too few labels leave unknown.
    """

    metric: str
    n: int
    n_changed: int
    n_unlabelled: int
    delta: float
    score: float
    n_missing: int
    corrected: Ends | None = None
    corrected_score: Ends | None = None


def compare_judged_answers(
    metric: Metric, now: Rows, then: Rows, labels: Labels, max_errors: float
) -> JudgedChange | None:
    """Put tonight's answers beside those of the whole reference; None where none was graded in both."""
    answered = {row.example_id: row for row in now}
    old = [row for row in then if row.example_id in answered]
    new = [answered[row.example_id] for row in old]
    by_people = compare_on_target(metric, old, new, labels, max_errors)
    if by_people is None:
        return None
    pairs = [(row, before) for row, before in zip(new, old, strict=True) if row.status != "error"]
    changed = [row for row, before in pairs if row.text != before.text]
    found = comparison.compare_rows(metric, old, new)
    reference = comparison.estimate(metric, then)
    n_missing = labels_missing(metric.name, labels, then)
    own = correct_estimate(metric, reference, then, labels)
    return JudgedChange(
        metric=metric.name,
        n=len(new),
        n_changed=len(changed),
        n_unlabelled=sum(answer_digest(metric.name, row) not in labels for row in changed),
        delta=found.delta,
        score=reference.score,
        n_missing=n_missing,
        corrected=(by_people.delta, by_people.low, by_people.high) if by_people.estimator == "ppi" else None,
        corrected_score=None if n_missing else own[:3],
    )


def describe_judged_change(change: JudgedChange) -> str:
    """Say by whose grades answers changed, and what people's labels make of that; empty where none did."""
    if not change.n_changed:
        return ""
    if change.corrected:
        by_judge = formatting.points(change.delta)
        said = f"people's labels correct tonight's {by_judge} pp of {change.metric} to"
        return f"{said} {formatting.points(*change.corrected)} pp"
    said = f"{change.metric} grades it, uncorrected"
    if change.corrected_score is None:
        lacking = formatting.pluralize(change.n_missing, "answer")
        return f"{said}: {lacking} of the reference lack people's labels (harness rate export)"
    some = f"{formatting.count(change.n_unlabelled)} of the {formatting.count(change.n_changed)} answers"
    own = f"{formatting.percent(change.score)} to {formatting.interval(*change.corrected_score)} %"
    why = f"{some} that differ from the reference have no label from people"
    return f"{said}: {why}, whose labels correct its score of the reference from {own}"
