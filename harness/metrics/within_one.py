"""Share of ratings that are at most one step of the scale from the reference's."""

from harness.metrics import Metric, mean_metric, normalize
from harness.metrics._labels import pair_with_reference, read_scale
from harness.records import Example, Output
from harness.spec import Task

_ROUNDING = 1e-9


def metric(task: Task) -> Metric:
    """Build the share in [0, 1] over the task's ordered labels; an answer that is not a label is wrong."""
    scale = read_scale("within_one", task)
    pair = pair_with_reference(scale)

    def score(output: Output, example: Example) -> float | None:
        found = pair(output, example)
        if found is None or normalize(output.text) not in scale:
            return None if found is None else 0.0
        return float(abs(found[0] - found[1]) <= 1 + _ROUNDING)

    return mean_metric("within_one", score)
