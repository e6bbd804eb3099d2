"""Rows as evaluate.py would write them, made from scores alone."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from harness.analysis.comparison import compare_rows
from harness.analysis.estimators import Comparison
from harness.metrics import Metric, mean_metric
from harness.models.candidate import TextCandidate, TextTable
from harness.records import SampleResult, Status

EXACT = mean_metric("exact_match", lambda output, example: None)
LOWER = mean_metric("loss", lambda output, example: None, higher_is_better=False)


def script_candidate(answer: Callable[[str], str], weights_digest: str = "scripted") -> TextCandidate:
    """Make a candidate that answers by a function of the prompt."""
    return TextCandidate(lambda texts: [TextTable((answer(t),), (0.0,)) for t in texts], weights_digest)


def ratio_metric() -> Metric:
    """Make a ratio of sums without an upper bound, like bits per byte."""
    return Metric(
        "bits", False, (0.0, float("inf")), ("bits", "bytes"), lambda output, example: None,
        lambda parts, weights: (weights @ parts)[..., 0] / (weights @ parts)[..., 1],
        lambda example: (8.0, 1.0),
    )  # fmt: skip


def rows(
    parts: Sequence[float | None] | np.ndarray,
    metric: Metric = EXACT,
    *,
    task: str = "task",
    cluster_size: int = 1,
    status: Sequence[Status] | None = None,
) -> list[SampleResult]:
    """Make one row per item; `parts` holds a number (or a row of numbers, or None for an error) per item."""
    return [
        SampleResult(
            task=task, split="test", example_id=f"item-{i:04d}", position=i,
            status=status[i] if status else "error" if part is None else "ok", text="", prompt="",
            references=(),
            parts={metric.name: None if part is None else tuple(np.atleast_1d(part).astype(float).tolist())},
            cluster="" if cluster_size == 1 else f"family-{i // cluster_size}",
            error="no answer" if part is None else "",
        )
        for i, part in enumerate(parts)
    ]  # fmt: skip


def flips(n: int, gains: int, losses: int) -> tuple[np.ndarray, np.ndarray]:
    """Return both arms' 0/1 scores: ones, except the base's last `gains` and the new arm's first `losses`."""
    base, new = np.ones(n), np.ones(n)
    new[:losses] = 0
    base[n - gains :] = 0
    return base, new


@cache
def compare_flips(n: int, gains: int, losses: int) -> Comparison:
    """Compare the arms of `flips`."""
    return compare_rows(EXACT, *(rows(arm) for arm in flips(n, gains, losses)))
