"""Pairs of two candidates' answers to one item: judged in both orders, and what was preferred.

Invariant: equal answers are no pair, and an answer that failed loses without a judge. The preferences lie in
the judge's book beside its other grades, found by item, both answers and their order.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from harness.evaluation.judges import Judged
from harness.evaluation.judges.grade_reading import Ungraded
from harness.evaluation.judges.judge_prompts import Order
from harness.records import Example, Grade, SampleResult, digest

_ORDERS: tuple[Order, ...] = ("first", "second")
Rows = Sequence[SampleResult]


def ungraded_pairs(judged: Judged, examples: Sequence[Example], base: Rows, new: Rows) -> list[Ungraded]:
    """List the pairs that a judge has not compared, each in both orders."""
    known = list(zip(judged.judges, judged.grades(), strict=True))
    items = {example.id: example for example in examples}
    return [
        Ungraded(
            judged,
            judge,
            now.task,
            replace(items[now.example_id], references=(old.text,)),
            now.text,
            key,
            order,
        )
        for old, now in both_rows(base, new)
        if answers_differ(old, now) and "error" not in (old.status, now.status)
        for judge, grades in known
        for order in _ORDERS
        if (key := _key(old, now, order)) not in grades
    ]


def pairs_won(grades: Sequence[Mapping[str, Grade]], base: Rows, new: Rows) -> dict[str, float]:
    """Map the items whose answers differ to how far the new one is preferred, in [0, 1].

    The mean over judges and orders. An item that a judge has yet to compare is left out; one whose preference
    cannot be read counts as lost.
    """
    won: dict[str, float] = {}
    for old, now in both_rows(base, new):
        if not answers_differ(old, now):
            continue
        if "error" in (old.status, now.status):
            won[now.example_id] = float(old.status == "error")
            continue
        keys = [_key(old, now, order) for order in _ORDERS]
        found = [of.get(key) for of in grades for key in keys]
        if all(found):
            won[now.example_id] = fmean((grade and grade.value) or 0.0 for grade in found)
    return won


def both_rows(base: Rows, new: Rows) -> Iterator[tuple[SampleResult, SampleResult]]:
    """Yield the rows of the items that both arms were asked."""
    old = {row.example_id: row for row in base}
    return ((old[row.example_id], row) for row in new if row.example_id in old)


def answers_differ(old: SampleResult, now: SampleResult) -> bool:
    """Tell whether two answers to an item are another; of two that failed neither is better."""
    failed = [row.status == "error" for row in (old, now)]
    return any(failed) and not all(failed) if any(failed) else old.text != now.text


def _key(old: SampleResult, now: SampleResult, order: Order) -> str:
    return digest(["pair", now.task, now.example_id, now.prompt, now.text, old.text, order])
