"""Drift of an endpoint judge: answers that it graded before are graded again before new ones.

Invariant: an anchor of a book stays one, and a judge that grades its anchors differently grades nothing new.
A judge's own noise is measured, not assumed: anchors are graded again as soon as they are graded, and every
check without drift adds to the measured noise, except checks that found moves but could not have told them
from drift. Each grade is stored before the next is requested; an interrupted check starts again, because the
judge may have changed by then.
Source: Fisher's exact test, one-sided.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

from harness import formatting, store
from harness.config import Rubric
from harness.errors import CandidateFailed
from harness.evaluation.judges import Judge, JudgedMetric
from harness.evaluation.judges.grade_reading import UngradedAnswer
from harness.records import Anchor, AnchorCheck, Grade

ALPHA = 0.01  # chance of an alarm about a judge that did not change, at each check
_NEXT = "the judge as it was, or another version: in the rubric, by which all answers are graded again"


def anchors_of(judged: JudgedMetric, judge: Judge, answers: Sequence[UngradedAnswer]) -> list[Anchor]:
    """Return a book's anchors; missing ones are chosen from these answers, which are graded first.

    They are chosen by digest, that is as if at random.
    """
    anchors = store.read_anchors(judged.store, judge.book)
    n_lacking, keys = judged.rubric.anchors - len(anchors), {anchor.key for anchor in anchors}
    if n_lacking > 0:
        new_answers = sorted((a for a in answers if a.key not in keys), key=lambda a: a.key)
        anchors += [
            Anchor(a.key, a.task, a.example, a.answer, a.order, a.passages) for a in new_answers[:n_lacking]
        ]
        store.keep_anchors(judged.store, judge.book, anchors)
    return anchors


def check_anchors(
    judged: JudgedMetric,
    judge: Judge,
    ask: Callable[[UngradedAnswer], Grade],
    *,
    graded_now: Collection[str] = (),
) -> None:
    """Let a judge grade its anchors again, and store the grades; nothing if no anchor has a grade.

    With `graded_now` only anchors with these keys are graded again: this measures today's noise of the judge.
    Otherwise the check is repeated if the noise is unknown, or measured on too few anchors to tell moves from
    drift.

    Raises:
        CandidateFailed: it changes more grades than its noise explains, or could not be asked.
    """
    grade_by_key = store.read_grades(judged.store, judge.book, judge.attempts)
    stored_anchors = store.read_anchors(judged.store, judge.book)
    anchors = [a for a in stored_anchors if a.key in grade_by_key and (not graded_now or a.key in graded_now)]
    if not anchors:
        return
    ask_all = partial(_ask_all, judged, judge, anchors, ask)
    before, now = [grade_by_key[anchor.key] for anchor in anchors], ask_all()
    earlier = store.read_checks(judged.store, judge.book)
    check = _check(judged.rubric, before, now, earlier)
    for _ in range(0 if graded_now else n_repeats(check, earlier, judged.rubric.anchors)):
        earlier.append(_check(judged.rubric, now, ask_all(), []))
        store.keep_check(judged.store, judge.book, earlier[-1])
    check = _check(judged.rubric, before, now, earlier)
    n = len(now)
    if graded_now or not check.n_moved or is_drift(n, n, earlier):
        store.keep_check(judged.store, judge.book, check)
    if check.drifted:
        raise CandidateFailed(_drift_text(judge, check), _NEXT)


def n_repeats(check: AnchorCheck, earlier: Sequence[AnchorCheck], most: int) -> int:
    """Return how many more times anchors are graded again, to know today's noise of the judge.

    Once if there was no check yet. If some moved, as often as needed to detect a judge without noise that
    moved all of them; at most `most` answers, which may be too few for one or two anchors.
    """
    n, least = len(check.grades), 0 if earlier else 1
    if not check.n_moved:
        return least
    calm = replace(check, n_moved=0, drifted=False)
    numbers = range(least, max(least, most // n) + 1)
    return next((k for k in numbers if is_drift(n, n, [*earlier, *[calm] * k])), least)


def _ask_all(
    judged: JudgedMetric, judge: Judge, anchors: Sequence[Anchor], ask: Callable[[UngradedAnswer], Grade]
) -> list[Grade]:
    grades = []
    for a in anchors:
        grade = ask(UngradedAnswer(judged, judge, a.task, a.example, a.answer, a.key, a.order, a.passages))
        store.keep_asked_again(judged.store, judge.book, grade)
        if grade.status == "error":
            text = f"{judge.name} could not be asked again: {grade.error}"
            raise CandidateFailed(text, "a judge that answers")
        grades.append(grade)
    return grades


def _check(
    rubric: Rubric, before: Sequence[Grade], now: Sequence[Grade], earlier: Sequence[AnchorCheck]
) -> AnchorCheck:
    moves = zip(before, now, strict=True)
    n_moved = sum(_nearest(rubric, old) != _nearest(rubric, new) for old, new in moves)
    drifted = is_drift(n_moved, len(now), earlier)
    return AnchorCheck(tuple(now), n_moved, _mean(before), _mean(now), drifted)


def _nearest(rubric: Rubric, grade: Grade) -> int | None:
    """Return the nearest grade of the scale by index; a mean of grades lies between two of them."""
    return None if grade.value is None else round(grade.value * (len(rubric.grades) - 1))


def is_drift(n_moved: int, n: int, earlier: Sequence[AnchorCheck]) -> bool:
    """Tell whether more of `n` anchors moved than in earlier checks without drift; never at the first."""
    from scipy.stats import fisher_exact

    calm = [check for check in earlier if not check.drifted]
    if not calm:
        return False
    moved, asked = sum(check.n_moved for check in calm), sum(len(check.grades) for check in calm)
    table = [[n_moved, n - n_moved], [moved, asked - moved]]
    return float(fisher_exact(table, alternative="greater").pvalue) < ALPHA


def _drift_text(judge: Judge, check: AnchorCheck) -> str:
    n = len(check.grades)
    means = f"{formatting.percent(check.mean_before)} → {formatting.percent(check.mean_now)} %"
    return (
        f"{judge.name} grades otherwise than before: of {n} answers that it had graded {check.n_moved} got "
        f"another grade (mean {means}), so it was asked for no new one"
    )


def _mean(grades: Sequence[Grade]) -> float:
    """Average grades; an unreadable one counts as the worst."""
    return fmean(grade.value or 0.0 for grade in grades)
