"""Tables of candidates that differ in their training rows alone: quality against quantity, wrong answers.

Invariant: every score has its interval, every change is paired on the same test items, and costs stand beside
what they bought.
"""

from harness import formatting
from harness.decision import VARIANCE_UNKNOWN, TrainingSet, TrainingSets
from harness.formatting import Unit
from harness.report.document import Section

_QUANTITY = (
    "rows are as trained, one that stands twice in a file or is drawn again each time; in brackets those that"
    " were labelled, where a mixture drew some again; tokens are those of all epochs"
)


def sets_section(of: TrainingSets, unit: Unit, place: int) -> Section:
    """Lay out the candidates, the reference first; its label is its `place` among such tables."""
    named = {"rows": "Training rows, quality against quantity", "wrong answers": "Wrong answers in training"}
    title, reached = f"{named[of.by]}: {of.method}", ("score", "change", "p", "p corrected")
    columns: tuple[str, ...] = ("candidate", "answers made wrong", "rows", *reached)
    if of.by == "rows":
        columns = ("candidate", "trained on", "rows", "tokens", *reached, "labels USD", "training USD")
    looked = f"p corrected for {formatting.pluralize(of.n_tests, 'look')} (Benjamini-Hochberg)"
    seeds = "" if of.seed_variance_known else f"; {VARIANCE_UNKNOWN} (fewer than 3 seeds)"
    tokens = f"; {_QUANTITY}" if of.by == "rows" else ""
    note = f"{title}: paired on test with {of.reference}, {looked}{tokens}{seeds}"
    rows = [_row(one, of, unit) for one in of.sets]
    return Section("training sets", title, columns, rows, notes=[note], label=str(place))


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
    if one.n_labelled not in (None, one.n_rows):
        rows = f"{rows} ({formatting.count(one.n_labelled)})"
    if of.by == "rows":
        costs = [formatting.usd(one.label_cost_usd), formatting.usd(one.training_cost_usd)]
        return [one.candidate, one.source, rows, formatting.count(one.n_tokens), *reached, *costs]
    n_wrong = None if one.n_rows is None else round(one.corrupt * one.n_rows)
    wrong = f"{formatting.percent(one.corrupt)} % ({formatting.count(n_wrong)})"
    return [one.candidate, wrong, rows, *reached]
