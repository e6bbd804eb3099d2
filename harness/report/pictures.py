"""Shapes, axes and colours of a report's SVG pictures, and its heat map.

Invariant: every text is cleaned and escaped here; colour never says anything alone. Coordinates are pixels, y
grows downwards. A picture names classes only, so it fits a light page, a dark page and paper.
Source: Okabe & Ito 2008, colour universal design (blue, vermilion, orange, bluish green).
"""

from collections.abc import Iterable
from html import escape
from math import ceil, floor, log10
from pathlib import Path
from typing import NamedTuple

from rich.cells import cell_len

from harness import formatting
from harness.analysis.candidate_facts import is_fine_tuned
from harness.analysis.estimators import orient
from harness.formatting import tick
from harness.report.escape import clean
from harness.report.experiment_report import ExperimentReport
from harness.report.wording import best_first

# Pixels: the mean width of a letter by the class of its text, in DejaVu Sans, the widest of the fonts.
_WIDTHS = {"": 7.3, "strong": 8.2, "small": 6.7}
# A file of its own stands on white, whatever page shows it.
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
    """Return the range of values with some room on both sides, never empty."""
    known = list(values)
    low, high = min(known), max(known)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def axes(x: AxisScale, y: AxisScale, of_x: str, of_y: str) -> list[str]:
    """Draw both axes with round marks and their names."""
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
    """Draw a mark of the shape `dot`, `cross` or `diamond`."""
    if kind == "cross":
        arms = f"M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"
        return tag("path", d=arms, class_=f"mark cross {class_}")
    if kind == "diamond":
        return tag("path", d=f"M{x:.1f} {y - 6.5:.1f}l6 6.5l-6 6.5l-6 -6.5z", class_=f"mark {class_}")
    return tag("circle", cx=x, cy=y, r=5, class_=f"mark {class_}")


def group(said: str, *parts: str, class_: str = "") -> str:
    """Group shapes under a tooltip."""
    return tag("g", tag("title", escape(clean(said))) + "".join(parts), class_=class_)


def picture(width: float, height: float, title: str, body: Iterable[str]) -> str:
    """Return an SVG of these elements; screen readers read the title."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(clean(title))}" class="picture">{"".join(body)}</svg>'
    )


def width_of(content: str, class_: str = "") -> float:
    """Estimate the largest width of a text of a class, in pixels."""
    return _WIDTHS[class_] * cell_len(content)


def rules() -> str:
    """Return the rules of all pictures, for a page that defines the colours."""
    return Path(__file__).with_name("picture.css").read_text(encoding="utf-8")


def standalone(picture: str) -> str:
    """Turn a picture into a file with its own rules and a white ground; an empty one stays empty."""
    if not picture:
        return ""
    head, _, body = picture.partition(">")
    ground = '<rect class="ground" x="-24" y="-16" width="100%" height="100%"/>'
    width, height = (float(part) for part in head.partition('viewBox="0 0 ')[2].partition('"')[0].split())
    padded = f'viewBox="-24 -16 {width + 48:.0f} {height + 32:.0f}" width="{width + 48:.0f}"'
    head = head.replace(f'viewBox="0 0 {width:.0f} {height:.0f}"', padded)
    return f"{head}><style>{_LIGHT}{rules()}</style>{ground}{body}\n"


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
    """Return every fine-tune's change on each task of the suites that is measured as a rate."""
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
