"""Pictures of results, for Plotly; light and dark come from Streamlit's theme.

Invariant: nothing is computed here but places on paper; colours are told apart by colour-blind readers,
and what a colour says a mark or a word says too; a text has a contrast of 4.5 to its ground (WCAG 2.2).

Source: Okabe & Ito 2008, colour universal design.
"""

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

import plotly.graph_objects as go
import streamlit as st

from harness.formatting import Unit
from harness.report import WORDS
from harness.report.escape import clean, shorten
from harness.report.plots.heat_map import Cell, Heat
from harness.report.plots.pareto_front import Point
from parts.safe_text import COLOURS

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7a00", "#7f7f7f")
BAD, QUIET = "#d55e00", "#8c96a0"
LOST, UNCHANGED, GAINED = "#c44a00", "#f7f7f7", "#0072b2"  # vermilion, white, blue
_BLACK, _WHITE = "#000000", "#ffffff"

_MARKS = {
    "pass": ("circle", COLOURS["passes"], "passes the gate"),
    "fail": ("x", COLOURS["fails"], "fails the gate"),
    "inconclusive": ("diamond", COLOURS["undecided"], "undecided"),
    "harness-drift": ("square", COLOURS["undecided"], "the harness drifted"),
    "skipped": ("circle", QUIET, "base weights"),
}
_HEAT = ((0.0, LOST), (0.5, UNCHANGED), (1.0, GAINED))
_ROW = 30
_NIGHTS_DRAWN = (0.24, 0.86)  # of the height; above alarms are named, below are dates and commits
_NIGHT_ROW = 0.045  # of the height, one line of words
Lines = Sequence[Sequence[Point]]  # each the scales of one adapter, in order
Curves = tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float]]]  # by step: training, validation


class Bar(NamedTuple):
    """A value with its interval, on one line of a picture; `margin` is the loss that is too much."""

    name: str
    value: float
    low: float
    high: float
    said: str
    margin: float | None = None


def plain(text: str, width: int = 40) -> str:
    """Make a name harmless for Plotly, which reads some markup."""
    return escape(shorten(clean(text), width), quote=False)


def draw(figure: go.Figure, name: str, height: int | None = None) -> None:
    """Put a picture on the page; its button saves it as PNG without a network."""
    figure.update_layout(
        margin={"l": 8, "r": 8, "t": 34, "b": 8},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "title": None},
        hoverlabel={"namelength": -1},
        **({"height": height} if height else {}),
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    image = {"format": "png", "scale": 2, "filename": name}
    config = {
        "displaylogo": False,
        "toImageButtonOptions": image,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    }
    st.plotly_chart(figure, key=f"picture_{name}", config=config)


