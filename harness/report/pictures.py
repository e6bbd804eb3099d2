"""SVG pictures of a report: shapes, axes, colours, the heat map, and the Pareto front of gain and forgetting.

Invariant: every text is cleaned and escaped here; colour never says anything alone. Coordinates are pixels, y
grows downwards. A picture names classes only, so it fits a light page, a dark page and paper.
Dominated candidates are grey: another one is at least as good in both, and better in one.
Source: Pareto 1906; Okabe & Ito 2008, colour universal design (blue, vermilion, orange, bluish green).
"""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import pairwise
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import NamedTuple

from rich.cells import cell_len

from harness import formatting, stats
from harness.analysis.candidate_facts import is_fine_tuned
from harness.analysis.estimators import Estimate, orient
from harness.report.document import CLASSES
from harness.report.escape import clean, shorten, shorten_for_picture
from harness.report.experiment_report import ExperimentReport
from harness.report.wording import best_first, verdict_word

# Pixels: the mean width of a letter by the class of its text, in DejaVu Sans, the widest of the fonts.
_WIDTHS = {"": 7.3, "strong": 8.2, "small": 6.7}
# A separate file has a white ground, whatever page shows it.
_LIGHT = (
    ":root{--ink:#1c2127;--quiet:#5b6570;--rule:#d9dee3;--surface:#fff;--gain:#0072b2;--loss:#c44a00;"
    "--doubt:#9a6a00;--faded:#9aa4ae;--shade:#c44a0014}"
)
_FULL_COLOUR = 0.30  # the change that gets the whole colour; larger ones get no more


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
    """Return about n round values between two ends, and the step between them."""
    rough = (high - low) / n
    power = 10 ** floor(log10(rough))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)], step


def pad_range(values: Iterable[float]) -> tuple[float, float]:
    """Return the range of the finite values with some room on both sides, never empty."""
    numbers = list(filter(isfinite, values))
    low, high = min(numbers), max(numbers)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


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


