"""The gain on the target against the change on the capability suite, with the Pareto front.

Invariant: only what was measured on the capability suite is drawn; a candidate that another one matches in
both and beats in one is grey.
Source: Pareto 1906; the front is that of `stats.pareto_front`
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from harness import formatting, stats
from harness.analysis.estimators import Estimate
from harness.report import pictures
from harness.report.document import CLASSES
from harness.report.escape import shorten, shorten_for_picture
from harness.report.experiment_report import ExperimentReport
from harness.report.pictures import AxisScale, group, line, mark, marks, path, picture, standalone, text
from harness.report.wording import best_first, verdict_word

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


WIDE = Frame(860.0, 460.0, 62.0, 840.0, 92.0, 388.0, 34)  # a file of its own
NARROW = Frame(500.0, 458.0, 44.0, 488.0, 64.0, 350.0, 20)  # beside a table
Lines = Sequence[Sequence[Point]]  # each the scales of one adapter, in order


class Box(NamedTuple):
    """The room that a label takes, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Tell whether two boxes share room."""
        beside = self.right <= other.left or other.right <= self.left
        return not beside and self.top < other.bottom and other.top < self.bottom


def front(report: ExperimentReport, frame: Frame = WIDE, lines: Lines = ()) -> str:
    """Draw the picture, with lines through the scales of adapters; empty where nothing can be compared."""
    points = points_of(report)
    if not points:
        return ""
    rate, everything = report.unit.scale, [*points, *(p for family in lines for p in family)]
    ends = (frame.left, frame.right)
    left_right = ends if report.unit.higher_is_better else ends[::-1]  # right is better
    low, high = pictures.pad_range(rate * end for p in everything for end in (p.target.low, p.target.high))
    x = AxisScale(*((low, high) if rate == 1 else (max(low, -2.0), min(high, 100.0))), *left_right)
    changes = [100 * end for p in everything for end in (p.kept.low, p.kept.high)]
    lowest, highest = pictures.pad_range([0.0, -100 * (report.macro_margin or 0.0), *changes])
    y = AxisScale(lowest, highest, frame.bottom, frame.top)
    at = [(x(rate * p.target.score), y(100 * p.kept.score)) for p in points]
    body = _axes(report, frame, x, y)
    if report.macro_margin is not None:
        beyond = y(-100 * report.macro_margin)
        sentence = f"margin of the gate: {formatting.points(-report.macro_margin)} points"
        body += [
            pictures.rect(frame.left, beyond, frame.right - frame.left, frame.bottom - beyond, "beyond"),
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
    return picture(
        frame.width, frame.height, "Score on the target against the change on the capability suite", body
    )


def front_file(report: ExperimentReport, frame: Frame = WIDE, lines: Lines = ()) -> str:
    """Draw the picture as a file of its own, on white, as a README shows it; empty where there is none."""
    return standalone(front(report, frame, lines))


def points_of(report: ExperimentReport) -> list[Point]:
    """List what can be drawn, the front first."""
    drawn = [
        (f, f.target, f.verdict.macro)
        for f in best_first(report)
        if f.state == "done" and f.target and f.verdict and f.verdict.macro
    ]
    goals = [(target.unit.sign * target.score, kept.score) for _, target, kept in drawn]
    best = set(stats.pareto_front(goals)) if goals else set()
    chosen = report.decision.candidate if report.decision and not report.smoke else None
    points = [
        Point(f.label, target, kept, verdict_word(f), i in best, f.name == chosen)
        for i, (f, target, kept) in enumerate(drawn)
    ]
    return sorted(points, key=lambda p: not p.on_front)


def _axes(report: ExperimentReport, frame: Frame, x: AxisScale, y: AxisScale) -> list[str]:
    target = f"target: {report.metric.replace('_', ' ')}{report.unit.axis} →"
    out = [
        text(0, 18, "capability suite: change of the mean of the tasks that count, points ↑", "head"),
        text(frame.right, frame.bottom + 38, target, "head", "end"),
    ]
    values, step = marks(y.low, y.high)
    for value in values:
        class_ = "zero" if abs(value) < step / 2 else "grid"
        out.append(line(frame.left, y(value), frame.right, y(value), class_))
        out.append(text(frame.left - 8, y(value) + 4, formatting.tick(value, step, sign=True), "tick", "end"))
    values, step = marks(x.low, x.high, 10)
    for value in values:
        out.append(line(x(value), frame.bottom, x(value), frame.bottom + 5, "zero"))
        out.append(text(x(value), frame.bottom + 18, formatting.tick(value, step), "tick", "middle"))
    return out


def _class(p: Point) -> str:
    return _CLASSES[p.verdict] if p.on_front else "dominated"


def _mark(report: ExperimentReport, p: Point, x: float, y: float) -> str:
    score = formatting.score(report.unit, *p.target[:3])
    kept = formatting.points(*p.kept[:3])
    words = f"{p.label}: target {score}, capability suite {kept} points, {p.verdict}"
    ring = [pictures.tag("circle", cx=x, cy=y, r=10.5, class_="ring")] if p.recommended else []
    return group(words, *ring, mark(_SHAPES[_CLASSES[p.verdict]], x, y, _class(p)))


def _labels(points: Sequence[Point], frame: Frame, at: Sequence[tuple[float, float]]) -> list[str]:
    """Write each name where it hides nothing; one that had to move gets a line to its mark."""
    taken = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in at]
    lines, names = [], []
    short = shorten_for_picture([p.label for p in points], frame.longest)
    for p, shown, (x, y) in zip(points, short, at, strict=True):
        name = shown + (" (recommended)" if p.recommended else "")
        box, moved = _free(pictures.width_of(name, "strong" if p.on_front else ""), x, y, frame, taken)
        taken.append(box)
        if moved:
            start, end = (y - 7, box.bottom) if box.bottom < y else (y + 7, box.top)
            lines.append(line(x, start, min(max(x, box.left + 6), box.right - 6), end, "leader"))
        names.append(text(box.left + 2, box.bottom - 4, name, "over strong" if p.on_front else "over quiet"))
    return [*lines, *names]


def _free(width: float, x: float, y: float, frame: Frame, taken: Sequence[Box]) -> tuple[Box, bool]:
    """Find room above a mark, the nearest first, then below it; say whether a line has to lead there."""
    tops = [y - 28 - 17 * i for i in range(20)] + [y + 12 + 17 * i for i in range(20)]
    for top in tops:
        for left in (x - width / 2, x - 10, x + 10 - width):
            box = Box(left, top, left + width + 4, top + 16)
            is_inside = box.left >= 2 and box.right <= frame.width and 24 <= box.top <= frame.bottom - 16
            if is_inside and not any(box.overlaps(other) for other in taken):
                return box, top not in (tops[0], tops[20])
    return Box(x + 12, y - 10, x + 16 + width, y + 6), False


class _Key(NamedTuple):
    """An entry of the legend: a mark's shape, empty for a line, its class and its meaning."""

    shape: str
    class_: str
    said: str

    @property
    def width(self) -> float:
        """The room that it takes in a row, in pixels."""
        return pictures.width_of(self.said, "small") + (26 if self.shape else 44)


