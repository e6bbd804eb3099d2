"""Answers to facts that changed: as a candidate is, with the new documents, and what a refresh takes.

Invariant: a fine-tune is not trained again, so what retraining would bring is not known; what it would take
is what the stored training took.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from harness import formatting
from harness.comparison import Comparison, Estimate


@dataclass(frozen=True, slots=True)
class ChangedAnswers:
    """Scores of a candidate on `n` items whose right answer changed, in the target metric's unit.

    `before` is with the documents that there were, `after` with the new ones, None of a candidate that
    retrieves nothing; `change` is their paired difference. `vs_untrained` is the paired difference to the
    best untrained candidate, both as far as they can be refreshed. Of `n_known` items it is known what was
    right before: `outdated_before` and `outdated_after` count those still answered so, None of a metric that
    a judge gives or that is no rate. `index_s` is how long the index of the new documents took to build, at
    `index_cost_usd`.
    """

    n: int
    before: Estimate
    after: Estimate | None = None
    change: Comparison | None = None
    vs_untrained: Comparison | None = None
    n_known: int = 0
    outdated_before: int | None = None
    outdated_after: int | None = None
    index_s: float | None = None
    index_cost_usd: float | None = None

    @property
    def latest(self) -> Estimate:
        """The score once all is refreshed that takes no training."""
        return self.after or self.before

    @property
    def outdated(self) -> int | None:
        """The number of items that are then still answered as was right before."""
        return self.outdated_before if self.after is None else self.outdated_after


def describe_outdated(n_outdated: int | None, n_known: int) -> str:
    """Say how many of the items whose former answer is known still get it; unknown of none."""
    if n_outdated is None or not n_known:
        return formatting.UNKNOWN
    return f"{formatting.count(n_outdated)} of {formatting.count(n_known)}"


def describe_changes(name: str, of: ChangedAnswers, metric: str, training: str) -> str:
    """Say in words what a candidate answers to changed facts; `training` is what training it took."""
    unit = of.before.unit
    still = describe_outdated(of.outdated, of.n_known)
    outdated = "" if still == formatting.UNKNOWN else f", the outdated answer to {still}"
    if of.after is not None:
        index = "" if of.index_s is None else f" (an index built in {formatting.seconds(of.index_s)})"
        scores = (
            f"{formatting.score(unit, *of.before[:3])} → {formatting.score(unit, *of.after[:3])} {metric}"
        )
        return f"{name} {scores} with the new documents{index}{outdated}"
    again = f"; retraining takes what it took: {training}" if training else ""
    return f"{name} {formatting.score(unit, *of.before[:3])} {metric} as it is{outdated}{again}"


def describe_measured_changes(answers: Sequence[tuple[str, ChangedAnswers, str]], metric: str) -> str:
    """Say what candidates answer to changed facts, each with its name and what its training took."""
    n = max(of.n for _, of, _ in answers)
    said = "; ".join(describe_changes(name, of, metric, training) for name, of, training in answers)
    return f"on {formatting.pluralize(n, 'changed item')}, {said}"
