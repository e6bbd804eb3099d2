"""Pictures of a verdict: paired differences as a forest plot, and error rates of the gate as bars.

Invariant: tasks that do not count in the gate are drawn hollow; what lies beyond a task's margin is shaded.
Words and chances are those that the other forms of the report print.
"""

from collections.abc import Sequence
from typing import NamedTuple

from harness import formatting
from harness.comparison import Comparison, orient
from harness.decision import CandidateFacts
from harness.gating import MissRate, Verdict
from harness.report.experiment_report import ExperimentReport
from harness.report.labels import shorten_for_picture
from harness.report.plots.svg import AxisScale, group, line, mark, marks, pad_range, picture, rect, text
from harness.report.wording import flips_text, miss_what

_WIDTH, _ROW, _TOP = 860.0, 25.0, 44.0
_LEFT, _RIGHT = 210.0, 590.0  # where the axis begins and ends
_LONGEST = 30  # cells of a name


class Line(NamedTuple):
    """One line of the picture, in [0, 1]; `margin` is the loss that is too much, None where unjudged."""

    name: str
    delta: float
    low: float
    high: float
    flips: str
    counts: bool
    margin: float | None
    is_mean: bool = False


def forest(report: ExperimentReport, f: CandidateFacts) -> str:
    """Draw the macro and every task measured as a rate; empty where nothing was compared."""
    lines = _lines(report, f)
    if not lines:
        return ""
    ends = [0.0, *(x for one in lines for x in (one.low, one.high)), *(-(one.margin or 0) for one in lines)]
    low, high = pad_range(100 * x for x in ends)
    scale = AxisScale(low, high, _LEFT, _RIGHT)
    bottom = _TOP + _ROW * len(lines)
    shown = shorten_for_picture([one.name for one in lines], _LONGEST)
    body = [
        *_axis(scale, bottom),
        *(
            _row(one, name, scale, _TOP + _ROW * i)
            for i, (one, name) in enumerate(zip(lines, shown, strict=True))
        ),
        line(scale(0), _TOP - 4, scale(0), bottom, "zero"),
    ]
    return picture(_WIDTH, bottom + 26, f"Change of each capability task by {f.label}, in points", body)


def _lines(report: ExperimentReport, f: CandidateFacts) -> list[Line]:
    tasks = [_draw_task(report, c) for c in report.task_comparisons(f.label).values() if c.unit.is_rate]
    ordered = sorted(tasks, key=lambda one: not one.counts)
    if f.verdict is None or f.verdict.macro is None or not ordered:
        return ordered
    n = _n_averaged(f.verdict) or sum(one.counts for one in ordered)
    flips = flips_text(f.verdict.lost, f.verdict.gained)
    name = f"macro: mean of {formatting.count(n)}"
    return [Line(name, *f.verdict.macro[:3], flips, True, report.macro_margin, True), *ordered]


def _n_averaged(verdict: Verdict) -> int:
    """Count the tasks that the macro averages, those in other units than rates among them; 0 if unknown."""
    return n if isinstance(n := verdict.numbers("macro").get("n_tasks"), int) else 0


def _draw_task(report: ExperimentReport, c: Comparison) -> Line:
    flips = flips_text(len(c.lost), len(c.gained))
    margin, c = report.margins.get(c.task), orient(c)
    return Line(c.task, c.delta, c.low, c.high, flips, margin is not None, margin)


def _axis(scale: AxisScale, bottom: float) -> list[str]:
    values, step = marks(scale.low, scale.high)
    out = [
        text(0, 18, "task", "head"),
        text(_LEFT, 18, "← lost", "head"),
        text((_LEFT + _RIGHT) / 2, 18, "points", "head", "middle"),
        text(_RIGHT, 18, "gained →", "head", "end"),
        text(_RIGHT + 20, 18, "change", "head"),
        text(_WIDTH, 18, "lost/gained", "head", "end"),
    ]
    for value in values:
        out.append(line(scale(value), _TOP - 4, scale(value), bottom, "grid"))
        out.append(text(scale(value), bottom + 17, formatting.tick(value, step, sign=True), "tick", "middle"))
    return out


def _row(one: Line, name: str, scale: AxisScale, top: float) -> str:
    y, shown = top + _ROW / 2, formatting.points(one.delta, one.low, one.high)
    judged = "" if one.counts else " hollow"
    class_ = ("loss" if one.high < 0 else "gain" if one.low > 0 else "even") + judged
    body = [
        text(0, y + 4, name, "strong" if one.is_mean else "" if one.counts else "quiet"),
        *_draw_margin(one.margin, scale, top),
        line(scale(100 * one.low), y, scale(100 * one.high), y, f"whisker {class_}"),
        mark("diamond" if one.is_mean else "dot", scale(100 * one.delta), y, class_),
        text(_RIGHT + 20, y + 4, shown, "strong" if one.is_mean else ""),
        text(_WIDTH, y + 4, one.flips, "quiet", "end"),
    ]
    return group(f"{one.name}: {shown} points{_judgement(one)}", *body)


def _judgement(one: Line) -> str:
    if not one.counts:
        return ", reported only"
    return f", margin {formatting.percent(one.margin)} points" if one.margin is not None else ""


def _draw_margin(margin: float | None, scale: AxisScale, top: float) -> Sequence[str]:
    if margin is None:
        return ()
    at = scale(-100 * margin)
    return (rect(_LEFT, top, at - _LEFT, _ROW, "beyond"), line(at, top + 2, at, top + _ROW - 2, "margin"))


_BARS_WIDTH, _BAR, _BARS_LEFT, _LONG = 860.0, 24.0, 470.0, 320.0


def chances(label: str, verdict: Verdict) -> str:
    """Draw the operating characteristic; empty where the gate has none."""
    if not verdict.missed:
        return ""
    rows = [_bar(m, _BAR * i) for i, m in enumerate(verdict.missed)]
    return picture(_BARS_WIDTH, _BAR * len(rows) + 4, f"How often the gate on {label} would err", rows)


def _bar(m: MissRate, top: float) -> str:
    what, how_often = miss_what(m), formatting.chance(m.probability)
    long = _LONG * m.probability
    return group(
        f"{what}: {how_often}",
        text(0, top + 16, what),
        rect(_BARS_LEFT, top + 5, _LONG, 14, "track"),
        rect(_BARS_LEFT, top + 5, long, 14, "equal-bar" if m.what == "equal" else "miss-bar"),
        text(_BARS_LEFT + _LONG + 12, top + 16, how_often, "strong"),
    )
