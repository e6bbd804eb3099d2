"""Pictures of a report as SVG: shapes, axes and colours; a verdict's changes and chances; a heat map.

Invariant: a picture shows numbers of the report alone, each mark says its numbers as text, colour never says
anything alone, and no text of a model or a file is read as markup. Every text is cleaned and escaped here;
coordinates are pixels, y grows downwards. A picture names classes only, so the same one fits a light page, a
dark page and paper. Tasks that do not count in the gate are drawn hollow; what lies beyond a task's margin
is shaded. Words and chances are those that the other forms of the report print. Only rates are shown, of
each task its primary metric; a colour says no more than its number.
Source: Okabe & Ito 2008, colour universal design (blue, vermilion, orange, bluish green).
"""

from collections.abc import Iterable
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import NamedTuple

from rich.cells import cell_len

from harness import formatting
from harness.analysis.candidate_facts import CandidateFacts, is_fine_tuned
from harness.analysis.estimators import orient
from harness.analysis.verdict import Verdict
from harness.formatting import tick
from harness.report.escape import clean, shorten_for_picture
from harness.report.experiment_report import ExperimentReport
from harness.report.wording import best_first, flips_text, miss_what

# Pixels: the mean width of a letter by the class of its text, in DejaVu Sans, the widest of the fonts.
_WIDTHS = {"": 7.3, "strong": 8.2, "small": 6.7}


class AxisScale(NamedTuple):
    """A straight line from values to pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value; one outside the axis lands on its end."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)


def marks(low: float, high: float, n: int = 6) -> tuple[list[float], float]:
    """Return round values between two ends, at most about n of them, and the step between them."""
    rough = (high - low) / n
    power = 10 ** floor(log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)], step


def pad_range(values: Iterable[float]) -> tuple[float, float]:
    """Return ends that leave some room around values, and never the same one twice."""
    known = list(values)
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def axes(x: AxisScale, y: AxisScale, of_x: str, of_y: str) -> list[str]:
    """Draw round marks of both axes under the names of what they show; a line at 0 is the ground."""
    out = [text((x.start + x.end) / 2, y.start + 36, of_x, "head", "middle"), text(0, 34, of_y, "head")]
    values, step = marks(y.low, y.high, 4)
    for value in values:
        out.append(line(x.start, y(value), x.end, y(value), "zero" if value == 0 else "grid"))
        out.append(text(x.start - 8, y(value) + 4, tick(value, step), "tick", "end"))
    values, step = marks(x.low, x.high, 5)
    return out + [text(x(v), y.start + 18, tick(v, step), "tick", "middle") for v in values]


def tag(name: str, content: str = "", **attributes: object) -> str:
    """Write an element; `class_` and `text_anchor` become `class` and `text-anchor`."""
    texts = {key: f"{v:.1f}" if isinstance(v, float) else str(v) for key, v in attributes.items()}
    written = "".join(f' {k.rstrip("_").replace("_", "-")}="{escape(text)}"' for k, text in texts.items())
    return f"<{name}{written}>{content}</{name}>"


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> str:
    """Write a text, `anchor` start, middle or end."""
    return tag("text", escape(clean(content)), x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """Draw a line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str) -> str:
    """Draw a rectangle."""
    return tag("rect", x=x, y=y, width=max(width, 0.0), height=max(height, 0.0), class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str) -> str:
    """Draw straight lines from point to point."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def mark(kind: str, x: float, y: float, class_: str) -> str:
    """Draw a mark of one of the shapes `dot`, `cross` and `diamond`; shapes tell apart what colours do."""
    if kind == "cross":
        arms = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
        return tag("path", d=arms, class_=f"mark cross {class_}")
    if kind == "diamond":
        return tag("path", d=f"M{x:.1f} {y - 6.5:.1f}l6 6.5l-6 6.5l-6 -6.5z", class_=f"mark {class_}")
    return tag("circle", cx=x, cy=y, r=5, class_=f"mark {class_}")


def group(said: str, *parts: str, class_: str = "") -> str:
    """Join shapes that mean one thing; pointing at them shows what is said."""
    return tag("g", tag("title", escape(clean(said))) + "".join(parts), class_=class_)


def picture(width: float, height: float, title: str, body: Iterable[str]) -> str:
    """Close a picture; its title is what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(clean(title))}" class="picture">{"".join(body)}</svg>'
    )


