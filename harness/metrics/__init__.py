"""Contract of a metric: parts per sample, and a vectorised weighted aggregate of them.

Invariant: a score depends only on parts and weights, so bootstraps, clusters and inclusion probabilities
change weights and never score an answer again.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from harness import plugins, spec
from harness.errors import Problem, UserError
from harness.formatting import Unit
from harness.provenance import source_digest, versions_of
from harness.records import Example, MetricRange, Output, SampleResult, checksum, digest, normalize

Array = NDArray[np.float64]
Parts = tuple[float, ...]

_BLOCK = 256  # items whose own scores are computed at once
_JSON_FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)
_FLIP, _ROUNDING = 0.01, 1e-9  # a hundredth of the range; without bounds of the larger score


@dataclass(frozen=True, slots=True)
class Metric:
    """A way to score answers; `bounds` within [0, 1] mark a rate.

    `score` returns an answer's parts, or None if it cannot be scored. `aggregate` maps parts (n, k) and
    weights (…, n) to scores (…). `worst` returns the parts of an answer that counts for nothing, such as a
    truncated one. `signature` names the settings behind the number. Answers with equal `same` are one answer
    in a majority. An item without `reads` has no score, whatever the answer. A metric that `reads_any` answer
    also scores answers that are not a label.
    """

    name: str
    higher_is_better: bool
    bounds: tuple[float, float]
    parts: tuple[str, ...]
    score: Callable[[Output, Example], Parts | None]
    aggregate: Callable[[Array, Array], Array]
    worst: Callable[[Example], Parts]
    signature: str = ""
    same: Callable[[str], object] = normalize
    reads: Callable[[Example], bool] = lambda _: True
    reads_any: bool = False

    @property
    def range(self) -> MetricRange:
        """Direction and bounds, as stored in a run."""
        low, high = (bound if isfinite(bound) else None for bound in self.bounds)
        return MetricRange(self.higher_is_better, low, high)

    @property
    def unit(self) -> Unit:
        """Unit of printed values, and the direction in which they are better."""
        if self.range.is_rate:
            return Unit(higher_is_better=self.higher_is_better)
        low, high = self.range.low, self.range.high
        return Unit(1.0, self.name.replace("_", " "), self.higher_is_better, low, high)


def ratio(numerator: Array, denominator: Array) -> Array:
    """Divide elementwise; NaN, without a warning, where the denominator is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.true_divide(numerator, denominator))


def weighted_mean(parts: Array, weights: Array) -> Array:
    """Return the weighted mean of the first part: (n, k), (…, n) → (…)."""
    return ratio(weights @ parts[:, 0], weights.sum(axis=-1))


