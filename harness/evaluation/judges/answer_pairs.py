"""Pairs of two candidates' answers to one item: judged in both orders, and what was preferred.

Invariant: equal answers are no pair, and an answer that failed loses without a judge. The preferences lie in
the judge's book beside its other grades, found by item, both answers and their order. One that cannot be
read is no preference: the item is half a win for each side, and is counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from harness.evaluation.judges import JudgedMetric
from harness.evaluation.judges.grade_reading import UngradedAnswer
from harness.evaluation.judges.judge_prompts import Order
from harness.records import Example, Grade, SampleResult, digest

_ORDERS: tuple[Order, ...] = ("first", "second")
_TIE = 0.5
Rows = Sequence[SampleResult]


def list_ungraded_pairs(
    judged: JudgedMetric, examples: Sequence[Example], base: Rows, new: Rows
) -> list[UngradedAnswer]:
    """List the pairs that a judge has not compared, each in both orders."""
    known = list(zip(judged.judges, judged.grades(), strict=True))
    items = {example.id: example for example in examples}
    return [
        UngradedAnswer(
            judged,
            judge,
            now.task,
            replace(items[now.example_id], references=(old.text,)),
            now.text,
            key,
            order,
        )
        for old, now in pair_rows(base, new)
        if answers_differ(old, now) and not _is_failed(old, now)
        for judge, grades in known
        for order in _ORDERS
        if (key := _key(old, now, order)) not in grades
    ]


class Preferences(NamedTuple):
    """Preferences of judges between two arms' answers, by item whose answers differ.

    `won` says how far the new answer is preferred, in [0, 1]: the mean over judges and orders. An item that
    a judge has yet to compare is left out; one of which a preference cannot be read is half a win, and
    `unread`. `first` says of the others that were compared how far the answer shown first is preferred.
    """

    won: dict[str, float]
    unread: set[str]
    first: dict[str, float]


def preferences(grades: Sequence[Mapping[str, Grade]], base: Rows, new: Rows) -> Preferences:
    """Read what judges prefer of two arms' answers; an answer that failed loses without them."""
    both = (pair for pair in pair_rows(base, new) if answers_differ(*pair))
    found = Preferences({}, set(), {})
    for old, now in both:
        if _is_failed(old, now):
            found.won[now.example_id] = float(old.status == "error")
        elif given := _grades_of(grades, old, now):
            _add(found, now.example_id, given)
    return found


def _add(found: Preferences, item: str, given: Sequence[Grade]) -> None:
    """Add what was said of one item in both orders."""
    read = [(grade.order, grade.value) for grade in given if grade.value is not None]
    if len(read) < len(given):
        found.unread.add(item)
        found.won[item] = _TIE
        return
    found.won[item] = fmean(value for _, value in read)
    found.first[item] = fmean(value if order == "first" else 1 - value for order, value in read)


def pair_rows(base: Rows, new: Rows) -> Iterator[tuple[SampleResult, SampleResult]]:
    """Yield the rows of the items that both arms answered."""
    old = {row.example_id: row for row in base}
    return ((old[row.example_id], row) for row in new if row.example_id in old)


def answers_differ(old: SampleResult, now: SampleResult) -> bool:
    """Tell whether two answers to an item are another; of two that failed neither is better."""
    failed = [row.status == "error" for row in (old, now)]
    return any(failed) and not all(failed) if any(failed) else old.text != now.text


def map_shown_pairs(base: Rows, new: Rows) -> dict[str, tuple[SampleResult, SampleResult]]:
    """Map the items that people are shown to both rows: both gave an answer, and another one."""
    both = ((old, now) for old, now in pair_rows(base, new) if not _is_failed(old, now))
    return {now.example_id: (old, now) for old, now in both if answers_differ(old, now)}


def _is_failed(old: SampleResult, now: SampleResult) -> bool:
    return "error" in (old.status, now.status)


def _grades_of(grades: Sequence[Mapping[str, Grade]], old: SampleResult, now: SampleResult) -> list[Grade]:
    """List what every judge said of a pair in both orders; nothing where one has yet to compare it."""
    keys = [_key(old, now, order) for order in _ORDERS]
    found = [of[key] for of in grades for key in keys if key in of]
    return found if len(found) == len(grades) * len(keys) else []


def _key(old: SampleResult, now: SampleResult, order: Order) -> str:
    return digest(["pair", now.task, now.example_id, now.prompt, now.text, old.text, order])
