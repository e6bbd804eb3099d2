"""Score by the share of training answers that were made wrong, each with its interval.

Invariant: every mark is a measured candidate; the lines between them are no fit.
"""

from harness import formatting
from harness.decision import TrainingSet, TrainingSets
from harness.formatting import Unit
from harness.report.plots.svg import AxisScale, axes, group, line, mark, pad_range, path, picture, text

_WIDTH, _HEIGHT = 430.0, 250.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 406.0, 40.0, 208.0


def label_noise(of: TrainingSets, unit: Unit, metric: str) -> str:
    """Draw the scores of one table over the shares; empty of other tables, and below two scores."""
    known = sorted((one for one in of.sets if one.score is not None), key=lambda one: one.corrupt)
    if of.by == "rows" or len(known) < 2:
        return ""
    shown = 100 if unit.is_rate else 1
    ends = [shown * value for one in known for value in _ends(one)]
    x = AxisScale(0, 105 * known[-1].corrupt, _LEFT, _RIGHT)
    y = AxisScale(*pad_range(ends), _BOTTOM, _TOP)
    points = [(x(100 * one.corrupt), y(shown * (one.score or 0.0))) for one in known]
    shown_metric = f"{metric}, %" if unit.is_rate else metric
    body = [text(0, 14, of.method, "strong"), *axes(x, y, "answers made wrong, %", shown_metric)]
    body.append(path(points, "train"))
    body += [_score(one, *at, y, shown, unit) for one, at in zip(known, points, strict=True)]
    return picture(_WIDTH, _HEIGHT, f"{metric} of {of.method} by the share of wrong answers", body)


def _ends(one: TrainingSet) -> tuple[float, ...]:
    score = one.score or 0.0
    return (one.estimate.low, score, one.estimate.high) if one.estimate else (score,)


def _score(one: TrainingSet, x: float, at: float, y: AxisScale, shown: int, unit: Unit) -> str:
    ends = one.estimate[1:3] if one.estimate else ()
    said = f"{formatting.percent(one.corrupt)} % wrong: {formatting.score(unit, one.score, *ends)}"
    whisker = [line(x, y(shown * ends[0]), x, y(shown * ends[1]), "whisker")] if ends else []
    return group(said, *whisker, mark("dot", x, at, "loss"))
