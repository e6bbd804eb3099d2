"""Answers without a result: how many of a task's were cut, declined, failed or not to be read.

Invariant: counts come from the stored rows; the base's own stand beside them.
"""

from collections.abc import Mapping

import streamlit as st

from harness import store
from harness.formatting import percent
from harness.records import Run
from parts import controls, project

_UNWANTED = ("unparsable", "truncated", "refused", "incomplete", "error")


def show(runs: Mapping[str, Run]) -> None:
    """Count answers that could not be read, were cut or declined, beside the base's."""
    st.subheader("Answers without a result", anchor=False)
    keys = sorted({key for run in runs.values() for key in run.rows if key.endswith("/test")})
    bases = {
        (name, key): store.digest_of_base(project.project().store, run, key)
        for name, run in runs.items()
        for key in keys
    }
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
        controls.show_rows(rows, most=420)
        st.caption(
            "Percent of a task's answers: cut at the token limit, unparsable, refused or failed; incomplete "
            "if some of several answers failed. Rows of zeros are left out; in some tasks a refusal is right."
        )
    else:
        st.info("Every answer of every run could be read.")


def _share(statuses: dict[str, int], status: str) -> str:
    n = sum(statuses.values())
    return percent(statuses.get(status, 0) / n) if n else ""
