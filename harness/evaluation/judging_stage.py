"""The judging stage: answers and pairs of answers are graded by their judges, and then scored.

Invariant: it runs while no candidate is open, so that a local judge can use the one place in memory. Answers
are stored before a judge sees them. A failure (CandidateFailed: a judge cannot be asked, or grades
differently than before) keeps them, and every grade so far, for the next run. Equal answers are not a pair,
and a failed answer loses without a judge. Preferences are stored in the judge's book with its other grades,
by item, both answers and their order. An unreadable preference is none: the item is half a win for each
side, and is counted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from statistics import fmean
from typing import NamedTuple

from harness.evaluation.grade_costs import cost_usd, list_paid_grades
from harness.evaluation.grading import grade_answers
from harness.evaluation.judges import Judge, JudgedMetric, Order, UngradedAnswer
from harness.evaluation.rescoring import rescore_stored, score_by_grades
from harness.evaluation.row_sets import RowSet
from harness.evaluation.runner import answer
from harness.evaluation.session import MeasuredTask, Session
from harness.formatting import count, percent, usd
from harness.models.hub import ModelSource
from harness.records import Example, Grade, Run, SampleResult, digest
from harness.store import list_grades, read_anchors, read_checks
from harness.training import Weights


def answer_and_score(
    session: Session, weights: Weights, sets: Sequence[RowSet], name: str, base: ModelSource | None = None
) -> None:
    """Compute the missing answers of sets, with the control arm of `base`, and score them."""
    if lacking := score_answered(session, sets):
        answer(session, weights, lacking, name, base)
        score_answered(session, lacking)


def score_answered(session: Session, sets: Sequence[RowSet]) -> list[RowSet]:
    """Score stored answers, grading them first if a judge scores them; return the sets that lack answers."""
    ungraded: list[UngradedAnswer] = []
    lacking = rescore_stored(session, sets, ungraded)
    if not ungraded:
        return lacking
    grade_all(session, ungraded)
    return rescore_stored(session, lacking)


def grade_all(session: Session, ungraded: Iterable[UngradedAnswer]) -> None:
    """Grade answers book by book."""
    books: dict[str, list[UngradedAnswer]] = {}
    for pending in ungraded:
        books.setdefault(pending.judge.book, []).append(pending)
    for answers in books.values():
        grade_answers(session, answers)


def grade_rows(
    session: Session, parts: Sequence[tuple[RowSet, Sequence[SampleResult]]]
) -> list[list[SampleResult]]:
    """Score answers to some items of sets; a judge grades those that it has not graded yet."""
    ungraded: list[UngradedAnswer] = []
    scored = [score_by_grades(rows, answered, ungraded) for rows, answered in parts]
    if not ungraded:
        return scored
    grade_all(session, ungraded)
    return [score_by_grades(rows, answered, []) for rows, answered in parts]


def judge_remarks(tasks: Iterable[MeasuredTask]) -> Iterator[str]:
    """Say how much each judge has graded, at which price, and how many grades were unreadable."""
    decides: dict[tuple[str, ...], bool] = {}
    named: dict[tuple[str, ...], JudgedMetric] = {}
    for task in tasks:
        for one in task.judged.values():
            books = (one.metric, *(judge.book for judge in one.judges))
            named.setdefault(books, one)
            decides[books] = decides.get(books, False) or one.metric == task.task.primary_metric
    for books, one in named.items():
        become = "count as failed answers" if decides[books] else "leave these answers without that score"
        for judge, known in zip(one.judges, one.grades(), strict=True):
            yield _remark_of(one, judge, known, ("answers graded", "grades"), become)


def pair_remarks(judged: JudgedMetric, most: float) -> Iterator[str]:
    """Say how much each judge of a win rate compared, and how many preferences were unreadable.

    More items with an unreadable preference than the share `most` leave the win rate open.
    """
    limit = f"{percent(most)} % of items (gate.max_errors)"
    become = f"make their items half a win, beyond {limit} the win rate is left open"
    for judge, known in zip(judged.judges, judged.grades(), strict=True):
        if known:
            yield _remark_of(judged, judge, known, ("comparisons made", "preferences"), become)


def self_preference_remarks(judged: Iterable[JudgedMetric], runs: Iterable[Run]) -> Iterator[str]:
    """Name each judge that grades its own answers: models prefer their own text.

    Source: Panickssery et al. 2024, arXiv 2404.13076.
    """
    makers: dict[str, list[str]] = {}
    for run in runs:
        if run.state == "done":
            makers.setdefault(run.weights_digest, []).append(run.label)
    graded = {(one.metric, judge.book): judge for one in judged for judge in one.judges}
    for (metric, _), judge in graded.items():
        if judge.weights and (own := makers.get(judge.weights.digest)):
            text = f"{metric}: {judge.name} grades answers of its own weights ({', '.join(own)})"
            step = "let another model judge, or people label answers of both sides"
            yield f"{text}, and models prefer what they would say themselves; {step}"


def _remark_of(
    judged: JudgedMetric, judge: Judge, known: Mapping[str, Grade], words: tuple[str, str], become: str
) -> str:
    """Say how much a judge graded, at which price, and what its unreadable grades `become`."""
    done, name = words
    paid = ""
    if judge.settings and judge.prices is not None:
        cost = cost_usd(list_paid_grades(judged, judge), judge.prices)
        paid = (
            f" for {usd(cost)} USD" if cost is not None else " at an unknown cost, the server sends no usage"
        )
    lost = [grade for grade in known.values() if grade.value is None]
    errors = [grade.error for grade in lost if grade.status == "error"]
    unread = f"{count(len(lost) - len(errors))} of these {name} could not be read"
    unasked = f"{count(len(errors))} of these {name} could not be asked for ({errors[0]})" if errors else ""
    reasons = " and ".join(filter(None, (unread if len(lost) > len(errors) else "", unasked)))
    failed = f"; {reasons} and {become}"
    if judge.settings:
        failed += f" (attempts: {judge.attempts + 1} in the rubric asks about them again)"
    extra = failed if lost else ""
    read = [grade for grade in known.values() if grade.order and grade.value is not None]
    if read:  # each pair is shown in both orders, so half is neutral
        first = fmean(_value_of_first(grade.order, grade.value or 0.0) for grade in read)
        extra += (
            f"; the answer shown first won {percent(first)} % of comparisons, where 50 % favours no place"
        )
    if checks := read_checks(judged.store, judge.book):
        last, n = checks[-1], len(checks[-1].grades)
        extra += f"; of {count(n)} answers graded again {count(last.n_moved)} got another grade"
    anchors = {anchor.key for anchor in read_anchors(judged.store, judge.book)}
    older = list(takewhile(lambda grade: grade.key not in anchors, list_grades(judged.store, judge.book)))
    if judge.settings and anchors and older:  # not checked for drift
        extra += f"; {count(len(older))} of its grades are older than its anchors, and unchecked"
        extra += " (version: in the rubric grades them again)"
    return f"{judged.metric}: {count(len(known))} {done} by {judge.name}{paid}{extra}"


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
            continue
        keys = [_key(base_row, new_row, order) for order in _ORDERS]
        pair_grades = [by_key[key] for by_key in grades for key in keys if key in by_key]
        if not pair_grades or len(pair_grades) < len(grades) * len(keys):
            continue  # a judge has yet to compare them
        item, read = new_row.example_id, [(g.order, g.value) for g in pair_grades if g.value is not None]
        if len(read) < len(pair_grades):
            result.unread.add(item)
            result.won[item] = _TIE
        else:
            result.won[item] = fmean(value for _, value in read)
            result.first[item] = fmean(_value_of_first(order, value) for order, value in read)
    return result


def _value_of_first(order: str, value: float) -> float:
    """Return how much the answer shown first is preferred, from the value of the new answer."""
    return value if order == "first" else 1 - value


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


def _key(old: SampleResult, now: SampleResult, order: Order) -> str:
    return digest(["pair", now.task, now.example_id, now.prompt, now.text, old.text, order])
