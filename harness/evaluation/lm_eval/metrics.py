"""lm-eval's metrics as ours: the stored parts of an answer, and how they add up to its score.

Invariant: with equal weights an aggregate equals lm-eval's own; a metric whose aggregation has no such form
is left out, and reported.
Source: lm_eval/api/metrics.py, version 0.4.13 (aggregations by their registered names).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np

from harness.errors import HarnessError, Problem, UserError, did_you_mean
from harness.metrics import Array, Metric, Parts, ratio, weighted_mean

# A mean is a share in [0, 1] if the metric's name in lm-eval says so.
_SHARE = re.compile(r"^(acc|exact_match|em$|f1$|mc[12]$)|(_acc|_accuracy|_em|exact_match)(_|$)|^accuracy")


class Score(NamedTuple):
    """One number that lm-eval computes for a task: metric and filter, aggregation, and direction.

    `name` is lm-eval's metric, followed by `,filter` if a task has several filters.
    """

    name: str
    metric: str
    filter: str
    aggregation: str
    higher_is_better: bool

    @property
    def is_share(self) -> bool:
        """Tell whether its values are rates in [0, 1]."""
        return self.aggregation in ("f1", "agg_inst_level_acc") or (
            self.aggregation in ("mean", "nanmean") and _SHARE.search(self.metric) is not None
        )


class _Form(NamedTuple):
    """Formula of one aggregation: names of the parts, conversion of a value to parts, aggregate, bounds."""

    parts: tuple[str, ...]
    of: Callable[[Any], Sequence[Any]]
    aggregate: Callable[[Array, Array], Array]
    bounds: tuple[float, float]


def scores_of(task: Any) -> tuple[list[Score], list[str]]:
    """List the scores of a loaded task, and the metrics that are left out with the reason."""
    filters = [f["name"] for f in task.get_config("filter_list") or ()] or ["none"]
    directions, kept, left_out = task.higher_is_better(), [], []
    for metric, function in task.aggregation().items():
        aggregation = getattr(function, "__name__", type(function).__name__)
        aggregation = {"f1_score": "f1"}.get(aggregation, aggregation)
        if aggregation not in _FORMS:
            left_out.append(
                f"{metric} is left out: lm-eval aggregates it by {aggregation}, which has no sum over items, "
                "and so no interval and no paired difference here"
            )
            continue
        for name in filters:
            shown = metric if len(filters) == 1 else f"{metric},{name}"
            kept.append(Score(shown, metric, name, aggregation, bool(directions.get(metric, True))))
    return kept, left_out


def metric_of(score: Score) -> Metric:
    """Return the metric that aggregates a score's stored parts."""
    form = _FORMS[score.aggregation]
    low, high = form.bounds
    if score.aggregation in ("mean", "nanmean") and score.is_share:
        low, high = 0.0, 1.0
    return Metric(
        name=score.name,
        higher_is_better=score.higher_is_better,
        bounds=(low, high),
        parts=form.parts,
        score=lambda output, example: None,  # the parts come from lm-eval's process_results
        aggregate=form.aggregate,
        worst=lambda example: tuple(0.0 for _ in form.parts),
    )


def parts_of(score: Score, value: Any) -> Parts | None:
    """Convert the result of lm-eval's process_results for one document to parts; None without a result.

    Raises:
        HarnessError: a share is outside [0, 1].
    """
    form = _FORMS[score.aggregation]
    try:
        parts = tuple(map(float, form.of(value)))
    except (TypeError, ValueError):
        return None
    if len(parts) != len(form.parts) or not all(map(isfinite, parts)):
        return None
    if score.is_share and len(parts) == 1 and not 0 <= parts[0] <= 1:
        raise HarnessError(
            f"metric {score.name}: found {parts[0]:g} for one item; expected a share in [0, 1], as its "
            "name says; next: report the task, and leave it out meanwhile"
        )
    return parts


