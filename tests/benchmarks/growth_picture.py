"""How a time grows, as a picture: seconds by a number of things, a line for each who was timed.

Invariant: both axes begin at 0, every point is drawn, and a line is named at its end.
"""

from collections.abc import Mapping, Sequence

from harness import formatting
from harness.report.pictures import AxisScale, group, line, mark, marks, path, picture, standalone, tag, text

_WIDTH, _HEIGHT = 480.0, 260.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 396.0, 34.0, 214.0
_APART = 15.0  # pixels between two names
_RULES = (
    ".picture .first{fill:var(--gain);stroke:var(--gain)}.picture .second{fill:var(--loss);stroke:var(--loss)}"
    ".picture polyline.first,.picture polyline.second{fill:none;stroke-width:2}"
    ".picture polyline.second{stroke-dasharray:5 3}"
)
_SERIES = (("first", "dot"), ("second", "diamond"))
Points = Sequence[tuple[float, float]]


def growth_picture(what: str, series: Mapping[str, Points]) -> str:
    """Draw at most two series of (number of things, seconds), each named, as an SVG file of its own."""
    values = [point for points in series.values() for point in points]
    x = AxisScale(0, max(n for n, _ in values), _LEFT, _RIGHT)
    y = AxisScale(0, 1.05 * max(s for _, s in values), _BOTTOM, _TOP)
    body = [tag("style", _RULES), *_axes(what, x, y)]
    ends = _places([y(points[-1][1]) for points in series.values()])
    for (name, points), (class_, shape), end in zip(series.items(), _SERIES, ends, strict=False):
        body.append(path(((x(n), y(s)) for n, s in points), class_))
        body += [
            group(_describe_point(name, what, *p), mark(shape, x(p[0]), y(p[1]), class_)) for p in points
        ]
        body.append(text(_RIGHT + 12, end + 4, name, "strong"))
    return standalone(picture(_WIDTH, _HEIGHT, f"Seconds by {what}", body))


def _places(ends: Sequence[float]) -> list[float]:
    """Move the lower one of two names down where they would cover each other."""
    if len(ends) < 2 or abs(ends[0] - ends[1]) >= _APART:
        return list(ends)
    lower = ends.index(max(ends))
    return [end + _APART * (i == lower) for i, end in enumerate(ends)]


def _describe_point(name: str, what: str, n: float, seconds: float) -> str:
    return f"{name}, {what} {formatting.count(n)}: {formatting.seconds(seconds)}"


def _axes(what: str, x: AxisScale, y: AxisScale) -> list[str]:
    out = [text(0, 14, "seconds", "head"), text((_LEFT + _RIGHT) / 2, _HEIGHT - 6, what, "head", "middle")]
    values, step = marks(y.low, y.high, 4)
    for value in values:
        out.append(line(_LEFT, y(value), _RIGHT, y(value), "zero" if value == 0 else "grid"))
        out.append(text(_LEFT - 8, y(value) + 4, formatting.tick(value, step), "tick", "end"))
    values, step = marks(x.low, x.high, 5)
    out += [text(x(v), _BOTTOM + 18, formatting.tick(v, step), "tick", "middle") for v in values]
    return out
