"""Drift of a judge behind an address: answers that it graded before are graded again before new ones.

Invariant: a book's anchors stay the same answers, and nothing new is graded by a judge that grades them
otherwise. How often one judge grades an answer otherwise by itself is measured and not assumed: the anchors
are asked about again as soon as there are any, and every check without drift adds to that count.
Source: Fisher's exact test, one-sided.
"""

from collections.abc import Callable, Sequence
from statistics import fmean

from harness import formatting, store
from harness.errors import CandidateFailed
from harness.evaluation.judges import Judge, Judged
from harness.evaluation.judges.grade_reading import Ungraded
from harness.records import Anchor, AnchorCheck, Grade

ALPHA = 0.01  # chance of an alarm about a judge that did not change, at each check
_NEXT = "the judge as it was, or another version: in the rubric, by which all answers are graded anew"


def choose_anchors(answers: Sequence[Ungraded], n: int) -> list[Anchor]:
    """Choose `n` of the graded answers as anchors: by digest, so at random and always the same."""
    chosen = sorted(answers, key=lambda one: one.key)[:n]
    return [Anchor(one.key, one.task, one.example, one.answer, one.order) for one in chosen]


def check_anchors(judged: Judged, judge: Judge, ask: Callable[[Ungraded], Grade]) -> None:
    """Ask a judge about its anchors again, and keep what it says; nothing where a book has none.

    Raises:
        CandidateFailed: it grades more of them otherwise than it does by itself, or could not be asked.
    """
    known = store.read_grades(judged.store, judge.book)
    anchors = [one for one in store.read_anchors(judged.store, judge.book) if one.key in known]
    if not anchors:
        return
    now = [ask(Ungraded(judged, judge, a.task, a.example, a.answer, a.key, a.order)) for a in anchors]
    if failed := next((grade for grade in now if grade.status == "error"), None):
        raise CandidateFailed(
            f"{judge.name} could not be asked again: {failed.error}", "a judge that answers"
        )
    before = [known[anchor.key].value for anchor in anchors]
    n_moved = sum(old != grade.value for old, grade in zip(before, now, strict=True))
    drifted = is_drift(n_moved, len(now), store.read_checks(judged.store, judge.book))
    check = AnchorCheck(tuple(now), n_moved, _mean(before), _mean([g.value for g in now]), drifted)
    store.keep_check(judged.store, judge.book, check)
    if drifted:
        raise CandidateFailed(_drift_text(judge, check), _NEXT)


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


def _mean(values: Sequence[float | None]) -> float:
    """Average grades; one that cannot be read counts as the worst."""
    return fmean(value or 0.0 for value in values)