def forest(series: Mapping[str, Sequence[Bar]], axis: str, *, zero: bool = True) -> go.Figure:
    """Draw values with intervals, a line each, the first on top; series lie beside each other."""
    names = list(dict.fromkeys(bar.name for bars in series.values() for bar in bars))
    figure, step = go.Figure(), 0.62 / max(1, len(series))
    for i, (label, bars) in enumerate(series.items()):
        colour, shift = SERIES[i % len(SERIES)], (i - (len(series) - 1) / 2) * step
        figure.add_scatter(
            x=[bar.value for bar in bars],
            y=[names.index(bar.name) + shift for bar in bars],
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [bar.high - bar.value for bar in bars],
                "arrayminus": [bar.value - bar.low for bar in bars],
                "thickness": 2,
                "width": 0,
            },
            mode="markers",
            marker={"size": 9, "color": colour, "symbol": ("circle", "diamond", "square", "x")[i % 4]},
            name=plain(label),
            text=[f"{plain(label)}<br>{plain(bar.name)}: {plain(bar.said, 90)}" for bar in bars],
            hovertemplate="%{text}<extra></extra>",
        )
    _margins(figure, names, [bar for bars in series.values() for bar in bars])
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[plain(name, 34) for name in names],
        range=[len(names) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(
        title=axis,
        zeroline=zero,
        zerolinewidth=1.5,
        zerolinecolor=QUIET,
        rangemode="tozero" if zero else "normal",
    )
    figure.update_layout(
        height=110 + max(_ROW, 14 * len(series) + 12) * len(names), showlegend=len(series) > 1
    )
    return figure


def _margins(figure: go.Figure, names: Sequence[str], bars: Sequence[Bar]) -> None:
    """Shade what lies beyond each line's margin."""
    margins = {bar.name: bar.margin for bar in bars if bar.margin is not None}
    if not margins:
        return
    lowest = min([bar.low for bar in bars] + [-m for m in margins.values()])
    left = lowest - 0.05 * abs(lowest)
    for name, margin in margins.items():
        at = names.index(name)
        figure.add_shape(
            type="rect", x0=left, x1=-margin, y0=at - 0.46, y1=at + 0.46,
            fillcolor=BAD, opacity=0.10, line_width=0, layer="below",
        )  # fmt: skip
        figure.add_shape(
            type="line", x0=-margin, x1=-margin, y0=at - 0.46, y1=at + 0.46,
            line={"color": BAD, "width": 1.5, "dash": "dot"},
        )  # fmt: skip


def heat(of: Heat) -> go.Figure:
    """Draw tasks × candidates: blue gained, vermilion lost, numbers in the cells, intervals on hover."""
    rows = [list(cells) for _, cells in of.rows]
    shown = [[_change(c) if c else "" for c in cells] for cells in rows]
    figure = go.Figure(
        go.Heatmap(
            z=[[c.strength if c else None for c in cells] for cells in rows],
            x=[plain(label) for label in of.labels],
            y=[plain(task) for task, _ in of.rows],
            text=shown,
            texttemplate="%{text}",
            customdata=[[plain(c.said, 120) if c else "" for c in cells] for cells in rows],
            hovertemplate="%{y}, %{x}<br>%{customdata}<extra></extra>",
            colorscale=list(_HEAT),
            zmin=-1,
            zmax=1,
            xgap=3,
            ygap=3,
            showscale=False,
            textfont={"size": 14},
        )
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(side="top", showgrid=False)
    figure.update_layout(height=90 + 38 * len(of.rows))
    return figure


def _change(of: Cell) -> str:
    """Write a cell's number in a colour that can be read on the cell's own."""
    ink = readable_on(choose_color(of.strength))
    return f'<span style="color:{ink}">' + (f"<b>{of.change}</b>" if of.shown else of.change) + "</span>"


def front(points: Sequence[Point], metric: str, margin: float | None, lines: Lines) -> go.Figure:
    """Draw the target against the capability suite with intervals, the front and interpolated scales."""
    figure, unit = go.Figure(), points[0].target.unit
    rate = unit.scale
    for i, family in enumerate(lines):
        figure.add_scatter(
            x=[rate * p.target.score for p in family], y=[100 * p.kept.score for p in family],
            mode="lines+markers", line={"color": QUIET, "dash": "dot"}, marker={"size": 6},
            name="one fine-tune, scaled", legendgroup="scaled", showlegend=i == 0,
            text=[plain(p.label) for p in family],
            hovertemplate=_hover("text", unit),
        )  # fmt: skip
    best = [(rate * p.target.score, 100 * p.kept.score) for p in points if p.on_front]
    best.sort(key=lambda at: (unit.sign * at[0], at[1]))
    if len(best) > 1:
        figure.add_scatter(
            x=[x for x, _ in best], y=[y for _, y in best], mode="lines", name="front", hoverinfo="skip",
            line={"color": SERIES[0], "shape": "vh", "width": 1.5},
        )  # fmt: skip
    names = _names(points)
    places = _places(points, names)
    for outcome, (symbol, colour, said) in _MARKS.items():
        of = [p for p in points if p.verdict == WORDS[outcome]]
        if of:
            shown = [names[p.label] if p.label in places else "" for p in of]
            _add_points(figure, of, shown, places, _Mark(symbol, colour, said), unit)
    ringed = [p for p in points if p.recommended]
    figure.add_scatter(
        x=[rate * p.target.score for p in ringed], y=[100 * p.kept.score for p in ringed], mode="markers",
        marker={"symbol": "circle-open", "size": 20, "color": SERIES[0], "line": {"width": 2}},
        name="recommended", showlegend=bool(ringed), hoverinfo="skip",
    )  # fmt: skip
    if margin is not None:
        figure.add_hline(y=-100 * margin, line={"color": BAD, "dash": "dot", "width": 1.5})
        figure.add_annotation(
            x=1, xref="paper", y=-100 * margin, text="margin of the gate", showarrow=False, yshift=-10,
            xanchor="right", font={"size": 12},
        )  # fmt: skip
    figure.update_xaxes(
        title=f"target: {plain(metric.replace('_', ' '))}{unit.axis} →", zeroline=False,
        autorange=True if unit.higher_is_better else "reversed",
    )  # fmt: skip
    figure.update_yaxes(title="change on the capability suite, points ↑", zeroline=True, zerolinecolor=QUIET)
    figure.update_layout(height=560)
    return figure


def _hover(name: str, unit: Unit) -> str:
    target = "%{x:.1f}" if unit.is_rate else "%{x:.3f}"
    return f"%{{{name}}}<br>target {target}, change %{{y:+.1f}}<extra></extra>"


class _Mark(NamedTuple):
    symbol: str
    colour: str
    said: str


def _places(points: Sequence[Point], names: Mapping[str, str]) -> dict[str, str]:
    """Choose for each name a place beside its mark where it hides no other, and fewest whiskers cross it.

    A name that would hide another everywhere is left out: the table and a look at its mark have it.
    """
    across = [end for p in points for end in (p.target.low, p.target.high)]
    down = [end for p in points for end in (p.kept.low, p.kept.high)] + [0.0]
    wide, high = 800 / (max(across) - min(across) or 1.0), 400 / (max(down) - min(down) or 1.0)
    wide *= points[0].target.unit.sign  # right is better
    at = [(wide * p.target.score, -high * p.kept.score) for p in points]
    taken, whiskers = [(x - 8, y - 8, x + 8, y + 8) for x, y in at], []
    for p, (x, y) in zip(points, at, strict=True):
        left, right = sorted((wide * p.target.low, wide * p.target.high))
        whiskers.append((left, y - 2, right, y + 2))
        whiskers.append((x - 2, -high * p.kept.high, x + 2, -high * p.kept.low))
    for (x, y), (_, below) in pairwise(sorted(xy for p, xy in zip(points, at, strict=True) if p.on_front)):
        whiskers.append((x - 6, y, x + 6, below))  # where the front falls
    places: dict[str, str] = {}
    for p, (x, y) in zip(points, at, strict=True):
        if not names[p.label]:
            continue
        half = 3.6 * len(names[p.label])
        boxes = {
            f"{v} {h}": (x + dx * (half + 8) - half, y + dy - 7, x + dx * (half + 8) + half, y + dy + 7)
            for h, dx in (("right", 1), ("left", -1), ("center", 0))
            for v, dy in (("top", -16), ("bottom", 16))
        }
        free = [name for name, box in boxes.items() if not any(_overlap(box, other) for other in taken)]
        crossed = {name: sum(_overlap(boxes[name], line) for line in whiskers) for name in free}
        if free:
            places[p.label] = min(free, key=crossed.__getitem__)
            taken.append(boxes[places[p.label]])
    return places


def _names(of: Sequence[Point]) -> dict[str, str]:
    """Name each mark by its label; marks in one place are named together, once."""
    together: dict[tuple[float, float], list[Point]] = {}
    for p in of:
        together.setdefault((p.target.score, p.kept.score), []).append(p)
    return {
        p.label: ", ".join(plain(q.label) + " (recommended)" * q.recommended for q in there) * (there[0] is p)
        for p in of
        for there in [together[p.target.score, p.kept.score]]
    }


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _add_points(
    figure: go.Figure,
    of: Sequence[Point],
    names: Sequence[str],
    places: Mapping[str, str],
    mark: _Mark,
    unit: Unit,
) -> None:
    def ends(pick: str, scale: float) -> dict[str, Any]:
        both = [getattr(p, pick) for p in of]
        return {
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 0,
            "array": [scale * (e.high - e.score) for e in both],
            "arrayminus": [scale * (e.score - e.low) for e in both],
        }  # fmt: skip

    figure.add_scatter(
        x=[unit.scale * p.target.score for p in of],
        y=[100 * p.kept.score for p in of],
        error_x=ends("target", unit.scale),
        error_y=ends("kept", 100),
        mode="markers+text",
        marker={"symbol": mark.symbol, "color": mark.colour, "size": 11},
        text=names,
        customdata=[plain(p.label) for p in of],
        textposition=[places.get(p.label, "middle right") for p in of],
        name=mark.said,
        hovertemplate=_hover("customdata", unit),
    )  # fmt: skip


def curves(series: Mapping[str, Curves], axis: str) -> go.Figure:
    """Draw losses by step: training as a line, validation with marks, one colour a candidate.

    The marks are hollow and of several sizes: those of one place stand around each other. A line that no
    other of its candidate stands beside bears the candidate's name alone.
    """
    figure = go.Figure()
    both = any(validation for _, validation in series.values())
    for i, (label, (train, validation)) in enumerate(series.items()):
        colour = SERIES[i % len(SERIES)]
        name = f"{plain(label)}: training" if both else plain(label)
        figure.add_scatter(
            x=[x for x, _ in train], y=[y for _, y in train], mode="lines", name=name,
            line={"color": colour, "width": 2}, legendgroup=plain(label),
        )  # fmt: skip
        if validation:
            figure.add_scatter(
                x=[x for x, _ in validation], y=[y for _, y in validation], mode="lines+markers",
                name=f"{plain(label)}: validation", legendgroup=plain(label),
                line={"color": colour, "dash": "dot"},
                marker={"symbol": "diamond-open", "size": 9 + 6 * (i % 4), "line": {"width": 2.5}},
            )  # fmt: skip
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=axis, range=_settled_range(series))
    figure.update_layout(height=420, showlegend=True)
    return figure


def _settled_range(series: Mapping[str, Curves]) -> list[float] | None:
    """Return the range of values once a tenth of the steps is done: the first ones would flatten the rest."""
    points = [point for of in series.values() for curve in of for point in curve]
    last = max((step for step, _ in points), default=0)
    later = [value for step, value in points if step >= 0.1 * last]
    if not later:
        return None
    room = 0.06 * (max(later) - min(later)) or 0.06 * abs(later[0]) or 1.0
    return [min(later) - room, max(later) + room]


def costs(lines: Mapping[str, tuple[float, float]], most: float, marks: Mapping[str, float]) -> go.Figure:
    """Draw what requests cost: each line from what is spent once, rising by its cost a request, in USD."""
    figure = go.Figure()
    for i, (label, (once, each)) in enumerate(lines.items()):
        figure.add_scatter(
            x=[0, most], y=[once, once + each * most], mode="lines", name=plain(label),
            line={"color": SERIES[i % len(SERIES)], "width": 2.5},
            hovertemplate="%{x:,.0f} requests: %{y:.4g} USD<extra>" + plain(label) + "</extra>",
        )  # fmt: skip
    for i, (name, at) in enumerate(marks.items()):
        if 0 <= at <= most:
            figure.add_vline(x=at, line={"color": QUIET, "dash": "dot", "width": 1.5})
            figure.add_annotation(
                x=at,
                y=1 - 0.08 * i,
                yref="paper",
                text=plain(name),
                showarrow=False,
                xanchor="left",
                xshift=5,
            )
    figure.update_xaxes(title="requests", rangemode="tozero", tickformat=",")
    figure.update_yaxes(title="USD in all", rangemode="tozero")
    figure.update_layout(height=380)
    return figure


def nights(
    series: Mapping[str, Sequence[Bar]],
    changes: Sequence[tuple[str, str]],
    alarms: Sequence[tuple[str, str]],
    missed: Sequence[str],
) -> go.Figure:
    """Draw changes by night with their bands.

    `changes` and `alarms` are nights with what is said of them: alarms above what is drawn, new code below.
    """
    figure = go.Figure()
    for i, (label, bars) in enumerate(series.items()):
        colour, at = SERIES[i % len(SERIES)], [bar.name for bar in bars]
        figure.add_scatter(
            x=[*at, *at[::-1]], y=[*(b.high for b in bars), *(b.low for b in reversed(bars))], fill="toself",
            mode="lines", fillcolor=colour, opacity=0.14, line={"width": 0}, hoverinfo="skip",
            showlegend=False, legendgroup=label,
        )  # fmt: skip
        figure.add_scatter(
            x=at, y=[bar.value for bar in bars], mode="lines+markers", name=plain(label), legendgroup=label,
            line={"color": colour, "width": 2}, text=[plain(bar.said, 90) for bar in bars],
            hovertemplate="%{x}: %{text}<extra>" + plain(label) + "</extra>",
        )  # fmt: skip
    for night in missed:
        figure.add_vline(x=night, line={"color": QUIET, "width": 6}, opacity=0.25)
    drawn = sorted({bar.name for bars in series.values() for bar in bars})
    low, high = _NIGHTS_DRAWN
    for i, (night, said) in enumerate(changes):
        figure.add_vline(x=night, line={"color": QUIET, "dash": "dot", "width": 1})
        _name_night(figure, drawn, night, plain(said), y=_NIGHT_ROW * (2 - i % 3), font={"size": 11})
    for i, (night, said) in enumerate(alarms):
        figure.add_vline(x=night, line={"color": BAD, "width": 2})
        font = {"color": BAD, "size": 12}
        _name_night(figure, drawn, night, f"<b>{plain(said)}</b>", y=high + _NIGHT_ROW * (i % 3), font=font)
    figure.update_yaxes(
        title="change, points", zeroline=True, zerolinecolor=QUIET, zerolinewidth=1.5, domain=[low, high]
    )
    figure.update_xaxes(type="date")
    figure.update_layout(height=480, showlegend=True)
    return figure


def _name_night(figure: go.Figure, drawn: Sequence[str], night: str, said: str, **how: Any) -> None:
    """Write a few words at a night, towards the middle of what is drawn so that no edge cuts them."""
    late = bool(drawn) and night > drawn[len(drawn) // 2]
    figure.add_annotation(
        x=night, yref="paper", text=said, showarrow=False, yanchor="bottom",
        xanchor="right" if late else "left", xshift=4 if late else -4, **how,
    )  # fmt: skip


def choose_color(strength: float) -> str:
    """Return the colour of a change from -1 (lost) over 0 to 1 (gained), as Plotly blends it."""
    share = abs(strength)
    pairs = zip(_channels(UNCHANGED), _channels(GAINED if strength > 0 else LOST), strict=True)
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def readable_on(colour: str) -> str:
    """Choose black or white, whichever stands out more on a colour: one of them always has 4.5 : 1."""
    return max(_BLACK, _WHITE, key=lambda ink: contrast(ink, colour))


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours, from 1 to 21."""
    low, high = sorted(map(_luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    shares = [c / 255 for c in _channels(colour)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))
