"""Several answers drawn to each item: how varied they are, and the chance that one of k is right.

Invariant: an item counts once, whatever is drawn to it, so intervals are those of the items and their
clusters; an answer that failed is not right.
Source: Chen et al. 2021, arXiv:2107.03374, for pass@k.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from harness import stats
from harness.comparison.alignment import align
from harness.comparison.estimators import Estimate, identical_difference
from harness.metrics import Metric, mean_metric
from harness.records import Sample, SampleResult

_VALUE = mean_metric("value", lambda output, example: None)


class PassAtK(NamedTuple):
    """Chance that at least one of k answers to an item is right, with its 95 % interval over items."""

    k: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class SeveralAnswers:
    """The `n_samples` answers that were drawn to each of the items.

    `distinct` is the share of an item's answers that are distinct, `commonest` that of the one given most
    often, each the mean over items. `passes` holds pass@k where the metric is 0 or 1 of every answer.
    """

    n_samples: int
    distinct: Estimate
    commonest: Estimate
    passes: tuple[PassAtK, ...] = ()


def several_answers(
    metric: Metric, rows: Sequence[SampleResult], drawn: Mapping[str, Sequence[Sample]]
) -> SeveralAnswers | None:
    """Describe the answers that were drawn to the items of rows; None where none has several."""
    sampled = [(row, drawn[row.example_id]) for row in rows if len(drawn.get(row.example_id, ())) > 1]
    if not sampled:
        return None
    kept, samples = [row for row, _ in sampled], [of for _, of in sampled]
    texts = [[one.text for one in of] for of in samples]
    found = [(stats.unique_share(of) or 0.0, (stats.commonest(of) or ("", 0.0))[1]) for of in texts]
    distinct, common = zip(*found, strict=True)
    n_samples = min(map(len, samples))
    return SeveralAnswers(
        n_samples, _mean(kept, distinct), _mean(kept, common), _passes(metric, kept, samples)
    )


def _passes(
    metric: Metric, rows: Sequence[SampleResult], samples: Sequence[Sequence[Sample]]
) -> tuple[PassAtK, ...]:
    """Estimate pass@k for each power of two up to the number of answers, and for that number."""
    scores = [[one.parts.get(metric.name) for one in of] for of in samples]
    known = [parts for of in scores for parts in of if parts is not None]
    if not _is_right_or_wrong(metric, known):
        return ()
    counts = [(len(of), of.count((1.0,))) for of in scores]
    most = min(n for n, _ in counts)
    ks = sorted({most, *(2**power for power in range(most.bit_length()))})
    return tuple(
        PassAtK(k, _mean(rows, [stats.pass_at_k(n, n_right, k) for n, n_right in counts])) for k in ks
    )


def _is_right_or_wrong(metric: Metric, known: Sequence[Sequence[float]]) -> bool:
    """Tell whether a metric is the mean of one score, which is 0 or 1 of every answer, and better at 1."""
    if metric.bounds != (0.0, 1.0) or len(metric.parts) != 1 or not metric.higher_is_better or not known:
        return False
    return bool(np.isin(np.array(known), (0.0, 1.0)).all())


def _mean(rows: Sequence[SampleResult], values: Sequence[float]) -> Estimate:
    """Average a value of each item, with the interval of its clusters."""
    scored = [
        replace(row, parts={_VALUE.name: (float(value),)}) for row, value in zip(rows, values, strict=True)
    ]
    return identical_difference(_VALUE, align(_VALUE, scored, scored, ""), 0).base


def add_samples(rows: list[SampleResult], drawn: Mapping[str, Sequence[Sample]]) -> list[SampleResult]:
    """Return rows with all answers that were drawn to each item; the rows as they are where none were."""
    return [replace(row, samples=tuple(drawn.get(row.example_id, ()))) for row in rows] if drawn else rows


def list_each_answer(
    rows: Sequence[SampleResult], drawn: Mapping[str, Sequence[Sample]]
) -> list[SampleResult]:
    """Return a row for every answer that was drawn, those to one item as one cluster."""
    return [
        replace(
            row,
            example_id=f"{row.example_id}#{one.index}",
            cluster=row.cluster or row.example_id,
            text=one.text,
            status=one.status,
            parts=one.parts,
            finish_reason=one.finish_reason,
        )
        for row in rows
        for one in drawn.get(row.example_id, ())
    ]
