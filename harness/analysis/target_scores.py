"""Scores of the target besides the comparison: other targets, a trivial baseline, a learning curve.

Invariant: all sizes of a learning curve answered the same test items, over which the intervals are. Source:
`stats.fit_power_law`; the rule 0-R, Holte 1993, Machine Learning 11, for the majority class.
"""

from collections import Counter
from collections.abc import Sequence
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
from harness.metrics import Metric, Parts, trait
from harness.records import Example, Output, SampleResult
from harness.stats import Array


@dataclass(frozen=True, slots=True)
class TargetScore:
    """Score of a candidate on another target, with untrained candidates compared on the same items.

    `untrained` is best on that target's own validation rows.
    """

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
    rules, most = [], 0.0
    # A spelling is right on at most as many items as have a reference that the metric takes for the same.
    right = Counter(label for e in items for label in {metric.same(r) for r in e.references})
    spelt = Counter(reference for e in items for reference in e.references)
    for label in sorted(spelt, key=lambda label: (-right[metric.same(label)], -spelt[label])):
        if right[metric.same(label)] <= most * len(items):
            break
        share = _share(metric, label, items)
        rules.append(TrivialBaseline(f"always answering {formatting.quote(label)}", share))
        most = max(most, share)
    if items and all(e.choices for e in items):
        right_guesses = (fmean(_share(metric, choice, [e]) for choice in set(e.choices)) for e in items)
        rules.append(TrivialBaseline("guessing among the choices", fmean(right_guesses)))
    return max(rules, key=lambda rule: rule.share, default=None)


def _share(metric: Metric, label: str, items: Sequence[Example]) -> float:
    """Return the score of always giving the same answer, 0 if it cannot be scored."""
    return fmean((_parts(metric, label, e) or (0.0,))[0] for e in items)


def _parts(metric: Metric, label: str, item: Example) -> Parts | None:
    try:
        return metric.score(Output(label), item)
    except Unscored:
        return None


_DRAWS = 1000
_TIMES = (2, 4)


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
    """A recipe's scores by the size of its training data, smallest first, and the extrapolation.

    `exponent` is β of the fit E + B D^−β of the error.
    """

    candidate: str
    points: tuple[CurvePoint, ...]
    ahead: tuple[ExpectedGain, ...]
    exponent: float


def learning_curve(candidate: str, trained: Sequence[TrainingSize], metric: Metric) -> LearningCurve | None:
    """Fit the error over sizes, and extrapolate to 2 and 4 times the data.

    None with fewer than four sizes, or if the metric has no best value to count errors from.
    """
    best = metric.bounds[1 if metric.higher_is_better else 0]
    if len(trained) < stats.MIN_SIZES or not isfinite(best):
        return None
    ordered = sorted(trained, key=lambda t: t.n_train)
    sizes = [t.n_train for t in ordered]
    observed, drawn = _errors(metric, best, [t.rows for t in ordered])  # (1, k), (d, k)
    n_items = len(ordered[-1].rows)
    weights = 1 / np.maximum(drawn.var(axis=0), (0.5 / n_items) ** 2)
    fits = [stats.fit_power_law(sizes, errors, weights) for errors in (observed, drawn)]
    ahead, better = [], replace(metric.unit, higher_is_better=True)
    for times in _TIMES:
        gains = [_gain(metric, fit, sizes[-1], times) for fit in fits]
        low, high = np.quantile(gains[1], (0.025, 0.975))
        estimate = Estimate(float(gains[0][0]), float(low), float(high), n_items, better)
        ahead.append(ExpectedGain(times * sizes[-1], estimate))
    points = tuple(CurvePoint(t.n_train, comparison.estimate(metric, t.rows), t.cost_usd) for t in ordered)
    return LearningCurve(candidate, points, tuple(ahead), float(fits[0].exponent[0]))


def _errors(metric: Metric, best: float, runs: Sequence[Sequence[SampleResult]]) -> tuple[Array, Array]:
    """Return each size's distance from the best value: observed (1, k), and over drawn clusters (d, k)."""
    arms = align_all(metric, runs)
    clusters = arms[0].clusters
    n_clusters = int(clusters.max()) + 1
    times = np.random.default_rng(0).multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), _DRAWS)
    whole, drawn = np.ones((1, len(clusters))), times[:, clusters].astype(float)
    weights = arms[0].weights
    scores = [np.stack([metric.aggregate(a.new, w * weights) for a in arms], axis=-1) for w in (whole, drawn)]
    return np.abs(best - scores[0]), np.abs(best - scores[1])


def _gain(metric: Metric, fit: stats.PowerLaw, n: int, times: int) -> Array:
    """Return how much each curve's error (d,) falls from n rows to `times` n."""
    widest = abs(metric.bounds[1] - metric.bounds[0])
    now, then = (np.clip(fit.at(at), 0, widest) for at in (n, times * n))
    return now - then
