"""Metrics over a closed set of labels: averages over labels, distances of ratings, labels named in answers.

Invariant: only labels that occur among the references count, so candidates are averaged over the same ones.
Ratings have the numbers in the labels as values if all have different ones (`4 stars`), otherwise the labels'
positions from 1; an answer that is not a label counts as the farthest.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from harness.errors import UserError
from harness.metrics import Array, Metric, Parts, mean_metric, normalize, ratio
from harness.records import Example, Output, fold_text
from harness.spec import Task

_ROUNDING = 1e-9
_NUMBER = re.compile(r"[-−]?\d+(?:\.\d+)?")


def _refuse_no_labels(name: str, task: Task) -> None:
    if not task.labels:
        found = f"metric {name} on a task without labels"
        step = "add `labels: [...]` to the task, or use exact_match"
        raise UserError(f"task {task.name}", found, "a closed label set", step)


def _average(name: str, of_label: Callable[[Array, Array, Array], Array]) -> Callable[[Task], Metric]:
    """Return a builder of the mean over labels of `of_label` (true and false positives, false negatives)."""

    def metric(task: Task) -> Metric:
        _refuse_no_labels(name, task)
        index = {normalize(label): i for i, label in enumerate(task.labels)}

        def counts(text: str, gold: int) -> Parts:
            parts, predicted = [0.0] * (3 * len(index)), index.get(normalize(text))
            parts[3 * gold + (0 if predicted == gold else 2)] = 1.0
            if predicted is not None and predicted != gold:
                parts[3 * predicted + 1] = 1.0
            return tuple(parts)

        def score(output: Output, example: Example) -> Parts | None:
            gold = index.get(normalize(example.references[0]))
            return None if gold is None else counts(output.text, gold)

        def aggregate(parts: Array, weights: Array) -> Array:
            sums = weights @ parts  # (…, 3·labels)
            tp, fp, fn = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]  # (…, labels)
            occurs = tp + fn > 0
            return ratio(np.where(occurs, of_label(tp, fp, fn), 0.0).sum(axis=-1), occurs.sum(axis=-1))

        worst = lambda example: counts("", index[normalize(example.references[0])])  # noqa: E731
        names = tuple(f"{count}:{label}" for label in index for count in ("tp", "fp", "fn"))
        return Metric(name, True, (0.0, 1.0), names, score, aggregate, worst)

    return metric


class Precision:
    """Mean over labels of the share of each label's answers that were right.

    One that was never answered has precision 0, as in scikit-learn with `zero_division=0`.
    Source: Grandini et al. 2020, arXiv:2008.05756, formulas 4 and 7.
    """

    READS_WHOLE = True  # an answer that is a label and nothing else
    metric = _average("precision", lambda tp, fp, fn: np.where(tp > 0, ratio(tp, tp + fp), 0.0))


class Recall:
    """Mean over labels of the share of each label's items that were given it.

    Where every answer is one of the labels this is the balanced accuracy.
    Source: Grandini et al. 2020, arXiv:2008.05756, formulas 5 and 8.
    """

    READS_WHOLE = True
    metric = _average("recall", lambda tp, fp, fn: ratio(tp, tp + fn))


class MacroF1:
    """Mean over labels of each label's F1.

    Source: Opitz & Burst 2019, arXiv:1911.03347, the "averaged F1" (formula 2).
    """

    SHORT = "macro F1"
    READS_WHOLE = True
    metric = _average("macro_f1", lambda tp, fp, fn: ratio(2 * tp, 2 * tp + fp + fn))


class _Scale(NamedTuple):
    """Values of the labels of a task, as metrics compare labels."""

    values: dict[str, float]

    def pair(self, output: Output, example: Example) -> Parts | None:
        """Return the values of an answer and of the reference."""
        gold = self.values.get(normalize(example.references[0]))
        if gold is None:
            return None
        value = self.values.get(normalize(output.text))
        return max(self.values.values(), key=lambda v: abs(v - gold)) if value is None else value, gold

    def worst(self, example: Example) -> Parts:
        """Return the pair of an answer that is not a label."""
        return self.pair(Output(""), example) or (max(self.values.values()), min(self.values.values()))


def _read_scale(name: str, task: Task) -> _Scale:
    _refuse_no_labels(name, task)
    numbers_by_label = [_NUMBER.findall(label) for label in task.labels]
    values = [float(numbers[0].replace("−", "-")) for numbers in numbers_by_label if len(numbers) == 1]
    if len(set(values)) < len(task.labels):
        values = [float(position) for position in range(1, len(task.labels) + 1)]
    return _Scale(dict(zip(map(normalize, task.labels), values, strict=True)))


class MeanAbsoluteError:
    """Mean distance of a rating from the reference's, in steps of the scale; lower is better."""

    @staticmethod
    def metric(task: Task) -> Metric:
        """Build the mean absolute error over the ordered labels of the task."""
        scale = _read_scale("mean_absolute_error", task)

        def score(output: Output, example: Example) -> float | None:
            pair = scale.pair(output, example)
            return None if pair is None else abs(pair[0] - pair[1])

        def worst(example: Example) -> Parts:
            value, gold = scale.worst(example)
            return (abs(value - gold),)

        span = max(scale.values.values()) - min(scale.values.values())
        return replace(mean_metric("mean_absolute_error", score, False, (0.0, span)), worst=worst)