def mean_metric(
    name: str,
    score: Callable[[Output, Example], float | None],
    higher_is_better: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Metric:
    """Build a metric whose aggregate is the weighted mean of one number per sample."""

    def one_part(output: Output, example: Example) -> Parts | None:
        value = score(output, example)
        return None if value is None else (float(value),)

    worst = (float(bounds[0] if higher_is_better else bounds[1]),)
    return Metric(name, higher_is_better, bounds, (name,), one_part, weighted_mean, lambda _: worst)


def unfence_json(text: str) -> str:
    """Return the content of a code fence around a whole text, or the text if there is none."""
    return fenced[1] if (fenced := _JSON_FENCE.match(text.strip())) else text


def refuse_constant(constant: str) -> None:
    """Raise ValueError for a constant that is not JSON, such as NaN."""
    raise ValueError(f"{constant} is not JSON")


def item_scores(metric: Metric, parts: Array) -> Array:
    """Score every item alone: parts (n, k) → (n,)."""
    blocks = [parts[at : at + _BLOCK] for at in range(0, len(parts), _BLOCK)]
    return np.concatenate([metric.aggregate(block, np.eye(len(block))) for block in blocks])


def flips(metric: Metric, base: Array, new: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return each item's improvement, and whether it is over a hundredth of the range, from parts (n, k)."""
    return flips_of_scores(metric, item_scores(metric, base), item_scores(metric, new))


def flips_of_scores(metric: Metric, old: Array, now: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return what `flips` does, from the items' own scores (n,)."""
    has_bounds = isfinite(metric.range.span)
    threshold = _FLIP * (metric.range.span if has_bounds else np.maximum(np.abs(old), np.abs(now)))
    return metric.unit.sign * (now - old), np.abs(now - old) > threshold + _ROUNDING


def is_flipped(old: SampleResult, new: SampleResult, metric: Metric) -> bool:
    """Tell whether an item flipped: by over a hundredth of the range, or because only one arm has a score."""
    before, now = old.parts.get(metric.name), new.parts.get(metric.name)
    if before is None or now is None:
        return before is not now
    return bool(flips(metric, np.array([before]), np.array([now]))[1][0])


class Extremes(NamedTuple):
    """Parts of the worst and of the best answer to an item."""

    worst: Parts
    best: Parts


def extremes(metric: Metric, references: Sequence[str]) -> Extremes | None:
    """Return the parts of the worst and the best answer; None if they are not known."""
    low, high = metric.bounds
    if not isfinite(high - low):
        return None
    ends = np.array([[low], [high]])
    if len(metric.parts) == 1 and np.allclose(metric.aggregate(ends, np.eye(2)), (low, high)):
        worst, best = (low, high) if metric.higher_is_better else (high, low)
        return Extremes((float(worst),), (float(best),))
    if not references:
        return None
    example = Example("", (), tuple(references))
    best_parts = metric.score(Output(references[0]), example)  # the reference itself scores best
    return None if best_parts is None else Extremes(metric.worst(example), best_parts)


def load_metrics(task: spec.Task) -> dict[str, Metric]:
    """Build the metrics a task names, in its order, by their short names."""
    declared_bounds = {spec.metric_name(name): bounds for name, bounds in task.bounds.items()}
    metrics = {spec.metric_name(written): _build(written, task) for written in task.metrics}
    for name, bounds in declared_bounds.items():
        metrics[name] = _set_bounds(metrics[name], bounds, f"task {task.name}: bounds: {name}")
    refuse_chance(task, metrics[task.primary_metric])
    return metrics


def refuse_chance(task: spec.Task, primary: Metric) -> None:
    """Refuse a guesser's score that the primary metric cannot have, or that is its best value."""
    low, high = sorted(primary.unit.bounds)
    if task.chance and not low <= task.chance < high:
        where, expected = f"task {task.name}: chance", f"{low:g} or more, less than {high:g}"
        raise UserError(where, f"{task.chance:g}", expected, f"write what a guess scores in {primary.name}")


def refuse_goals(policy: spec.TargetPolicy, primary: Metric) -> None:
    """Refuse a level or a gain that no score can reach."""
    for name, share in policy:
        is_share = name in ("min", "gain") and isfinite(primary.unit.span)
        if is_share and share is not None and not 0 <= share <= 1:
            expected = f"0 to 1, a share of the range of {primary.name}"
            raise UserError(f"gate.target.{name}", f"{share:g}", expected, "write it as such a share")


def problems(task: spec.Task) -> Iterator[Problem]:
    """Yield the problems of scoring a task's answers here, from the `problems(where)` of its metrics."""
    for written in task.metrics:
        if not written.startswith((spec.EVALUATE, spec.JUDGE, spec.ENTAILMENT)) and not task.lm_eval:
            module = plugins.load("metrics", spec.metric_plugin(written))
            forbids = getattr(module, "problems", lambda where: ())
            yield from forbids(f"task {task.name}: metric {spec.metric_name(written)}")


def trait(written: str, name: str, default: Any) -> Any:
    """Return a value that the file of one of our metrics declares; the default for any other metric."""
    plugin_name = spec.metric_plugin(written)
    is_ours = plugin_name in plugins.names("metrics")
    return getattr(plugins.load("metrics", plugin_name), name, default) if is_ours else default


def short_name(written: str) -> str:
    """Return the name of a metric in headings, with its parameters."""
    short, params = trait(written, "SHORT", ""), spec.metric_parts(written)[2]
    return f"{short}{params}" if short else written


def version(written: str, unspaced: bool = False) -> int | str:
    """Return the part of an identity that covers a metric's code, and how words are split if `unspaced`."""
    if written.startswith(spec.JUDGE):
        return ""  # rows identify rubric, judges and our prompt's version themselves (`judges.JudgedMetric`)
    if written.startswith(spec.ENTAILMENT):
        model = spec.metric_parts(written)[1]
        return digest([source_digest(model) or model, versions_of("entailment")])
    if not written.startswith(spec.EVALUATE):
        code_version = plugins.version("metrics", spec.metric_plugin(written))
        by_letters = unspaced and trait(written, "WORDS_ARE_LETTERS", False)
        return digest([code_version, versions_of("words")]) if by_letters else code_version
    script = Path(written.removeprefix(spec.EVALUATE).partition(":")[0])
    script = script / f"{script.name}.py" if script.is_dir() else script
    if not script.is_file():
        return ""
    # The library loads a script together with the modules in its folder.
    return digest([[file.name, checksum(file)] for file in sorted(script.parent.glob("*.py"))])


def metric_of_rows(name: str, stored: MetricRange | None = None) -> Metric | None:
    """Build the mean metric of stored rows; None if neither record nor name gives its direction."""
    if stored is not None:
        bounds = (-inf if stored.low is None else stored.low, inf if stored.high is None else stored.high)
        return mean_metric(name, lambda output, example: None, stored.higher_is_better, bounds)
    if spec.metric_plugin(name) not in plugins.names("metrics"):
        return None
    return load_metrics(spec.Task(name="unknown", data=spec.TaskData(), metrics=(name,)))[name]


def _build(written: str, task: spec.Task) -> Metric:
    if written.startswith(spec.JUDGE):  # rows are scored with stored grades
        return mean_metric(spec.metric_name(written), lambda output, example: None)
    if written.startswith(spec.EVALUATE):
        from harness.metrics import _hf_evaluate

        return _hf_evaluate.metric(task, written)
    if written.startswith(spec.ENTAILMENT):
        from harness.metrics.citations import build_entailment

        return build_entailment(task, written)
    module = plugins.load("metrics", spec.metric_plugin(written), f"task {task.name}")
    given_params, params_model = spec.metric_params(written), getattr(module, "Params", None)
    where = f"task {task.name}: metric {written}"
    if params_model is None and given_params:
        raise UserError(where, "parameters", "none, as this metric has no Params", "leave them out")
    try:
        params = (params_model(**given_params),) if params_model else ()
    except ValidationError as error:
        first = error.errors()[0]
        found, expected = f"{first['loc'][0]}={first['input']}", first["msg"].removeprefix("Input should be ")
        step = f"the parameters are {', '.join(params_model.model_fields if params_model else ())}"
        raise UserError(where, found, expected, step) from None
    declared = module.metric  # a metric that does not depend on the task needs no function
    built: Metric = declared if isinstance(declared, Metric) else declared(task, *params)
    return replace(built, name=spec.metric_name(written))


def _set_bounds(metric: Metric, bounds: tuple[float, float], where: str) -> Metric:
    """Set the bounds that a task declares on a metric without bounds; the worse one is its worst part."""
    low, high = bounds
    if len(metric.parts) != 1 or isfinite(metric.bounds[1] - metric.bounds[0]):
        found = f"declared for a metric of its own bounds, {metric.bounds[0]:g} to {metric.bounds[1]:g}"
        raise UserError(where, found, "a mean without known bounds", "leave it out")

    def score(output: Output, example: Example) -> Parts | None:
        parts = metric.score(output, example)
        if parts is not None and not low <= parts[0] <= high:
            found, step = f"a score of {parts[0]:g} (item {example.id})", "declare bounds that hold, or none"
            raise UserError(where, found, f"{low:g} to {high:g}", step)
        return parts

    worst = (float(low if metric.higher_is_better else high),)
    signature = f"{metric.signature}|bounds:{low:g},{high:g}"
    ends = (float(low), float(high))
    return replace(metric, bounds=ends, score=score, worst=lambda _: worst, signature=signature)