def path(points: Iterable[tuple[float, float]], class_: str) -> str:
    """Draw straight lines from point to point."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def mark(kind: str, x: float, y: float, class_: str) -> str:
    """Draw a mark of the shape `dot`, `cross` or `diamond`."""
    if kind == "cross":
        arms = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
        return tag("path", d=arms, class_=f"mark cross {class_}")
    if kind == "diamond":
        return tag("path", d=f"M{x:.1f} {y - 6.5:.1f}l6 6.5l-6 6.5l-6 -6.5z", class_=f"mark {class_}")
    return tag("circle", cx=x, cy=y, r=5, class_=f"mark {class_}")


def group(tooltip: str, *parts: str, class_: str = "") -> str:
    """Group shapes under a tooltip."""
    return tag("g", tag("title", escape(clean(tooltip))) + "".join(parts), class_=class_)


def picture(width: float, height: float, title: str, body: Iterable[str], *, alone: bool = False) -> str:
    """Return an SVG of these elements; one that stands `alone` has its own rules and a white ground."""
    box, ground = f'viewBox="0 0 {width:.0f} {height:.0f}"', ""
    if alone:
        box = f'viewBox="-24 -16 {width + 48:.0f} {height + 32:.0f}" width="{width + 48:.0f}"'
        white = '<rect class="ground" x="-24" y="-16" width="100%" height="100%"/>'
        ground = f"<style>{_LIGHT}{rules()}</style>{white}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img" aria-label="{escape(clean(title))}" '
        f'class="picture">{ground}{"".join(body)}</svg>'
    )


def width_of(content: str, class_: str = "") -> float:
    """Estimate the largest width of a text of a class, in pixels."""
    return _WIDTHS[class_] * cell_len(content)


def rules() -> str:
    """Return the rules of all pictures, for a page that defines the colours."""
    return Path(__file__).with_name("picture.css").read_text(encoding="utf-8")


class Cell(NamedTuple):
    """`strength` runs from −1 (lost) to 1 (gained); `shown` tells whether the interval excludes 0."""

    change: str
    interval: str
    tooltip: str
    strength: float
    shown: bool


class Heat(NamedTuple):
    """Heat map with a row per task and a cell per label; None where a candidate did not answer it."""

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]


def heat(report: ExperimentReport) -> Heat:
    """Return every fine-tune's change on each task of the suites, in points or in the metric's unit.

    The colour is of its share of the metric's range; without known bounds, of the larger score.
    """
    labels = tuple(
        f.label for f in best_first(report) if is_fine_tuned(f) and report.comparisons.get(f.label)
    )
    by_label = [
        {task if c.unit.is_rate else f"{task} ({c.unit.name})": c for task, c in tasks.items()}
        for tasks in map(report.task_comparisons, labels)
    ]
    rows: dict[str, list[Cell | None]] = {task: [] for by_task in by_label for task in by_task}
    for task, cells in rows.items():
        for by_task in by_label:
            if (c := by_task.get(task)) is None:
                cells.append(None)
                continue
            better, text = orient(c), formatting.change(c.unit, c.delta, c.low, c.high)
            change, _, interval = text.partition(" ")
            sentence = f"{c.metric} {text} {c.unit.name}, n = {formatting.count(c.n)}"
            scale = c.unit.span if isfinite(c.unit.span) else max(abs(c.base), abs(c.new)) or 1.0
            strength = max(-1.0, min(1.0, better.delta / (_FULL_COLOUR * scale)))
            cells.append(Cell(change, interval, sentence, strength, better.low > 0 or better.high < 0))
    return Heat(labels, tuple((task, tuple(cells)) for task, cells in rows.items()))


_SHAPES = {"passes": "dot", "fails": "cross", "undecided": "diamond", "even": "dot"}
_LEGEND_ROW = 18.0  # pixels
_CLASSES = {**CLASSES, formatting.UNKNOWN: "even"}  # weights of the base have no verdict
_MEANINGS = {
    "PASS": "passes the gate",
    "FAIL": "fails the gate",
    "UNDECIDED": "undecided",
    "DRIFT": "the harness drifted",
    formatting.UNKNOWN: "base weights",
}


class Point(NamedTuple):
    """A candidate: its score on the target, and its change on the capability suite, with intervals."""

    label: str
    target: Estimate
    kept: Estimate
    verdict: str
    on_front: bool
    recommended: bool


class Frame(NamedTuple):
    """The size of a picture and the ends of its axes, in pixels, and the longest name in it, in cells."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    longest: int


WIDE = Frame(860.0, 460.0, 62.0, 840.0, 92.0, 388.0, 34)  # a separate file
NARROW = Frame(500.0, 458.0, 44.0, 488.0, 64.0, 350.0, 20)  # next to a table
Lines = Sequence[Sequence[Point]]  # each the scales of one adapter, in order


class Box(NamedTuple):
    """The room that a label takes, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Tell whether two boxes share room."""
        is_beside = self.right <= other.left or other.right <= self.left
        return not is_beside and self.top < other.bottom and other.top < self.bottom


