"""Thumbs of two models in production: the difference of their rates, with an interval over senders.

Invariant: without random assignment models met other requests, so nothing is estimated; each experiment,
`random:NAME`, is compared by itself, since the shares of its models may differ from another's.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from harness import stats
from harness.formatting import count, percent, pluralize, points
from harness.records import FeedbackRow

_RANDOM = "random"
_LEAST = 5  # thumbs up, and thumbs down, of each model, below which no interval is given


class ThumbRate(NamedTuple):
    """Thumbs of one model: how many were up, of how many, on how many answers."""

    model: str
    up: int
    thumbs: int
    answers: int

    @property
    def rate(self) -> float:
        """Share of thumbs that are up."""
        return self.up / self.thumbs


class ThumbDifference(NamedTuple):
    """Difference of two models' rates in one experiment, in [−1, 1], with its 95 % interval.

    `new` is the model of the higher rate, `base` the other one. Both ends are None where `reason` says why
    there is no interval. `senders` counts who gave thumbs; `unknown` thumbs have no sender and count as one
    person each.
    """

    assignment: str
    base: ThumbRate
    new: ThumbRate
    delta: float
    low: float | None
    high: float | None
    reason: str
    senders: int
    unknown: int


class ComparedThumbs(NamedTuple):
    """Differences of experiments, and remarks on thumbs that none of them counts."""

    differences: list[ThumbDifference]
    remarks: list[str]


def compare_thumbs(rows: Sequence[FeedbackRow]) -> ComparedThumbs:
    """Compare the two models of each random assignment; the others are only counted."""
    by_assignment: dict[str, list[FeedbackRow]] = {}
    for row in rows:
        by_assignment.setdefault(row.assignment, []).append(row)
    differences, remarks, not_random = list[ThumbDifference](), list[str](), Counter[str]()
    for assignment, assigned in sorted(by_assignment.items()):
        models = Counter(row.model for row in assigned if row.thumb is not None)
        if assignment.lower().partition(":")[0] != _RANDOM:
            not_random.update(models)
        elif len(models) == 2 and all(models):
            differences.append(_compare(assignment, assigned, sorted(models)))
        elif models:
            named = ", ".join(sorted(name or "no name" for name in models))
            remarks.append(f"thumbs of {named}, assigned {assignment}: two models with a name are compared")
    if len(not_random) > 1:
        named = ", ".join(f"{name or 'no name'} ({count(n)})" for name, n in not_random.most_common())
        remarks.append(
            f"thumbs without random assignment, of {named}: the models may have met other requests, so their "
            "difference is not shown and decides nothing; next: log assignment: random where it was drawn"
        )
    return ComparedThumbs(differences, remarks)


def _compare(assignment: str, rows: Sequence[FeedbackRow], models: Sequence[str]) -> ThumbDifference:
    rated = [row for row in rows if row.thumb is not None]
    base, new = sorted((_count(model, rows) for model in models), key=lambda one: one.rate)
    values = [float(bool(row.thumb)) for row in rated]
    clusters = [row.sender or f"row {row.row_id}" for row in rated]
    mean = stats.clustered_contrast(values, [row.model == new.model for row in rated], clusters)
    low, high, reason = None, None, ""
    if min(min(one.up, one.thumbs - one.up) for one in (base, new)) < _LEAST:
        reason = f"fewer than {_LEAST} thumbs up, or down, of one model"
    elif mean.se is None:
        reason = "too few senders"
    else:
        low, high = stats.t_interval(mean)
    n_senders, n_unknown = len({row.sender for row in rated} - {""}), sum(not row.sender for row in rated)
    return ThumbDifference(assignment, base, new, mean.mean, low, high, reason, n_senders, n_unknown)


def _count(model: str, rows: Sequence[FeedbackRow]) -> ThumbRate:
    thumbs = [row.thumb for row in rows if row.model == model]
    return ThumbRate(model, thumbs.count(True), len(thumbs) - thumbs.count(None), len(thumbs))


def describe_thumbs(compared: ComparedThumbs, gains: Mapping[str, str]) -> list[str]:
    """Write the differences as lines, each with the offline gains of its models, where they are known."""
    lines = []
    for found in compared.differences:
        rates = " and ".join(
            f"{one.model} {percent(one.rate)} % up of {count(one.thumbs)} thumbs, on "
            f"{percent(one.thumbs / one.answers)} % of its answers"
            for one in (found.new, found.base)
        )
        lines.append(f"production, assigned {found.assignment}: {rates}")
        shown = points(found.delta, found.low, found.high)
        by = pluralize(found.senders, "sender")
        if found.unknown:
            by += f", {pluralize(found.unknown, 'thumb')} without a sender counted as one person each"
        why = f"; no interval: {found.reason}" if found.reason else ""
        lines.append(f"  {found.new.model} − {found.base.model}: {shown} points ({by}){why}")
        named = [f"{one.model} {gains[one.model]}" for one in (found.new, found.base) if one.model in gains]
        lines += [f"  offline gain: {', '.join(named)}"] if named else []
    return [*lines, *compared.remarks]
