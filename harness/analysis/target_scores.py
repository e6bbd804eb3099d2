"""Further scores of the target: other targets, a trivial baseline, a learning curve.

Invariant: all sizes of a learning curve answered the same test items, over which the intervals are. Source:
`stats.fit_power_law`; the rule 0-R, Holte 1993, Machine Learning 11, for the majority class.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from statistics import fmean
from typing import NamedTuple

import numpy as np

from harness import formatting, stats
from harness.analysis import comparison
from harness.analysis.alignment import align_all
from harness.analysis.estimators import Comparison, Estimate
from harness.errors import Unscored
from harness.metrics import Metric, trait
from harness.records import Example, Output, SampleResult

_DRAWS = 1000
_TIMES = (2, 4)


@dataclass(frozen=True, slots=True)
class TargetScore:
    """Score on another target, compared with untrained candidates; `untrained` is best on its validation."""

    task: str
    metric: str
    score: Estimate
    untrained: str | None = None
    vs_untrained: Comparison | None = None
    vs_prompt: Comparison | None = None


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


def trivial_baseline(metric: Metric, items: Sequence[Example]) -> TrivialBaseline | None:
    """Find the rule that is right on most items, as the metric parses answers; None for other metrics."""
    if not trait(metric.name, "IS_SHARE_OF_RIGHT_LABELS", False):
        return None
    rules, best_share = [], 0.0

    def share(label: str, items: Sequence[Example]) -> float:  # 0 where it cannot be scored
        scores = []
        for item in items:
            parts = None
            with suppress(Unscored):
                parts = metric.score(Output(label), item)
            scores.append((parts or (0.0,))[0])
        return fmean(scores)

    # A spelling is right on at most as many items as have a reference that the metric takes for the same.
    right = Counter(label for e in items for label in {metric.same(r) for r in e.references})
    spelt = Counter(reference for e in items for reference in e.references)
    for label in sorted(spelt, key=lambda label: (-right[metric.same(label)], -spelt[label])):
        if right[metric.same(label)] <= best_share * len(items):
            break
        rules.append(TrivialBaseline(f"always answering {formatting.quote(label)}", share(label, items)))
        best_share = max(best_share, rules[-1].share)
    if items and all(e.choices for e in items):
        right_guesses = (fmean(share(choice, [e]) for choice in set(e.choices)) for e in items)
        rules.append(TrivialBaseline("guessing among the choices", fmean(right_guesses)))
    return max(rules, key=lambda rule: rule.share, default=None)


class TrainingSize(NamedTuple):
    """One size of the training data, with the cost of training and the test rows answered after it."""

    n_train: int
    cost_usd: float
    rows: Sequence[SampleResult]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One size of the training data and the target's test score after training on it."""

    n_train: int
    score: Estimate
    training_cost_usd: float


@dataclass(frozen=True, slots=True)
class ExpectedGain:
    """Expected gain from a larger amount of data over all current data; above 0 is better."""

    n_train: int
    gain: Estimate


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Scores by the size of training data, smallest first, and the extrapolation by error = E + B D^−β."""

    candidate: str
    points: tuple[CurvePoint, ...]
    ahead: tuple[ExpectedGain, ...]
    exponent: float


def learning_curve(candidate: str, trained: Sequence[TrainingSize], metric: Metric) -> LearningCurve | None:
    """Fit the error over four sizes or more and extrapolate it; None if the metric has no best value."""
    best = metric.bounds[1 if metric.higher_is_better else 0]
    if len(trained) < stats.MIN_SIZES or not isfinite(best):
        return None
    ordered = sorted(trained, key=lambda t: t.n_train)
    sizes = [t.n_train for t in ordered]
    # Each size's distance from the best value: observed (1, k), and over drawn clusters (d, k).
    arms = align_all(metric, [t.rows for t in ordered])
    clusters, item_weights = arms[0].clusters, arms[0].weights
    n = int(clusters.max()) + 1
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _DRAWS)[:, clusters].astype(float)
    observed_errors, drawn_errors = (
        np.abs(best - np.stack([metric.aggregate(a.new, w * item_weights) for a in arms], axis=-1))
        for w in (np.ones((1, len(clusters))), draws)
    )
    n_items = len(ordered[-1].rows)
    widest = abs(metric.bounds[1] - metric.bounds[0])
    half_item = 0.5 * (widest if isfinite(widest) else 1.0) / n_items
    weights = 1 / np.maximum(drawn_errors.var(axis=0), half_item**2)
    fits = [stats.fit_power_law(sizes, errors, weights) for errors in (observed_errors, drawn_errors)]
    ahead, better = [], replace(metric.unit, higher_is_better=True)
    for times in _TIMES:
        at = (sizes[-1], times * sizes[-1])
        errors = [[np.clip(fit.at(size), 0, widest) for size in at] for fit in fits]
        gains = [now - then for now, then in errors]
        low, high = np.quantile(gains[1], (0.025, 0.975))
        estimate = Estimate(float(gains[0][0]), float(low), float(high), n_items, better)
        ahead.append(ExpectedGain(times * sizes[-1], estimate))
    points = tuple(CurvePoint(t.n_train, comparison.estimate(metric, t.rows), t.cost_usd) for t in ordered)
    return LearningCurve(candidate, points, tuple(ahead), float(fits[0].exponent[0]))