def front(report: ExperimentReport, frame: Frame = WIDE, lines: Lines = (), *, alone: bool = False) -> str:
    """Draw the target against the kept capability, and lines through scales of adapters; empty if unknown."""
    points = points_of(report)
    if not points:
        return ""
    rate, everything = report.unit.scale, [*points, *(p for family in lines for p in family)]
    ends = (frame.left, frame.right)
    left_right = ends if report.unit.higher_is_better else ends[::-1]  # right is better
    low, high = pad_range(rate * end for p in everything for end in p.target[:3])
    x = AxisScale(*((low, high) if rate == 1 else (max(low, -2.0), min(high, 100.0))), *left_right)
    changes = [100 * end for p in everything for end in (p.kept.low, p.kept.high)]
    lowest, highest = pad_range([0.0, -100 * (report.macro_margin or 0.0), *changes])
    y = AxisScale(lowest, highest, frame.bottom, frame.top)
    at = [(x(rate * p.target.score), y(100 * p.kept.score)) for p in points]
    target = f"target: {report.metric.replace('_', ' ')}{report.unit.axis} →"
    body = [
        text(0, 18, "capability suite: change of the mean of the tasks that count, points ↑", "head"),
        text(frame.right, frame.bottom + 38, target, "head", "end"),
    ]
    values, step = marks(y.low, y.high)
    for value in values:
        class_ = "zero" if abs(value) < step / 2 else "grid"
        body.append(line(frame.left, y(value), frame.right, y(value), class_))
        body.append(
            text(frame.left - 8, y(value) + 4, formatting.tick(value, step, sign=True), "tick", "end")
        )
    values, step = marks(x.low, x.high, 10)
    for value in values:
        body.append(line(x(value), frame.bottom, x(value), frame.bottom + 5, "zero"))
        body.append(text(x(value), frame.bottom + 18, formatting.tick(value, step), "tick", "middle"))
    if report.macro_margin is not None:
        beyond = y(-100 * report.macro_margin)
        sentence = f"margin of the gate: {formatting.points(-report.macro_margin)} points"
        body += [
            tag(
                "rect",
                x=frame.left,
                y=beyond,
                width=max((frame.right - frame.left), 0.0),
                height=max((frame.bottom - beyond), 0.0),
                class_="beyond",
            ),
            line(frame.left, beyond, frame.right, beyond, "margin"),
            text(frame.left + 6, beyond + 16, sentence, "small"),
        ]
    # The front as steps: a candidate also stands for everything left of and below it.
    corners = sorted(xy for p, xy in zip(points, at, strict=True) if p.on_front)
    steps = corners[:1]
    for (_, y0), (x1, y1) in pairwise(corners):
        steps += [(x1, y0), (x1, y1)]
    body += [path(steps, "front")] if len(corners) > 1 else []
    for family in lines:
        scales = [(x(rate * p.target.score), y(100 * p.kept.score)) for p in family]
        sentence = "; ".join(f"{p.label}: {formatting.points(p.kept.score)} points" for p in family)
        dots = (mark("dot", *xy, "dominated") for xy in scales)
        body.append(group(sentence, path(scales, "leader"), *dots))
    for p, (at_x, at_y) in zip(points[::-1], at[::-1], strict=True):
        class_ = f"whisker {_class(p)}"
        body.append(line(x(rate * p.target.low), at_y, x(rate * p.target.high), at_y, class_))
        body.append(line(at_x, y(100 * p.kept.low), at_x, y(100 * p.kept.high), class_))
    body += [
        *(_mark(report, p, *xy) for p, xy in zip(points[::-1], at[::-1], strict=True)),
        *_labels(points, frame, at),
        *_legend(report, frame, points, bool(lines)),
    ]
    title = "Score on the target against the change on the capability suite"
    return picture(frame.width, frame.height, title, body, alone=alone)


def front_file(report: ExperimentReport, frame: Frame = WIDE, lines: Lines = ()) -> str:
    """Draw the picture as a separate file on white, as for a README; empty if there is nothing to draw."""
    svg = front(report, frame, lines, alone=True)
    return f"{svg}\n" if svg else ""


def points_of(report: ExperimentReport) -> list[Point]:
    """List what can be drawn, the front first."""
    measured = [
        (f, f.target, f.verdict.macro)
        for f in best_first(report)
        if f.state == "done" and f.target and f.verdict and f.verdict.macro
    ]
    goals = [(target.unit.sign * target.score, skill.score) for _, target, skill in measured]
    best = set(stats.pareto_front(goals)) if goals else set()
    chosen = report.decision.candidate if report.decision and not report.smoke else None
    points = [
        Point(f.label, target, skill, verdict_word(f), i in best, f.name == chosen)
        for i, (f, target, skill) in enumerate(measured)
    ]
    return sorted(points, key=lambda p: not p.on_front)


