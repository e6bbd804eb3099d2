"""Drift of a judge behind an address: answers that it graded before are graded again before new ones.

Invariant: what is an anchor of a book stays one, and nothing new is graded by a judge that grades them
otherwise. How often one judge grades an answer otherwise by itself is measured and not assumed: anchors are
asked about again as soon as they are graded, and every check without drift adds to that count, but none that
found moves and could not have told them from drift. Each grade is on the disk before the next is asked for; a
check that something ended begins again, because the judge may be another by then.
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
    """Return a book's anchors; where it lacks some, they come from these answers, which are graded first.

    They are chosen by digest, so as if at random.
    """
    anchors = store.read_anchors(judged.store, judge.book)
    n_lacking, there = judged.rubric.anchors - len(anchors), {anchor.key for anchor in anchors}
    if n_lacking > 0:
        open_ones = sorted((one for one in answers if one.key not in there), key=lambda one: one.key)
        anchors += [
            Anchor(one.key, one.task, one.example, one.answer, one.order, one.passages)
            for one in open_ones[:n_lacking]
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
    """Ask a judge about its anchors again, and keep what it says; nothing where none of them has a grade.

    Those whose keys are `graded_now` are asked about alone: that shows how often the judge of today wavers.
    Otherwise it is asked several times where that is not known yet, or from too few to tell moves from drift.

    Raises:
        CandidateFailed: it grades more of them otherwise than it does by itself, or could not be asked.
    """
    known = store.read_grades(judged.store, judge.book, judge.attempts)
    there = store.read_anchors(judged.store, judge.book)
    anchors = [one for one in there if one.key in known and (not graded_now or one.key in graded_now)]
    if not anchors:
        return
    ask_all = partial(_ask_all, judged, judge, anchors, ask)
    before, now = [known[anchor.key] for anchor in anchors], ask_all()
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
    """Return how often anchors are asked about once more, to know how often the judge of today wavers.

    Once where there was no check yet. Where some moved, as often as a judge that moved all of them and wavers
    on none needs to be found; no further than `most` answers, which may not be enough for one or two anchors.
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
            said = f"{judge.name} could not be asked again: {grade.error}"
            raise CandidateFailed(said, "a judge that answers")
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
    """Return the place on the scale that a grade is nearest to; a mean of grades lies between two of them."""
    return None if grade.value is None else round(grade.value * (len(rubric.grades) - 1))


def is_drift(n_moved: int, n: int, earlier: Sequence[AnchorCheck]) -> bool:
    """Tell whether more of `n` anchors moved than in earlier checks without drift; never at the first one."""
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
    """Average grades; one that cannot be read counts as the worst."""
    return fmean(grade.value or 0.0 for grade in grades)