def width_of(content: str, class_: str = "") -> float:
    """Estimate how wide a text of a class is drawn at most, in pixels."""
    return _WIDTHS[class_] * cell_len(content)


# A file of its own stands on white, whatever page shows it.
_LIGHT = (
    ":root{--ink:#1c2127;--quiet:#5b6570;--rule:#d9dee3;--surface:#fff;--gain:#0072b2;--loss:#c44a00;"
    "--doubt:#9a6a00;--faded:#9aa4ae;--shade:#c44a0014}"
)


def rules() -> str:
    """Return the rules of all pictures, for a page that defines the colours."""
    return Path(__file__).with_name("picture.css").read_text(encoding="utf-8")


def standalone(picture: str) -> str:
    """Turn a picture into a file: its rules inside, on a white ground; an empty one stays empty."""
    if not picture:
        return ""
    head, _, body = picture.partition(">")
    ground = '<rect class="ground" x="-24" y="-16" width="100%" height="100%"/>'
    width, height = (float(part) for part in head.partition('viewBox="0 0 ')[2].partition('"')[0].split())
    padded = f'viewBox="-24 -16 {width + 48:.0f} {height + 32:.0f}" width="{width + 48:.0f}"'
    head = head.replace(f'viewBox="0 0 {width:.0f} {height:.0f}"', padded)
    return f"{head}><style>{_LIGHT}{rules()}</style>{ground}{body}\n"


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
    body = [
        text(0, 18, "task", "head"),
        text(_LEFT, 18, "← lost", "head"),
        text((_LEFT + _RIGHT) / 2, 18, "points", "head", "middle"),
        text(_RIGHT, 18, "gained →", "head", "end"),
        text(_RIGHT + 20, 18, "change", "head"),
        text(_WIDTH, 18, "lost/gained", "head", "end"),
    ]
    values, step = marks(scale.low, scale.high)
    for value in values:
        body.append(line(scale(value), _TOP - 4, scale(value), bottom, "grid"))
        body.append(text(scale(value), bottom + 17, tick(value, step, sign=True), "tick", "middle"))
    shown = shorten_for_picture([one.name for one in lines], _LONGEST)
    for i, (one, name) in enumerate(zip(lines, shown, strict=True)):
        body.append(_row(one, name, scale, _TOP + _ROW * i))
    body.append(line(scale(0), _TOP - 4, scale(0), bottom, "zero"))
    return picture(_WIDTH, bottom + 26, f"Change of each capability task by {f.label}, in points", body)


def _lines(report: ExperimentReport, f: CandidateFacts) -> list[Line]:
    tasks = []
    for c in report.task_comparisons(f.label).values():
        if c.unit.is_rate:
            flips, margin, better = (
                flips_text(len(c.lost), len(c.gained)),
                report.margins.get(c.task),
                orient(c),
            )
            counts = margin is not None
            tasks.append(Line(c.task, better.delta, better.low, better.high, flips, counts, margin))
    ordered = sorted(tasks, key=lambda one: not one.counts)
    if f.verdict is None or f.verdict.macro is None or not ordered:
        return ordered
    averaged = f.verdict.numbers("macro").get("n_tasks")  # with those in other units than rates
    n = averaged if isinstance(averaged, int) and averaged else sum(one.counts for one in ordered)
    flips = flips_text(f.verdict.lost, f.verdict.gained)
    name = f"macro: mean of {formatting.count(n)}"
    return [Line(name, *f.verdict.macro[:3], flips, True, report.macro_margin, True), *ordered]


