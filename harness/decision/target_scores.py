"""Scores that stand beside a candidate's on the target: on another target, and of the majority class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from harness import formatting
from harness.comparison import Comparison, Estimate
from harness.errors import Unscored
from harness.metrics import Metric, Parts
from harness.records import Example, Output

_OF_LABELS = ("exact_match", "accuracy", "final_answer")  # metrics that are the share of right labels


@dataclass(frozen=True, slots=True)
class TargetScore:
    """Score of a candidate on another target, with what trains nothing compared on the same items.

    `untrained` names the candidate without training that is best on that target's own validation rows;
    `vs_untrained` is the paired difference from it, `vs_prompt` from the plain prompt.
    """

    task: str
    metric: str
    score: Estimate
    untrained: str | None = None
    vs_untrained: Comparison | None = None
    vs_prompt: Comparison | None = None


class MajorityBaseline(NamedTuple):
    """Majority-class baseline: the commonest label of the test items, and its share of them in [0, 1].

    Source: the rule 0-R, Holte 1993, Machine Learning 11.
    """

    label: str
    share: float

    @property
    def text(self) -> str:
        """What it does and reaches: `always answering “no”, which reaches 51.5 %`."""
        reaches = f"{formatting.percent(self.share)} %"
        return f"always answering {formatting.quote(self.label)}, which reaches {reaches}"

    def is_above(self, reached: Estimate | None) -> bool:
        """Tell whether a candidate's score, a rate, is shown to be lower."""
        return reached is not None and reached.high < self.share

    def may_reach(self, reached: Estimate | None) -> bool:
        """Tell whether a candidate's score, a rate, is not shown to be higher."""
        return reached is not None and reached.low <= self.share


def majority_baseline(metric: Metric, items: Sequence[Example]) -> MajorityBaseline | None:
    """Find the answer that is right on most items, as the metric reads it; None of other metrics."""
    if metric.name not in _OF_LABELS:
        return None
    spelt = Counter(reference for e in items for reference in e.references)
    right = Counter(label for e in items for label in {metric.same(r) for r in e.references})
    if not right:
        return None
    commonest, _ = right.most_common(1)[0]
    spellings = [label for label, _ in spelt.most_common() if metric.same(label) == commonest]
    return max(
        (MajorityBaseline(label, _share(metric, label, items)) for label in spellings), key=lambda m: m.share
    )


def _share(metric: Metric, label: str, items: Sequence[Example]) -> float:
    """Return what always the same answer scores, 0 where it cannot be scored."""
    return fmean((_parts(metric, label, e) or (0.0,))[0] for e in items)


def _parts(metric: Metric, label: str, item: Example) -> Parts | None:
    try:
        return metric.score(Output(label), item)
    except Unscored:
        return None
