"""Pairs of two candidates' answers to one item: judged in both orders, and the preferences.

Invariant: equal answers are not a pair, and a failed answer loses without a judge. Preferences are stored in
the judge's book with its other grades, by item, both answers and their order. An unreadable preference is
none: the item is half a win for each side, and is counted.
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
    grades_by_judge = list(zip(judged.judges, judged.grades(), strict=True))
    items = {example.id: example for example in examples}
    return [
        UngradedAnswer(
            judged,
            judge,
            new_row.task,
            replace(items[new_row.example_id], references=(base_row.text,)),
            new_row.text,
            key,
            order,
        )
        for base_row, new_row in pair_rows(base, new)
        if answers_differ(base_row, new_row) and not _is_failed(base_row, new_row)
        for judge, grades in grades_by_judge
        for order in _ORDERS
        if (key := _key(base_row, new_row, order)) not in grades
    ]


class Preferences(NamedTuple):
    """Preferences of judges between two arms' answers, by item with different answers.

    `won` says how much the new answer is preferred, in [0, 1]: the mean over judges and orders. An item that
    a judge has yet to compare is left out; one with an unreadable preference is half a win and `unread`. For
    the other compared items, `first` says how much the answer shown first is preferred.
    """

    won: dict[str, float]
    unread: set[str]
    first: dict[str, float]


def preferences(grades: Sequence[Mapping[str, Grade]], base: Rows, new: Rows) -> Preferences:
    """Read judges' preferences between two arms' answers; a failed answer loses without them."""
    differing = (pair for pair in pair_rows(base, new) if answers_differ(*pair))
    result = Preferences({}, set(), {})
    for base_row, new_row in differing:
        if _is_failed(base_row, new_row):
            result.won[new_row.example_id] = float(base_row.status == "error")
        elif pair_grades := _grades_of(grades, base_row, new_row):
            _add(result, new_row.example_id, pair_grades)
    return result


def _add(result: Preferences, item: str, grades: Sequence[Grade]) -> None:
    """Add the grades of one item in both orders."""
    read = [(grade.order, grade.value) for grade in grades if grade.value is not None]
    if len(read) < len(grades):
        result.unread.add(item)
        result.won[item] = _TIE
        return
    result.won[item] = fmean(value for _, value in read)
    result.first[item] = fmean(value if order == "first" else 1 - value for order, value in read)


def pair_rows(base: Rows, new: Rows) -> Iterator[tuple[SampleResult, SampleResult]]:
    """Yield the rows of the items that both arms answered."""
    base_by_id = {row.example_id: row for row in base}
    return ((base_by_id[row.example_id], row) for row in new if row.example_id in base_by_id)


def answers_differ(old: SampleResult, now: SampleResult) -> bool:
    """Tell whether two answers to an item differ; if both failed, neither is better."""
    failed = [row.status == "error" for row in (old, now)]
    return any(failed) and not all(failed) if any(failed) else old.text != now.text


def map_shown_pairs(base: Rows, new: Rows) -> dict[str, tuple[SampleResult, SampleResult]]:
    """Map the items to show to people to both rows: both answers exist and differ."""
    both = ((old, now) for old, now in pair_rows(base, new) if not _is_failed(old, now))
    return {now.example_id: (old, now) for old, now in both if answers_differ(old, now)}


def _is_failed(old: SampleResult, now: SampleResult) -> bool:
    return "error" in (old.status, now.status)


def _grades_of(grades: Sequence[Mapping[str, Grade]], old: SampleResult, now: SampleResult) -> list[Grade]:
    """List every judge's grades of a pair in both orders; empty if one judge has yet to compare it."""
    keys = [_key(old, now, order) for order in _ORDERS]
    pair_grades = [by_key[key] for by_key in grades for key in keys if key in by_key]
    return pair_grades if len(pair_grades) == len(grades) * len(keys) else []


def _key(old: SampleResult, now: SampleResult, order: Order) -> str:
    return digest(["pair", now.task, now.example_id, now.prompt, now.text, old.text, order])