def _legend(report: ExperimentReport, frame: Frame, points: Sequence[Point], scaled: bool) -> list[str]:
    """Explain the marks that are there, in as many rows as they take, and name what is not in the picture."""
    rows: list[list[_Key]] = [[]]
    shown_words = {p.verdict for p in points}
    keys = [
        _Key(_SHAPES[_CLASSES[word]], _CLASSES[word], sentence)
        for word, sentence in _MEANINGS.items()
        if word in shown_words
    ]
    keys += [] if all(p.on_front for p in points) else [_Key("dot", "dominated", "dominated")]
    keys.append(_Key("", "front", "front"))
    keys += [_Key("", "leader", "one fine-tune, scaled")] if scaled else []
    for key in keys:
        if sum(one.width for one in rows[-1]) + key.width > frame.right:
            rows.append([])
        rows[-1].append(key)
    top, out = frame.height - 10 - _LEGEND_ROW * (len(rows) - 1), []
    for i, row in enumerate(rows):
        x, y = 8.0, top + _LEGEND_ROW * i
        for key in row:
            sample = line(x - 6, y - 4, x + 12, y - 4, key.class_)
            out += [mark(key.shape, x, y - 4, key.class_) if key.shape else sample]
            out += [text(x + (12 if key.shape else 18), y, key.said, "small")]
            x += key.width
    shown = {p.label for p in points}
    if absent := [f.label for f in report.facts if f.state == "done" and f.label not in shown]:
        sentence = shorten(f"not measured on the capability suite: {', '.join(absent)}", 60)
        out.append(text(2.0, top - _LEGEND_ROW, sentence, "small"))
    return out
