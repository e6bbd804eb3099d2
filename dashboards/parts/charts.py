"""Plotly charts of results; light and dark come from Streamlit's theme.

A mark or a word repeats what a colour says. Source: Okabe & Ito 2008, colour universal design.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import plotly.graph_objects as go
import streamlit as st

from harness.report.escape import clean, shorten

SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7a00", "#7f7f7f")
BAD, QUIET = "#d55e00", "#8c96a0"

_ROW = 30
_NIGHTS_DRAWN = (0.24, 0.86)  # share of the height; alarms are above it, dates and commits below
_NIGHT_ROW = 0.045  # share of the height of a line of text
Curves = tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float]]]  # by step: training, validation


class Bar(NamedTuple):
    """A value with its interval and hover text; `margin` is the largest acceptable loss."""

    name: str
    value: float
    low: float
    high: float
    hover: str
    margin: float | None = None


def plain(text: str, width: int = 40) -> str:
    """Clean and escape a name for Plotly, which reads some markup."""
    return escape(shorten(clean(text), width), quote=False)


def draw(figure: go.Figure, name: str, height: int | None = None) -> None:
    """Draw a chart; its button saves it as PNG without a network."""
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


def forest(series: Mapping[str, Sequence[Bar]], axis: str) -> go.Figure:
    """Draw values with intervals, one line per name, the first on top; series are offset."""
    names = list(dict.fromkeys(bar.name for bars in series.values() for bar in bars))
    figure, step = go.Figure(), 0.62 / max(1, len(series))
    for i, (label, bars) in enumerate(series.items()):
        colour, shift = SERIES[i % len(SERIES)], (i - (len(series) - 1) / 2) * step
        figure.add_scatter(
            x=[bar.value for bar in bars],
            y=[names.index(bar.name) + shift for bar in bars],
            error_x={
                "type": "data", "symmetric": False, "thickness": 2, "width": 0,
                "array": [bar.high - bar.value for bar in bars],
                "arrayminus": [bar.value - bar.low for bar in bars],
            },
            mode="markers",
            marker={"size": 9, "color": colour, "symbol": ("circle", "diamond", "square", "x")[i % 4]},
            name=plain(label),
            text=[f"{plain(label)}<br>{plain(bar.name)}: {plain(bar.hover, 90)}" for bar in bars],
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    every = [bar for bars in series.values() for bar in bars]
    margins = {bar.name: bar.margin for bar in every if bar.margin is not None}
    lowest = min([bar.low for bar in every] + [-m for m in margins.values()], default=0.0)
    for name, margin in margins.items():  # losses beyond it are shaded
        y = names.index(name)
        figure.add_shape(
            type="rect", x0=lowest - 0.05 * abs(lowest), x1=-margin, y0=y - 0.46, y1=y + 0.46,
            fillcolor=BAD, opacity=0.10, line_width=0, layer="below",
        )  # fmt: skip
        figure.add_shape(
            type="line", x0=-margin, x1=-margin, y0=y - 0.46, y1=y + 0.46,
            line={"color": BAD, "width": 1.5, "dash": "dot"},
        )  # fmt: skip
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=[plain(name, 34) for name in names],
        range=[len(names) - 0.4, -0.6],
        showgrid=False,
        zeroline=False,
    )
    figure.update_xaxes(title=axis, zeroline=True, zerolinewidth=1.5, zerolinecolor=QUIET, rangemode="tozero")
    figure.update_layout(
        height=110 + max(_ROW, 14 * len(series) + 12) * len(names), showlegend=len(series) > 1
    )
    return figure


def curves(series: Mapping[str, Curves], axis: str) -> go.Figure:
    """Draw losses by step: training as a line, validation with hollow marks, one colour per candidate."""
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
    figure.update_yaxes(title=axis)
    figure.update_layout(height=420, showlegend=True)
    return figure


def costs(lines: Mapping[str, tuple[float, float]], most: float, marks: Mapping[str, float]) -> go.Figure:
    """Draw the cost of requests in USD: each line is a one-off cost plus a cost per request."""
    figure = go.Figure()
    for i, (label, (once, each)) in enumerate(lines.items()):
        figure.add_scatter(
            x=[0, most], y=[once, once + each * most], mode="lines", name=plain(label),
            line={"color": SERIES[i % len(SERIES)], "width": 2.5},
            hovertemplate="%{x:,.0f} requests: %{y:.4g} USD<extra>" + plain(label) + "</extra>",
        )  # fmt: skip
    for i, (name, n_requests) in enumerate(marks.items()):
        if 0 <= n_requests <= most:
            figure.add_vline(x=n_requests, line={"color": QUIET, "dash": "dot", "width": 1.5})
            figure.add_annotation(
                x=n_requests, y=1 - 0.08 * i, yref="paper", text=plain(name), showarrow=False, xanchor="left",
                xshift=5,
            )  # fmt: skip
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
    """Draw changes by night with their bands, texts of alarms above the plot, of new code below it."""
    figure = go.Figure()
    for i, (label, bars) in enumerate(series.items()):
        colour, dates = SERIES[i % len(SERIES)], [bar.name for bar in bars]
        figure.add_scatter(
            x=[*dates, *dates[::-1]], y=[*(b.high for b in bars), *(b.low for b in reversed(bars))],
            fill="toself", mode="lines", fillcolor=colour, opacity=0.14, line={"width": 0}, hoverinfo="skip",
            showlegend=False, legendgroup=label,
        )  # fmt: skip
        figure.add_scatter(
            x=dates, y=[bar.value for bar in bars], mode="lines+markers", name=plain(label),
            legendgroup=label, line={"color": colour, "width": 2},
            text=[plain(bar.hover, 90) for bar in bars],
            hovertemplate="%{x}: %{text}<extra>" + plain(label) + "</extra>",
        )  # fmt: skip
    for night in missed:
        figure.add_vline(x=night, line={"color": QUIET, "width": 6}, opacity=0.25)
    drawn = sorted({bar.name for bars in series.values() for bar in bars})
    low, high = _NIGHTS_DRAWN
    for i, (night, text) in enumerate(changes):
        figure.add_vline(x=night, line={"color": QUIET, "dash": "dot", "width": 1})
        _name_night(figure, drawn, night, plain(text), y=_NIGHT_ROW * (2 - i % 3), font={"size": 11})
    for i, (night, text) in enumerate(alarms):
        figure.add_vline(x=night, line={"color": BAD, "width": 2})
        font = {"color": BAD, "size": 12}
        _name_night(figure, drawn, night, f"<b>{plain(text)}</b>", y=high + _NIGHT_ROW * (i % 3), font=font)
    figure.update_yaxes(
        title="change, points", zeroline=True, zerolinecolor=QUIET, zerolinewidth=1.5, domain=[low, high]
    )
    figure.update_xaxes(type="date")
    figure.update_layout(height=480, showlegend=True)
    return figure


def _name_night(figure: go.Figure, drawn: Sequence[str], night: str, text: str, **how: Any) -> None:
    """Write a text at a night, on the side towards the middle so that no edge cuts it."""
    late = bool(drawn) and night > drawn[len(drawn) // 2]
    figure.add_annotation(
        x=night, yref="paper", text=text, showarrow=False, yanchor="bottom",
        xanchor="right" if late else "left", xshift=4 if late else -4, **how,
    )  # fmt: skip
