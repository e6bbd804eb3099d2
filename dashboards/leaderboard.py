"""Leaderboard: every run with its score, what it forgot, what it costs, and the gate's verdict.

Invariant: the page filters and lays out; its numbers come from `parts.board`.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import streamlit as st

from harness.numbers import OWN_UNITS, UNKNOWN, count, percent, plain, points
from harness.report import ExperimentReport
from harness.report.facts import last_line
from harness.report.verdicts import CLASSES
from parts import board, charts, controls, filters, project, texts

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler  # type: ignore[import-untyped]

_COLOURS = {"passes": "green", "fails": "red", "undecided": "orange"}
_VERDICTS = {word: _COLOURS[class_] for word, class_ in CLASSES.items()} | {UNKNOWN: "gray"}


def page() -> None:
    """Draw the page."""
    controls.heading("Leaderboard", "Candidates on the same items, the best on test first.")
    report, runs = _chosen(), project.runs()
    if not runs and report is None:
        controls.nothing("No runs yet.")
        return
    if report is not None:
        texts.say(last_line(report), "lead")
    of = filters.chosen(runs, report)
    rows = board.lines(of, report)
    if not rows:
        st.info("No run fits these filters.")
        return
    _table(rows)
    _picture(rows)


def _chosen() -> ExperimentReport | None:
    return controls.choose_report() if project.reports() else None


def _picture(rows: Sequence[dict[str, Any]]) -> None:
    known = [row for row in rows if row["score"] is not None][:25]
    if not known:
        return
    metric = known[0]["metric"]
    bars = [
        charts.Bar(row["candidate"], row["score"], row["low"], row["high"], row["said"])
        for row in known
        if row["metric"] == metric
    ]
    unit = "" if metric in OWN_UNITS else ", %"
    figure = charts.forest(
        {"score": bars}, f"{metric.replace('_', ' ')}{unit}, with 95 % interval", zero=False
    )
    charts.draw(figure, "leaderboard")


def _table(rows: Sequence[dict[str, Any]]) -> None:
    shown = [
        {
            **row,
            "interval": row["said"].partition(" ")[2],
            "champion": "★" if row["champion"] else "",
            "verdict": [row["verdict"]],
        }
        for row in rows
    ]
    number, text = st.column_config.NumberColumn, st.column_config.TextColumn
    columns = {
        "rank": number(
            "rank", width=55, help="Runs whose paired difference on the same items holds 0 share a rank."
        ),
        "champion": text("★", width=35, help="The champion: what gates compare with."),
        "candidate": text("candidate"),
        "verdict": st.column_config.MultiselectColumn(
            "verdict", options=list(_VERDICTS), color=list(_VERDICTS.values())
        ),
        "score": number("target", help="Score on the target's test items."),
        "interval": text("95 %"),
        "gain": number("vs best untrained", help="Paired difference in points."),
        "gain interval": text("95 %"),
        "forgetting": number("general ability", help="Mean change over the tasks that count."),
        "forgetting interval": text("95 %"),
        "usd": text("$/1k", help="USD for 1,000 requests."),
        "p50": text("p50", help="Median time of one request."),
    }
    order = [*columns, "method", "model", "created", "run"]
    picked = st.dataframe(
        _printed(rows, shown, order),
        column_config=columns,
        column_order=order,
        hide_index=True,
        placeholder="–",
        key="board",
        on_select="rerun",
        selection_mode="multi-row",
        height=min(640, 38 + 35 * len(shown)),
    )
    left, right = st.columns([1, 5])
    with left:
        controls.offer_csv(rows, "leaderboard")
    chosen = [rows[i]["candidate"] for i in picked.selection.rows]
    if len(chosen) > 1 and right.button(f"Compare {count(len(chosen))} candidates", type="primary"):
        st.switch_page("compare.py", query_params={"compare": ",".join(chosen)})
    elif len(chosen) < 2:
        right.caption("Select rows to compare them. Click a head to sort.")


def _printed(
    rows: Sequence[dict[str, Any]], shown: Sequence[dict[str, Any]], order: Sequence[str]
) -> "Styler":
    """Print numbers as a report does; they stay numbers, so that a click on a head sorts them."""
    from pandas import DataFrame  # type: ignore[import-untyped]

    frame = DataFrame(shown, columns=order).astype(dict.fromkeys(_NUMBERS, float))
    style = frame.style.format({"rank": count, "forgetting": _points})
    for own, ways in ((False, _RATES), (True, _OWN)):
        of = [i for i, row in enumerate(rows) if (row["metric"] in OWN_UNITS) == own]
        style.format(ways, subset=(of, list(ways)))
    base = [i for i, row in enumerate(rows) if row["forgetting interval"] == board.BASE_WEIGHTS]
    return style.format(lambda _: "0", subset=(base, ["forgetting"]))


def _points(x: float) -> str:
    return points(x / 100)


_NUMBERS = ("rank", "score", "gain", "forgetting")
_RATES = {"score": lambda x: percent(x / 100), "gain": _points}
_OWN = {"score": plain, "gain": partial(plain, sign=True)}

page()
