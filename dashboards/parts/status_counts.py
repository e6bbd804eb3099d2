"""Answers that are no answers: how many of a task's were cut, declined, failed or not to be read.

Invariant: counts come from the stored rows; the base's own stand beside them.
"""

from collections.abc import Mapping

import streamlit as st

from harness import store
from harness.formatting import percent
from harness.records import Run
from parts import project

_UNWANTED = ("unparsable", "truncated", "refused", "incomplete", "error")


def show(runs: Mapping[str, Run]) -> None:
    """Count answers that could not be read, were cut or declined, beside the base's."""
    st.subheader("Answers that are no answers", anchor=False)
    keys = sorted({key for run in runs.values() for key in run.rows if key.endswith("/test")})
    bases = {(name, key): project.base_rows(run, key) for name, run in runs.items() for key in keys}
    digests = {d for run in runs.values() for d in run.rows.values()} | {d for d in bases.values() if d}
    counts = store.count_statuses(project.project().store, sorted(digests))
    rows = []
    for key in keys:
        named = [("base", next((bases[name, key] for name in runs if bases[name, key]), None))]
        named += [(name, run.rows.get(key)) for name, run in runs.items()]
        for status in _UNWANTED:
            shares = {name: _share(counts.get(digest or "", {}), status) for name, digest in named}
            if any(text not in ("", percent(0.0)) for text in shares.values()):
                rows.append({"task": key.removesuffix("/test"), "answers": status, **shares})
    if rows:
        st.dataframe(rows, hide_index=True, height=min(420, 38 + 35 * len(rows)))
        st.caption(
            "Percent of a task's answers: cut at the longest that was allowed, not to be read as an answer, "
            "declined, or failed; incomplete where some of several answers failed. "
            "Lines without any are left out; some tasks want a refusal."
        )
    else:
        st.info("Every answer of every run could be read.")


def _share(statuses: dict[str, int], status: str) -> str:
    n = sum(statuses.values())
    return percent(statuses.get(status, 0) / n) if n else ""