class WithinOne:
    """Share of ratings that are at most one step of the scale from the reference's."""

    @staticmethod
    def metric(task: Task) -> Metric:
        """Build the share in [0, 1] over the task's ordered labels; an answer that is not one is wrong."""
        scale = _read_scale("within_one", task)

        def score(output: Output, example: Example) -> float | None:
            pair = scale.pair(output, example)
            if pair is None or normalize(output.text) not in scale.values:
                return None if pair is None else 0.0
            return float(abs(pair[0] - pair[1]) <= 1 + _ROUNDING)

        return mean_metric("within_one", score)


class WeightedKappa:
    """Quadratic weighted kappa of ratings: agreement with the references beyond that of chance.

    If all ratings are equal, they agree.
    Source: Cohen 1968, with squared distances: 1 − E(a − r)² / (Var a + Var r + (mean a − mean r)²).
    """

    @staticmethod
    def metric(task: Task) -> Metric:
        """Build the kappa in [−1, 1] over the ordered labels of the task."""
        scale, parts = _read_scale("weighted_kappa", task), ("answer", "reference")
        return Metric("weighted_kappa", True, (-1.0, 1.0), parts, scale.pair, _kappa, scale.worst)


def _kappa(parts: Array, weights: Array) -> Array:
    shares = weights / weights.sum(axis=-1, keepdims=True)
    answers, references = parts[:, 0], parts[:, 1]
    observed = shares @ (answers - references) ** 2
    # The mean squared distance of an answer from the reference of any item.
    by_chance = shares @ answers**2 + shares @ references**2 - 2 * (shares @ answers) * (shares @ references)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(by_chance > 1e-12, 1 - observed / by_chance, 1.0)


class LabelInAnswer:
    """Share of answers that name the right label and no other one, whatever else they say.

    Labels are found as whole words, the longer first: "not urgent" does not name "urgent". Answers that are
    none of the labels as a whole are read too.
    """

    IS_SHARE_OF_RIGHT_LABELS = True

    @staticmethod
    def metric(task: Task) -> Metric:
        """Build the share in [0, 1]; without labels, of answers that have a reference as whole words."""
        labels = frozenset(map(normalize, task.labels))

        def names_the_right_one(output: Output, example: Example) -> float:
            right = frozenset(map(normalize, example.references))
            named_labels = _find_labels(output.text, right | set(map(normalize, example.choices)))
            return float(bool(named_labels) and named_labels <= right)

        built = mean_metric("label_in_answer", names_the_right_one)
        return replace(built, same=lambda text: _find_labels(text, labels) or normalize(text), reads_any=True)


def _find_labels(text: str, labels: Iterable[str]) -> frozenset[str]:
    return frozenset(_pattern(frozenset(labels)).findall(fold_text(text)))


@lru_cache(maxsize=64)
def _pattern(labels: frozenset[str]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, labels), key=lambda label: (-len(label), label))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!\w)")


PLUGINS = {
    "precision": Precision,
    "recall": Recall,
    "macro_f1": MacroF1,
    "mean_absolute_error": MeanAbsoluteError,
    "within_one": WithinOne,
    "weighted_kappa": WeightedKappa,
    "label_in_answer": LabelInAnswer,
}
