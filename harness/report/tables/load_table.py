"""Table of requests that come at once: how many are answered a second, and when their first tokens are there.

Invariant: it holds what was timed undisturbed, of what is to be chosen from.
"""

from collections.abc import Iterable

from harness.decision import CandidateFacts
from harness.formatting import UNKNOWN, count, figure, seconds
from harness.report.document import Section

_COLUMNS = (
    "candidate",
    "at once",
    "requests a second",
    "first token p50",
    "first token p95",
    "first token alone",
)
_NOTE = (
    "So many requests come at once (concurrency): how many of them are answered a second, and within"
    " which time half and 95 % of them have their first token, each with its retrieval; beside it the first"
    " token of a request that comes alone. A model in the harness's own process answers them in one batch, so"
    " their first tokens come together. At a server they are requests for one token."
)


def load_section(facts: Iterable[CandidateFacts]) -> Section:
    """Lay out one row a candidate that was asked several requests at once."""
    rows = []
    for f in facts:
        if of := f.under_load:
            times = (of.first_token_p50_s, of.first_token_p95_s, of.first_token_alone_s)
            shown = (UNKNOWN if time is None else seconds(time) for time in times)
            rows.append([f.label, count(of.n), figure(of.requests_per_s), *shown])
    return Section("load", "Under load", _COLUMNS, rows, _NOTE)
