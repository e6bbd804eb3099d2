"""Table of facts that changed: what each candidate answers before and after a refresh, and what that takes.

Invariant: every score has its interval, and every change is paired on the same items.
"""

from collections.abc import Sequence

from harness import formatting
from harness.decision import CandidateFacts
from harness.decision.changed_answers import ChangedAnswers, outdated_text
from harness.report.document import Section
from harness.report.experiment_report import change_text, score_text

_COLUMNS = (
    "candidate",
    "old items",
    "changed items, as it was",
    "with new documents",
    "change",
    "vs best untrained",
    "still outdated",
    "index anew",
    "training anew",
)
_NOTE = (
    "Nothing was trained for the changed items. Who retrieves got an index of the new documents; of trained"
    " weights the time and cost of their training are given, and what training on new rows would bring is not"
    " known. Still outdated are items that then get the answer that was right before."
)


def changes_section(done: Sequence[CandidateFacts]) -> Section:
    """Lay out the candidates that answered changed items, each with what a refresh takes."""
    rows = [_row(f, f.changes) for f in done if f.changes]
    return Section("changes", "Facts that change", _COLUMNS, rows, _NOTE)


def _row(f: CandidateFacts, of: ChangedAnswers) -> list[str]:
    return [
        f.label,
        score_text(f.target),
        score_text(of.before) + formatting.errors(of.before.n_errors),
        score_text(of.after),
        change_text(of.change),
        change_text(of.vs_untrained),
        outdated_text(of.outdated, of.n_known),
        _spent_text(of.index_s, of.index_cost_usd),
        _spent_text(f.training.total_s or None, f.training_cost_usd),
    ]


def _spent_text(seconds: float | None, usd: float | None) -> str:
    """Say what time something took and what that cost; unknown where there is nothing to do anew."""
    if seconds is None:
        return formatting.UNKNOWN
    return f"{formatting.seconds(seconds)}, {formatting.usd(usd)} USD"
