"""What a metric is: per-sample parts and one vectorised, weighted aggregate of them.

Invariant: a score depends only on the parts and the weights, so bootstraps, clusters and
inclusion probabilities change weights and never score an answer again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness import plugins
from harness.records import Example, Output, checksum
from harness.spec import EVALUATE, Task, metric_name

Array = NDArray[np.float64]
Parts = tuple[float, ...]

_QUOTES = {'"': '"', "'": "'", "`": "`", "“": "”", "‘": "’", "«": "»", "„": "“"}


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to score answers, in the unit of `bounds`.

    `score` gives an answer's parts, or None when it could not be scored at all (an error,
    which is not 0). `aggregate` takes parts (n, k) and weights (…, n) to scores (…).
    `worst` gives the parts of an answer to this example that counts for nothing: one that
    is unparsable or truncated. `signature` says which settings made the number.
    """

    name: str
    higher_is_better: bool
    bounds: tuple[float, float]
    parts: tuple[str, ...]
    score: Callable[[Output, Example], Parts | None]
    aggregate: Callable[[Array, Array], Array]
    worst: Callable[[Example], Parts]
    signature: str = ""


def ratio(numerator: Array, denominator: Array) -> Array:
    """Divide elementwise; NaN where the denominator is 0, without a warning."""
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
    """Make a metric whose aggregate is the weighted mean of one number per sample."""

    def one_part(output: Output, example: Example) -> Parts | None:
        value = score(output, example)
        return None if value is None else (float(value),)

    worst = (float(bounds[0] if higher_is_better else bounds[1]),)
    return Metric(name, higher_is_better, bounds, (name,), one_part, weighted_mean, lambda _: worst)


def load_metrics(task: Task) -> dict[str, Metric]:
    """Build the metrics a task names, in its order, by their short names.

    Raises:
        UserError: a name is unknown, or a metric cannot be computed on this task.
    """
    return {metric_name(written): _built(written, task) for written in task.metrics}


def version(written: str) -> int | str:
    """Return what an identity holds of a metric's code: of an `evaluate:` script on disk its checksum."""
    if not written.startswith(EVALUATE):
        return plugins.version("metrics", written)
    script = Path(written.removeprefix(EVALUATE).partition(":")[0])
    script = script / f"{script.name}.py" if script.is_dir() else script
    return checksum(script) if script.is_file() else ""


def _built(written: str, task: Task) -> Metric:
    if written.startswith(EVALUATE):
        from harness.metrics import _evaluate

        return _evaluate.metric(task, written)
    built: Metric = plugins.load("metrics", written, f"task {task.name}").metric(task)
    return built


def normalize(text: str) -> str:
    """Fold case, collapse whitespace, and drop surrounding quotes and one trailing period."""
    folded = " ".join(text.casefold().split())
    inner = folded.removesuffix(".")
    if len(inner) > 1 and _QUOTES.get(inner[0]) == inner[-1]:
        inner = inner[1:-1].strip().removesuffix(".")
    return inner or folded
