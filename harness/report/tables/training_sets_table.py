"""Tables of candidates that differ in their training rows alone: quality against quantity, wrong answers.

Invariant: every score has its interval, every change is paired on the same test items, and costs stand beside
what they bought.
"""

from collections.abc import Sequence

from harness import formatting
from harness.decision import VARIANCE_UNKNOWN, TrainingSet, TrainingSets
from harness.formatting import Unit

_COSTS = ("labels USD", "training USD")


def sets_title(of: TrainingSets) -> str:
    """Name what differs, and the method that trained on it."""
    named = {"rows": "Training rows, quality against quantity", "wrong answers": "Wrong answers in training"}
    return f"{named[of.by]}: {of.method}"


def sets_columns(of: TrainingSets) -> tuple[str, ...]:
    """Name the columns: what was trained on, what it reached, and what it cost."""
    reached = ("score", "change", "p", "p corrected")
    if of.by == "rows":
        return ("candidate", "trained on", "rows", "tokens", *reached, *_COSTS)
    return ("candidate", "answers made wrong", "rows", *reached)


def sets_rows(of: TrainingSets, unit: Unit) -> list[list[str]]:
    """List the candidates, the reference first."""
    return [_row(one, of, unit) for one in of.sets]


def sets_notes(of: TrainingSets) -> Sequence[str]:
    """Say how they were compared."""
    looked = f"p corrected for {formatting.pluralize(of.n_tests, 'look')} (Benjamini-Hochberg)"
    seeds = "" if of.seed_variance_known else f"; {VARIANCE_UNKNOWN} (fewer than 3 seeds)"
    tokens = "; tokens are those of all epochs" if of.by == "rows" else ""
    return [f"{sets_title(of)}: paired on test with {of.reference}, {looked}{tokens}{seeds}"]


def _row(one: TrainingSet, of: TrainingSets, unit: Unit) -> list[str]:
    change = formatting.change(unit, *one.difference[:3]) if one.difference else formatting.UNKNOWN
    ends = one.estimate[1:3] if one.estimate else ()
    reached = [
        formatting.score(unit, one.score, *ends),
        "(reference)" if one.candidate == of.reference else change,
        formatting.p_value(one.p),
        formatting.p_value(one.p_adjusted),
    ]
    rows = formatting.count(one.n_rows)
    if of.by == "rows":
        costs = [formatting.usd(one.label_cost_usd), formatting.usd(one.training_cost_usd)]
        return [one.candidate, one.source, rows, formatting.count(one.n_tokens), *reached, *costs]
    n_wrong = None if one.n_rows is None else round(one.corrupt * one.n_rows)
    wrong = f"{formatting.percent(one.corrupt)} % ({formatting.count(n_wrong)})"
    return [one.candidate, wrong, rows, *reached]
