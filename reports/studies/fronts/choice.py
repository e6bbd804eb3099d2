"""Choice of strengths and ways by their results on validation."""

from collections.abc import Sequence
from statistics import fmean

from reports.studies.fronts.rows import PROMPT, Row
from reports.studies.fronts.ways import PLAIN, way_of

N_BEST = 5
KEPT = 0.9  # of plain LoRA's gain over the prompt


def share_of_gain(rows: Sequence[Row], rated: Row) -> float | None:
    """Return the gain of a candidate's seeds over the prompt, as a share of plain LoRA's best gain.

    All rows have one task and machine. None if plain LoRA gains nothing, or one of the three is not
    measured.
    """
    seeds: dict[str, list[float]] = {}
    for row in rows:
        if row.goal is not None and (row.task, row.machine) == (rated.task, rated.machine):
            seeds.setdefault(row.candidate, []).append(row.goal)
    score = {name: fmean(scores) for name, scores in seeds.items()}
    plain = [value for name, value in score.items() if way_of(name) == PLAIN]
    if PROMPT not in score or rated.candidate not in score or not plain or max(plain) <= score[PROMPT]:
        return None
    return (score[rated.candidate] - score[PROMPT]) / (max(plain) - score[PROMPT])


def choose(rows: Sequence[Row]) -> list[str]:
    """Return the better strength of each of the best ways except plain LoRA, the best first.

    Ways that keep nine tenths of plain LoRA's gain come first, ordered by what they keep of the base's
    abilities; then the others, ordered by gain. A way that changed nothing equals plain LoRA.
    """
    ways = [row for row in rows if row.trained and not row.remark and way_of(row.candidate) != PLAIN]
    rated = [(row.candidate, _rate(rows, row)) for row in ways]
    best: dict[str, str] = {}
    for name, _ in sorted(rated, key=lambda rating: rating[1], reverse=True):
        best.setdefault(way_of(name), name)
    return list(best.values())[:N_BEST]


def _rate(rows: Sequence[Row], row: Row) -> tuple[bool, float]:
    share = share_of_gain(rows, row)
    keeps = share is not None and share >= KEPT
    kept_change = row.kept if row.kept is not None else float("-inf")
    return keeps, kept_change if keeps else (share if share is not None else float("-inf"))
