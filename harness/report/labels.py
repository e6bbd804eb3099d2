"""Words and names as tables, pages and pictures print them: verdicts in one word, long names cut.

Invariant: a verdict has one word and one class in the terminal, on pages, in pictures and on the dashboard;
different names stay different when they are shortened, a grid's keys first and its values last.
"""

import re
from collections.abc import Sequence
from math import isclose, isfinite, nan

import numpy as np
from rich.cells import cell_len

from harness.formatting import UNKNOWN, plain
from harness.gating import WORDS as WORDS
from harness.metrics import Metric, item_scores
from harness.report.escape import shorten

_KEYS = re.compile(r"(?<=[\[,])[\w.]+=")  # of a grid's member, as in few-shot[select=knn,shots=4]


def mark_answer(metric: Metric, parts: Sequence[float] | None) -> str:
    """Mark an answer as right or wrong, or print its score where it is neither; – where it has none."""
    score = nan if parts is None else float(item_scores(metric, np.array([parts], float))[0])
    if not isfinite(score):
        return UNKNOWN
    worst, best = metric.bounds if metric.higher_is_better else metric.bounds[::-1]
    return RIGHT if isclose(score, best) else WRONG if isclose(score, worst) else plain(score)


def shorten_for_table(names: Sequence[str], width: int) -> list[str]:
    """Shorten names to a width in cells; where that would make two of them one, they are left to wrap."""
    brief = _drop_keys(names)
    return _shorten_by_source(names, width) or (brief if _are_different(brief, names) else list(names))


def shorten_for_picture(names: Sequence[str], width: int) -> list[str]:
    """Shorten names to a width in cells, which none of them passes; the cut is where they are alike.

    Where no cut tells them apart, they are counted: `a name th… long 2`.
    """
    if found := _shorten_by_source(names, width):
        return found
    # The middle is cut out first, then more and more of either half.
    for kept in sorted(range(width), key=lambda n: abs(2 * n - width)):
        cut = [shorten(name, width, kept) for name in names]
        if _are_different(cut, names):
            return cut
    places = {name: f" {i}" for i, name in enumerate(dict.fromkeys(names), 1)}
    return [shorten(name, width - cell_len(places[name])) + places[name] for name in names]


def _shorten_by_source(names: Sequence[str], width: int) -> list[str] | None:
    """Leave keys out and shorten what stands before the values; None where that does not do."""
    if _fit(names, width):
        return list(names)
    short = [_shorter(name, width) for name in _drop_keys(names)]
    return short if _fit(short, width) and _are_different(short, names) else None


def _drop_keys(names: Sequence[str]) -> list[str]:
    return [_KEYS.sub("", name) for name in names]


def _shorter(name: str, width: int) -> str:
    source, bracket, values = name.partition("[")
    room = width - cell_len(bracket + values)
    return shorten(source, max(room, 1)) + bracket + values


def _fit(names: Sequence[str], width: int) -> bool:
    return all(cell_len(name) <= width for name in names)


def _are_different(shown: Sequence[str], names: Sequence[str]) -> bool:
    """Tell whether different names are still different."""
    return len(set(shown)) == len(set(names))


RIGHT, WRONG = "✓", "✗"  # an answer that scores best, and one that scores worst
ERROR = "ERROR"  # of a run that failed, which has no verdict

# What a word tells: the class of its colour on pages and in pictures.
CLASSES = {
    "PASS": "passes",
    "FAIL": "fails",
    "UNDECIDED": "undecided",
    "DRIFT": "undecided",
    ERROR: "fails",
}
_COLOURS = {"passes": "green", "fails": "red", "undecided": "yellow"}
STYLES = {word: _COLOURS[class_] for word, class_ in CLASSES.items()}  # on the terminal
