"""Scores that stand beside a candidate's on the target: on another target, and of the majority class."""

from dataclasses import dataclass
from typing import NamedTuple

from harness import formatting
from harness.comparison import Comparison, Estimate


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
        return f"always answering “{self.label}”, which reaches {formatting.percent(self.share)} %"

    def is_above(self, reached: Estimate | None) -> bool:
        """Tell whether a candidate's score, a rate, is shown to be lower."""
        return reached is not None and reached.high < self.share

    def may_reach(self, reached: Estimate | None) -> bool:
        """Tell whether a candidate's score, a rate, is not shown to be higher."""
        return reached is not None and reached.low <= self.share
