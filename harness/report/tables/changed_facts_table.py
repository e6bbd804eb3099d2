"""Table of facts that changed: what each candidate answers before and after a refresh, and what that takes.

Invariant: every score has its interval, and every change is paired on the same items.
"""

from collections.abc import Sequence

from harness import formatting
from harness.decision import CandidateFacts
from harness.decision.changed_answers import ChangedAnswers, outdated_text

CHANGES_TITLE = "Facts that change"
CHANGES_COLUMNS = (
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
CHANGES_NOTE = (
    "Nothing was trained for the changed items. Who retrieves got an index of the new documents; of trained"
    " weights the time and cost of their training are given, and what training on new rows would bring is not"
    " known. Still outdated are items that then get the answer that was right before."
)


def changes_rows(done: Sequence[CandidateFacts]) -> list[list[str]]:
    """List the candidates that answered changed items, each with what a refresh takes."""
    return [_row(f, f.changes) for f in done if f.changes]


def _row(f: CandidateFacts, of: ChangedAnswers) -> list[str]:
    unit = of.before.unit
    score = formatting.UNKNOWN if f.target is None else formatting.score(unit, *f.target[:3])
    vs = of.vs_untrained
    change, training_s = of.change, f.training.total_s
    return [
        f.label,
        score,
        formatting.score(unit, *of.before[:3]) + formatting.errors(of.before.n_errors),
        formatting.UNKNOWN if of.after is None else formatting.score(unit, *of.after[:3]),
        formatting.UNKNOWN
        if change is None
        else formatting.change(unit, change.delta, change.low, change.high),
        formatting.UNKNOWN if vs is None else formatting.change(unit, vs.delta, vs.low, vs.high),
        outdated_text(of.outdated, of.n_known),
        _spent(of.index_s, of.index_cost_usd),
        _spent(training_s or None, f.training_cost_usd),
    ]


def _spent(seconds: float | None, usd: float | None) -> str:
    """Say what time something took and what that cost; unknown where there is nothing to do anew."""
    if seconds is None:
        return formatting.UNKNOWN
    return f"{formatting.seconds(seconds)}, {formatting.usd(usd)} USD"