def _row(one: Line, name: str, scale: AxisScale, top: float) -> str:
    y, shown = top + _ROW / 2, formatting.points(one.delta, one.low, one.high)
    judged = "" if one.counts else " hollow"
    class_ = ("loss" if one.high < 0 else "gain" if one.low > 0 else "even") + judged
    body = [text(0, y + 4, name, "strong" if one.is_mean else "" if one.counts else "quiet")]
    if one.margin is not None:
        at = scale(-100 * one.margin)
        body += [rect(_LEFT, top, at - _LEFT, _ROW, "beyond")]
        body += [line(at, top + 2, at, top + _ROW - 2, "margin")]
    body += [
        line(scale(100 * one.low), y, scale(100 * one.high), y, f"whisker {class_}"),
        mark("diamond" if one.is_mean else "dot", scale(100 * one.delta), y, class_),
        text(_RIGHT + 20, y + 4, shown, "strong" if one.is_mean else ""),
        text(_WIDTH, y + 4, one.flips, "quiet", "end"),
    ]
    margin = f", margin {formatting.percent(one.margin)} points" if one.margin is not None else ""
    judgement = margin if one.counts else ", reported only"
    return group(f"{one.name}: {shown} points{judgement}", *body)


_BARS_WIDTH, _BAR, _BARS_LEFT, _LONG = 860.0, 24.0, 470.0, 320.0


def chances(label: str, verdict: Verdict) -> str:
    """Draw the operating characteristic; empty where the gate has none."""
    if not verdict.missed:
        return ""
    rows = []
    for i, m in enumerate(verdict.missed):
        top, what, how_often = _BAR * i, miss_what(m), formatting.chance(m.probability)
        bar = "equal-bar" if m.what == "equal" else "miss-bar"
        parts = [text(0, top + 16, what), rect(_BARS_LEFT, top + 5, _LONG, 14, "track")]
        parts.append(rect(_BARS_LEFT, top + 5, _LONG * m.probability, 14, bar))
        parts.append(text(_BARS_LEFT + _LONG + 12, top + 16, how_often, "strong"))
        rows.append(group(f"{what}: {how_often}", *parts))
    return picture(_BARS_WIDTH, _BAR * len(rows) + 4, f"How often the gate on {label} would err", rows)


_FULL_COLOUR = 0.30  # the change that gets the whole colour; larger ones get no more


class Cell(NamedTuple):
    """`strength` runs from −1 (lost) over 0 to 1 (gained); `shown` says whether the interval leaves 0 out."""

    change: str
    interval: str
    said: str
    strength: float
    shown: bool


class Heat(NamedTuple):
    """One row a task with a cell for each label; None where a candidate did not answer it."""

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def heat(report: ExperimentReport) -> Heat:
    """Lay out the primary metric of every task of the suites that is a rate, for every fine-tune."""
    labels = tuple(
        f.label for f in best_first(report) if is_fine_tuned(f) and report.comparisons.get(f.label)
    )
    by_label = [
        {task: c for task, c in report.task_comparisons(label).items() if c.unit.is_rate} for label in labels
    ]
    rows: dict[str, list[Cell | None]] = {task: [] for of in by_label for task in of}
    for task, cells in rows.items():
        for of in by_label:
            if (c := of.get(task)) is None:
                cells.append(None)
                continue
            better, change = orient(c), formatting.points(c.delta)
            interval = formatting.points(c.delta, c.low, c.high).removeprefix(change).strip()
            sentence = f"{c.metric} {change} {interval} points, n = {formatting.count(c.n)}"
            strength = max(-1.0, min(1.0, better.delta / _FULL_COLOUR))
            cells.append(Cell(change, interval, sentence, strength, better.low > 0 or better.high < 0))
    return Heat(labels, tuple((task, tuple(cells)) for task, cells in rows.items()))
