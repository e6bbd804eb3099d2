"""Several answers to an item, and equal answers to many: pass@k, diversity, the commonest answer's share.

Invariant: an item counts once, whatever is drawn to it, so intervals are those of the items and their
clusters; an answer that failed is not right. Only generated answers count, and of two arms only items that
both answered; a share is judged against the base's and against that of the commonest reference, so that a
task with few right answers is none.
Source: Chen et al. 2021, arXiv:2107.03374, for pass@k; Berger & Parker 1970 for the share, Tango 1998 for
the paired interval; that "far above" asks for twice the share, or for half of what it leaves, is ours
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
from harness.stats import Interval

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
    is_rate = metric.bounds == (0.0, 1.0) and len(metric.parts) == 1 and metric.higher_is_better
    if not known or not is_rate or not np.isin(np.array(known), (0.0, 1.0)).all():
        return ()
    counts = [(len(of), of.count((1.0,))) for of in scores]
    most = min(n for n, _ in counts)
    ks = sorted({most, *(2**power for power in range(most.bit_length()))})
    return tuple(
        PassAtK(k, _mean(rows, [stats.pass_at_k(n, n_right, k) for n, n_right in counts])) for k in ks
    )


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


ALPHA = 0.05
COMMONEST = mean_metric("commonest answer", lambda output, example: None, higher_is_better=False)
_GENERATED = ("stop", "length")
_LONGEST = 200  # characters of a text that is kept


class AnswerCounts(NamedTuple):
    """The answers of one arm: the text given most often (cut) and its share, the distinct ones and theirs."""

    commonest: str
    share: float
    n_distinct: int
    distinct_share: float


@dataclass(frozen=True, slots=True)
class AnswerDiversity:
    """Diversity of the generated answers to n items of a task; shares are of these items.

    `base` is None where the base did not answer, `reference_share` (of the commonest reference) where an
    item has none. `low` and `high` are the ends of the 95 % interval of the new share less the base's.
    `collapsed` says that the new share is far above the base's and the references'.
    """

    task: str
    n: int
    new: AnswerCounts
    base: AnswerCounts | None = None
    low: float | None = None
    high: float | None = None
    reference_share: float | None = None
    collapsed: bool = False


def answer_diversity(
    new: Sequence[SampleResult], base: Sequence[SampleResult] | None = None
) -> AnswerDiversity | None:
    """Describe the generated answers of a task, beside the base's to the same items; None without any."""
    after, before = _select_generated_rows(new), None if base is None else _select_generated_rows(base)
    ids = [i for i in after if before is None or i in before]
    if not ids:
        return None
    rows = [after[i] for i in ids]
    task, n, texts = rows[0].task, len(ids), [row.text.strip() for row in rows]
    found, right = _answers(texts), _references(rows)
    reference_share = _answers(right).share if right else None
    if before is None:
        return AnswerDiversity(task, n, found, reference_share=reference_share)
    old = [before[i].text.strip() for i in ids]
    clusters = [row.cluster or row.example_id for row in rows]
    low, high = _change(old, texts, clusters)
    collapsed = True  # the commonest text has twice the share, or leaves half as much, and surely more
    for other in [old, right] if right else [old]:
        share = _answers(other).share
        is_far = found.share >= 2 * share or 1 - found.share <= (1 - share) / 2
        collapsed = collapsed and is_far and _change(other, texts, clusters).low > 0
    return AnswerDiversity(task, n, found, _answers(old), low, high, reference_share, collapsed)


def commonest_answer_arms(
    base: Sequence[SampleResult] | None, new: Sequence[SampleResult]
) -> list[tuple[list[SampleResult], list[SampleResult]]]:
    """Pair other arms' rows with the new ones, 1 as the part of `COMMONEST` where an arm's commonest text is.

    The other arms are the base, where it generated answers, and the references where every item has one. An
    answer that failed has no part. Empty where the new arm generated none.
    """
    before = {row.example_id: row for row in base or ()}
    after = [row for row in new if base is None or row.example_id in before]
    if not _select_generated_rows(after):
        return []
    old, right = [before[row.example_id] for row in after if before], _references(after)
    others = [_mark_commonest(old)] if _select_generated_rows(old) else []
    if right:
        answered = {"status": "ok", "finish_reason": _GENERATED[0]}
        with_references = [
            replace(row, text=text, **answered) for row, text in zip(after, right, strict=True)
        ]
        others.append(_mark_commonest(with_references))
    return [(other, _mark_commonest(after)) for other in others]


def _mark_commonest(rows: Sequence[SampleResult]) -> list[SampleResult]:
    """Give the rows whether each has the commonest text of those that were generated."""
    texts = {i: row.text.strip() for i, row in _select_generated_rows(rows).items()}
    marks = dict(zip(texts, _is_commonest([*texts.values()]).tolist(), strict=True))
    return [
        replace(row, parts={COMMONEST.name: (marks[row.example_id],) if row.example_id in marks else None})
        for row in rows
    ]


def _answers(texts: Sequence[str]) -> AnswerCounts:
    found, distinct_share = stats.commonest(texts), stats.unique_share(texts)
    assert found is not None
    assert distinct_share is not None
    legible = found[0][:_LONGEST].encode("utf-8", "replace").decode("utf-8")
    return AnswerCounts(legible, found[1], len(set(texts)), distinct_share)


def _references(rows: Sequence[SampleResult]) -> list[str]:
    """List each item's first reference; empty where an item has none."""
    return [row.references[0].strip() for row in rows] if all(row.references for row in rows) else []


def _change(old: Sequence[str], new: Sequence[str], clusters: Sequence[str]) -> Interval:
    """Return the paired interval of how much more often the commonest new text stands than the old one."""
    change = _is_commonest(new) - _is_commonest(old)
    effect = stats.design_effect(change, np.unique(clusters, return_inverse=True)[1])
    gains, losses = float((change > 0).sum()), float((change < 0).sum())
    return stats.tango_interval(gains / effect, losses / effect, len(change) / effect, ALPHA)


def _is_commonest(texts: Sequence[str]) -> stats.Array:
    """Mark the items (n,) that have the commonest text."""
    found = stats.commonest(texts)
    return np.array([found is not None and text == found[0] for text in texts], float)


def _select_generated_rows(rows: Sequence[SampleResult]) -> Mapping[str, SampleResult]:
    """Keep by item what was generated: no ranked choices, no texts read, no errors."""
    return {row.example_id: row for row in rows if row.status != "error" and row.finish_reason in _GENERATED}
