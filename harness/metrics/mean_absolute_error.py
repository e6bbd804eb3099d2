"""Mean distance of a rating from the reference's, in steps of the scale; lower is better.

Invariant: an answer that is not a label counts as the farthest one.
"""

from dataclasses import replace

from harness.metrics import Metric, mean_metric
from harness.metrics._labels import farthest, pair_with_reference, read_scale
from harness.records import Example, Output
from harness.spec import Task


def metric(task: Task) -> Metric:
    """Build the mean absolute error over the ordered labels of the task."""
    scale = read_scale("mean_absolute_error", task)
    pair = pair_with_reference(scale)

    def score(output: Output, example: Example) -> float | None:
        found = pair(output, example)
        return None if found is None else abs(found[0] - found[1])

    built = mean_metric("mean_absolute_error", score, False, (0.0, max(scale.values()) - min(scale.values())))

    def worst(example: Example) -> tuple[float]:
        gold = pair(Output(example.references[0]), example)
        return built.bounds[1:] if gold is None else (abs(farthest(scale, gold[1]) - gold[1]),)

    return replace(built, worst=worst)
