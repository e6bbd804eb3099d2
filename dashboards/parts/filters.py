"""The filters of the leaderboard: which of the stored runs are shown.

Invariant: what is chosen stands in the page's address, as Streamlit writes it there.
"""

from collections.abc import Callable, Sequence

import streamlit as st

from harness.records import Run
from harness.report import ExperimentReport
from harness.report.escape import clean
from parts import controls

_FACETS: dict[str, Callable[[Run], str]] = {
    "experiment": lambda run: run.experiment,
    "model": lambda run: run.base_model,
    "method": lambda run: run.method,
    "seed": lambda run: str(run.seed),
}


def chosen(runs: Sequence[Run], report: ExperimentReport | None) -> list[Run]:
    """Let runs be filtered; without a filter the report's are shown."""
    reported = {f.run_id for f in report.facts} if report is not None else set()
    shown = controls.runs_of(report, runs)
    with st.expander("Filters"):
        everything = st.toggle(
            "All stored runs, not only the report's", value=not shown, key="all_runs", bind="query-params"
        )
        pool = [run for run in runs if everything or report is None or run.run_id in reported]
        columns = st.columns(5)
        for column, (title, pick) in zip(columns, _FACETS.items(), strict=False):
            options = sorted({pick(run) for run in pool})
            key = f"filter_{title}"
            picked = column.multiselect(title, options, key=key, format_func=clean, bind="query-params")
            pool = [run for run in pool if not picked or pick(run) in picked]
        since = columns[-1].text_input(
            "created since", placeholder="2026-01-31", key="filter_since", bind="query-params"
        )
        return [run for run in pool if run.created >= since]