def primary(scores: Sequence[Score], requested: str, where: str) -> str:
    """Choose the deciding score: the requested one, else `acc`, else the only share of right answers.

    Without a share, the only score or bits per byte is primary: reported, never judged.

    Raises:
        UserError: there is no such score, or several match.
    """
    names = [s.name for s in scores]
    if requested:
        matching = [s.name for s in scores if requested in (s.name, s.metric)]
        if len(matching) == 1:
            return matching[0]
        found = f"primary: {requested}, " + (
            "which is not among its scores" if not matching else "which stands for several"
        )
        choices = matching or names
        step = did_you_mean(requested, choices) if not matching else f"primary: {matching[0]}"
        raise UserError(Problem(where, found, f"one of {_join_names(choices)}", step))
    shares = [s.name for s in scores if s.is_share and s.higher_is_better]
    others = [n for n in names if n == "bits_per_byte"] or names
    candidates = [n for n in shares if n == "acc"] or shares or others
    if len(candidates) == 1:
        return candidates[0]
    found = f"several scores that could decide: {_join_names(candidates)}"
    raise UserError(Problem(where, found, "one primary score", f'add primary: "{candidates[0]}" to the task'))


def _join_names(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _one(value: Any) -> Sequence[Any]:
    return (value,)


def _two(value: Any) -> Sequence[Any]:
    first, second = value
    return first, second


def _counts(value: Any) -> Sequence[Any]:
    """Count one (gold, predicted) pair of binary labels: true and false positives and negatives."""
    gold, predicted = (int(v) for v in value)
    if {gold, predicted} - {0, 1}:
        raise ValueError("labels other than 0 and 1")
    return gold & predicted, (1 - gold) & predicted, gold & (1 - predicted), (1 - gold) & (1 - predicted)


def _verdicts(value: Any) -> Sequence[Any]:
    return sum(map(bool, value)), len(value)


def _brier(value: Any) -> Sequence[Any]:
    gold, probabilities = value
    hit = np.eye(len(probabilities))[int(gold)]
    return (float(np.sum((np.asarray(probabilities) - hit) ** 2)),)


def _sum(parts: Array, weights: Array, column: int) -> Array:
    return np.asarray(weights @ parts[:, column])


def _f1(parts: Array, weights: Array) -> Array:
    true, false, missed = (_sum(parts, weights, i) for i in range(3))
    return np.nan_to_num(ratio(2 * true, 2 * true + false + missed))


def _correlation(parts: Array, weights: Array) -> Array:
    tp, fp, fn, tn = (_sum(parts, weights, i) for i in range(4))
    return np.nan_to_num(ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))))


def _rate(parts: Array, weights: Array) -> Array:
    return ratio(_sum(parts, weights, 0), _sum(parts, weights, 1))


_LABELS = ("true_positive", "false_positive", "false_negative", "true_negative")
_FORMS: Mapping[str, _Form] = {
    "mean": _Form(("value",), _one, weighted_mean, (-inf, inf)),
    "nanmean": _Form(("value",), _one, weighted_mean, (-inf, inf)),
    "perplexity": _Form(("logprob",), _one, lambda p, w: np.exp(-weighted_mean(p, w)), (0.0, inf)),
    "weighted_perplexity": _Form(("logprob", "size"), _two, lambda p, w: np.exp(-_rate(p, w)), (0.0, inf)),
    "bits_per_byte": _Form(("logprob", "bytes"), _two, lambda p, w: -_rate(p, w) / np.log(2), (0.0, inf)),
    "f1": _Form(_LABELS, _counts, _f1, (0.0, 1.0)),
    "matthews_corrcoef": _Form(_LABELS, _counts, _correlation, (-1.0, 1.0)),
    "brier_score": _Form(("value",), _brier, weighted_mean, (0.0, 2.0)),
    "agg_inst_level_acc": _Form(("followed", "asked"), _verdicts, _rate, (0.0, 1.0)),
}
