"""Pairs of two candidates' answers to one item: judged in both orders, and what was preferred.

Invariant: equal answers are no pair, and an answer that failed loses without a judge. The preferences lie in
the judge's book beside its other grades, found by item, both answers and their order. One that cannot be
read is no preference: the item is half a win for each side, and is counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from harness.evaluation.judges import Judged
from harness.evaluation.judges.grade_reading import Ungraded
from harness.evaluation.judges.judge_prompts import Order
from harness.records import Example, Grade, SampleResult, digest

_ORDERS: tuple[Order, ...] = ("first", "second")
_TIE = 0.5
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
        if answers_differ(old, now) and not _is_failed(old, now)
        for judge, grades in known
        for order in _ORDERS
        if (key := _key(old, now, order)) not in grades
    ]


def pairs_won(grades: Sequence[Mapping[str, Grade]], base: Rows, new: Rows) -> dict[str, float]:
    """Map the items whose answers differ to how far the new one is preferred, in [0, 1].

    The mean over judges and orders. An item that a judge has yet to compare is left out; one of which a
    preference cannot be read is half a win, and one of `unread_items`.
    """
    both = [pair for pair in both_rows(base, new) if answers_differ(*pair)]
    failed = {now.example_id: float(old.status == "error") for old, now in both if _is_failed(old, now)}
    preferred = {item: [grade.value for grade in found] for item, found in _compared(grades, base, new)}
    return failed | {
        item: _TIE if None in values else fmean(value for value in values if value is not None)
        for item, values in preferred.items()
    }


def unread_items(grades: Sequence[Mapping[str, Grade]], base: Rows, new: Rows) -> set[str]:
    """Return the items of which a judge gave a preference that cannot be read."""
    found = _compared(grades, base, new)
    return {item for item, given in found if any(grade.value is None for grade in given)}


def both_rows(base: Rows, new: Rows) -> Iterator[tuple[SampleResult, SampleResult]]:
    """Yield the rows of the items that both arms were asked."""
    old = {row.example_id: row for row in base}
    return ((old[row.example_id], row) for row in new if row.example_id in old)


def answers_differ(old: SampleResult, now: SampleResult) -> bool:
    """Tell whether two answers to an item are another; of two that failed neither is better."""
    failed = [row.status == "error" for row in (old, now)]
    return any(failed) and not all(failed) if any(failed) else old.text != now.text


def _is_failed(old: SampleResult, now: SampleResult) -> bool:
    return "error" in (old.status, now.status)


def _compared(
    grades: Sequence[Mapping[str, Grade]], base: Rows, new: Rows
) -> Iterator[tuple[str, list[Grade]]]:
    """Yield the items that every judge has compared in both orders, with what each said."""
    for old, now in both_rows(base, new):
        keys = [_key(old, now, order) for order in _ORDERS]
        found = [of[key] for of in grades for key in keys if key in of]
        if answers_differ(old, now) and not _is_failed(old, now) and len(found) == len(grades) * len(keys):
            yield now.example_id, found


def _key(old: SampleResult, now: SampleResult, order: Order) -> str:
    return digest(["pair", now.task, now.example_id, now.prompt, now.text, old.text, order])
