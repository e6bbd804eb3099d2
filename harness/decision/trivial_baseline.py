"""Trivial baseline: the majority class, or a guess among an item's choices, whichever is right more often.

Source: the rule 0-R, Holte 1993, Machine Learning 11, for the majority class.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from harness import formatting
from harness.comparison import Estimate
from harness.errors import Unscored
from harness.metrics import Metric, Parts, trait
from harness.records import Example, Output


class TrivialBaseline(NamedTuple):
    """A rule that ignores the item (`always answering “no”`), and its share of right items in [0, 1]."""

    rule: str
    share: float

    @property
    def text(self) -> str:
        """The rule and its score: `always answering “no”, which reaches 51.5 %`."""
        return f"{self.rule}, which reaches {formatting.percent(self.share)} %"

    def is_above(self, reached: Estimate | None) -> bool:
        """Tell whether a candidate's score, a rate, is shown to be lower than the rule's."""
        return reached is not None and reached.high < self.share

    def may_reach(self, reached: Estimate | None) -> bool:
        """Tell whether a candidate's score, a rate, is not shown to be higher than the rule's."""
        return reached is not None and reached.low <= self.share


def trivial_baseline(metric: Metric, items: Sequence[Example]) -> TrivialBaseline | None:
    """Find the rule that is right on most items, as the metric parses answers; None for other metrics."""
    if not trait(metric.name, "IS_SHARE_OF_RIGHT_LABELS", False):
        return None
    return max((*_majority(metric, items), *_guess(metric, items)), key=lambda rule: rule.share, default=None)


def _guess(metric: Metric, items: Sequence[Example]) -> Iterator[TrivialBaseline]:
    """Yield a guess among the choices, if each item has some."""
    if items and all(e.choices for e in items):
        right = (fmean(_share(metric, choice, [e]) for choice in set(e.choices)) for e in items)
        yield TrivialBaseline("guessing among the choices", fmean(right))


def _majority(metric: Metric, items: Sequence[Example]) -> Iterator[TrivialBaseline]:
    """Yield constant answers that are right on more and more items; the last is right on most.

    A spelling is right on at most as many items as have a reference that the metric takes for the same.
    """
    right = Counter(label for e in items for label in {metric.same(r) for r in e.references})
    spelt = Counter(reference for e in items for reference in e.references)
    most = 0.0
    for label in sorted(spelt, key=lambda label: (-right[metric.same(label)], -spelt[label])):
        if right[metric.same(label)] <= most * len(items):
            return
        share = _share(metric, label, items)
        yield TrivialBaseline(f"always answering {formatting.quote(label)}", share)
        most = max(most, share)


def _share(metric: Metric, label: str, items: Sequence[Example]) -> float:
    """Return the score of always giving the same answer, 0 if it cannot be scored."""
    return fmean((_parts(metric, label, e) or (0.0,))[0] for e in items)


def _parts(metric: Metric, label: str, item: Example) -> Parts | None:
    try:
        return metric.score(Output(label), item)
    except Unscored:
        return None
