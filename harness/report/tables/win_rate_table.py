"""Table of win rates: how often people or a judge prefer a fine-tune's answers to what trains nothing.

Invariant: a rate stands beside the one that was asked for, and a judge's own beside the corrected one.
"""

from collections.abc import Iterator, Sequence

from harness import formatting
from harness.comparison.biases.pair_bias import PairBias
from harness.comparison.win_rates import Wins
from harness.decision import CandidateFacts, basis_text
from harness.formatting import UNKNOWN
from harness.report.document import Section
from harness.report.experiment_report import change_text, score_text
from harness.spec import TargetPolicy

_COLUMNS = (
    "candidate",
    "over",
    "by",
    "win rate, %",
    "before correction",
    "pairs people rated",
    "asked for",
)
_NOTE = (
    "win rate: the share of test items on which the candidate's answer is preferred, a tie being half of one,"
    " as gate.target.win_rate asks for it; it is the gain that the decision goes by."
)


def wins_section(facts: Sequence[CandidateFacts], declared: TargetPolicy | None) -> Section:
    """Lay out the candidates whose answers were to be preferred, and say what each judge prefers."""
    if declared is None or declared.win_rate is None:
        return Section("wins")
    known = [(f.label, f.wins) for f in facts if f.wins]
    rows = [[label, *_cells(wins), formatting.percent(declared.win_rate)] for label, wins in known]
    notes = [said for label, wins in known if wins.bias for said in _biases(label, wins, wins.bias)]
    return Section("wins", "Win rates", _COLUMNS, rows, _NOTE, notes)


def _cells(wins: Wins) -> tuple[str, ...]:
    own = formatting.percent(wins.uncorrected) if wins.uncorrected is not None else UNKNOWN
    return wins.over, wins.by, _rate(wins), own, formatting.count(wins.n_ratings)


def _rate(wins: Wins) -> str:
    if wins.rate is None:
        return UNKNOWN
    lacking = f" ({formatting.pluralize(wins.lacking, 'more rating')} needed)" if wins.lacking else ""
    return score_text(wins.rate) + lacking


def _biases(name: str, wins: Wins, bias: PairBias) -> Iterator[str]:
    """Say what the judge of a win rate prefers: a place, length, a candidate."""
    of = f"{wins.by} on {name} beside {wins.over}"
    if bias.first:
        rate = score_text(bias.first)
        yield f"{of}: the answer shown first won {rate} % of comparisons, where 50 % favours no place"
    if bias.longer:
        yield f"{of}: the longer answer won {score_text(bias.longer)} % of pairs whose lengths differ"
    if bias.favour:
        by = change_text(bias.favour)
        yield f"{of}: it favours {name} by {by} points of win rate more than people do on the same pairs"
    if longer := bias.longer_beside_people:
        by = change_text(longer.favour)
        also = "" if longer.is_length else "; what else sets the two apart may be the cause as well"
        yield f"{of}: it favours the longer answer by {by} points of win rate more than people do{also}"


def wins_sentence(f: CandidateFacts, declared: TargetPolicy | None) -> str:
    """Say how often a candidate is preferred; empty where no win rate was declared, or is known."""
    wins = f.wins
    if declared is None or declared.win_rate is None or wins is None or wins.rate is None:
        return ""
    asked = f"{formatting.percent(declared.win_rate)} % is asked"
    lacking = (
        f"; {formatting.pluralize(wins.lacking, 'more rating')} of people needed" if wins.lacking else ""
    )
    rate = score_text(wins.rate)
    return f"preferred to {wins.over} on {rate} % of items {basis_text(wins)}, where {asked}{lacking}"