def _class(p: Point) -> str:
    return _CLASSES[p.verdict] if p.on_front else "dominated"


def _mark(report: ExperimentReport, p: Point, x: float, y: float) -> str:
    score = formatting.score(report.unit, *p.target[:3])
    skill = formatting.points(*p.kept[:3])
    words = f"{p.label}: target {score}, capability suite {skill} points, {p.verdict}"
    ring = [tag("circle", cx=x, cy=y, r=10.5, class_="ring")] if p.recommended else []
    return group(words, *ring, mark(_SHAPES[_CLASSES[p.verdict]], x, y, _class(p)))


def _labels(points: Sequence[Point], frame: Frame, at: Sequence[tuple[float, float]]) -> list[str]:
    boxes = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in at]
    lines, names = [], []
    short = shorten_for_picture([p.label for p in points], frame.longest)
    for p, label, (x, y) in zip(points, short, at, strict=True):
        name = label + (" (recommended)" if p.recommended else "")
        box, moved = _free(width_of(name, "strong" if p.on_front else ""), x, y, frame, boxes)
        boxes.append(box)
        if moved:
            start, end = (y - 7, box.bottom) if box.bottom < y else (y + 7, box.top)
            lines.append(line(x, start, min(max(x, box.left + 6), box.right - 6), end, "leader"))
        names.append(text(box.left + 2, box.bottom - 4, name, "over strong" if p.on_front else "over quiet"))
    return [*lines, *names]


def _free(width: float, x: float, y: float, frame: Frame, boxes: Sequence[Box]) -> tuple[Box, bool]:
    """Find free room above a mark, nearest first, then below it; tell whether a line must lead there."""
    tops = [y - 28 - 17 * i for i in range(20)] + [y + 12 + 17 * i for i in range(20)]
    for top in tops:
        for left in (x - width / 2, x - 10, x + 10 - width):
            box = Box(left, top, left + width + 4, top + 16)
            is_inside = box.left >= 2 and box.right <= frame.width and 24 <= box.top <= frame.bottom - 16
            if is_inside and not any(box.overlaps(b) for b in boxes):
                return box, top not in (tops[0], tops[20])
    return Box(x + 12, y - 10, x + 16 + width, y + 6), False


def _legend(report: ExperimentReport, frame: Frame, points: Sequence[Point], scaled: bool) -> list[str]:
    words = {p.verdict for p in points}
    shapes = {word: _CLASSES[word] for word in _MEANINGS if word in words}
    # Each entry is a mark's shape, empty for a line, its class and its meaning.
    keys = [(_SHAPES[class_], class_, _MEANINGS[word]) for word, class_ in shapes.items()]
    keys += [] if all(p.on_front for p in points) else [("dot", "dominated", "dominated")]
    keys += [("", "front", "front"), *([("", "leader", "one fine-tune, scaled")] if scaled else [])]
    rows: list[list[tuple[str, str, str, float]]] = [[]]
    for shape, class_, meaning in keys:
        width = width_of(meaning, "small") + (26 if shape else 44)
        if sum(used for *_, used in rows[-1]) + width > frame.right:
            rows.append([])
        rows[-1].append((shape, class_, meaning, width))
    top, elements = frame.height - 10 - _LEGEND_ROW * (len(rows) - 1), []
    for i, row in enumerate(rows):
        x, y = 8.0, top + _LEGEND_ROW * i
        for shape, class_, meaning, width in row:
            sample = line(x - 6, y - 4, x + 12, y - 4, class_)
            elements += [mark(shape, x, y - 4, class_) if shape else sample]
            elements += [text(x + (12 if shape else 18), y, meaning, "small")]
            x += width
    shown_labels = {p.label for p in points}
    if absent_labels := [f.label for f in report.facts if f.state == "done" and f.label not in shown_labels]:
        sentence = shorten(f"not measured on the capability suite: {', '.join(absent_labels)}", 60)
        elements.append(text(2.0, top - _LEGEND_ROW, sentence, "small"))
    return elements
