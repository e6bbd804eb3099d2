"""Choice of strengths and ways, by what they reached on validation."""

from collections.abc import Sequence
from statistics import fmean

from reports.studies.fronts.rows import PROMPT, Row
from reports.studies.fronts.ways import PLAIN, way_of

N_BEST = 5
KEPT = 0.9  # of plain LoRA's gain over the prompt


def share_of_gain(rows: Sequence[Row], of: Row) -> float | None:
    """Return what a candidate's seeds gain over the prompt, as a share of what plain LoRA gains at its best.

    All are rows of one task and machine. None where plain LoRA gains nothing, or one of the three is not
    measured.
    """
    seeds: dict[str, list[float]] = {}
    for row in rows:
        if row.goal is not None and (row.task, row.machine) == (of.task, of.machine):
            seeds.setdefault(row.candidate, []).append(row.goal)
    score = {name: fmean(scores) for name, scores in seeds.items()}
    plain = [value for name, value in score.items() if way_of(name) == PLAIN]
    if PROMPT not in score or of.candidate not in score or not plain or max(plain) <= score[PROMPT]:
        return None
    return (score[of.candidate] - score[PROMPT]) / (max(plain) - score[PROMPT])


def choose(rows: Sequence[Row]) -> list[str]:
    """Name the better strength of each of the best ways but plain LoRA, the best first.

    First come those that keep nine tenths of plain LoRA's gain, by what they keep of the base's abilities;
    then the others, by their gain. A way that changed nothing is plain LoRA itself.
    """
    ways = [row for row in rows if row.trained and not row.remark and way_of(row.candidate) != PLAIN]
    rated = [(row.candidate, _rate(rows, row)) for row in ways]
    best: dict[str, str] = {}
    for name, _ in sorted(rated, key=lambda of: of[1], reverse=True):
        best.setdefault(way_of(name), name)
    return list(best.values())[:N_BEST]


def _rate(rows: Sequence[Row], of: Row) -> tuple[bool, float]:
    share = share_of_gain(rows, of)
    keeps = share is not None and share >= KEPT
    kept = of.kept if of.kept is not None else float("-inf")
    return keeps, kept if keeps else (share if share is not None else float("-inf"))
