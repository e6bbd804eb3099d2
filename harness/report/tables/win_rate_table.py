"""Table of win rates: how often people or a judge prefer a fine-tune's answers to what trains nothing.

Invariant: a rate stands beside the one that was asked for, and a judge's own beside the corrected one.
"""

from collections.abc import Iterator, Sequence

from harness import formatting
from harness.comparison import Estimate
from harness.comparison.biases.pair_bias import PairBias
from harness.comparison.win_rates import Wins
from harness.decision import CandidateFacts, basis_text
from harness.formatting import UNKNOWN
from harness.spec import TargetPolicy

WINS_TITLE = "Win rates"
WINS_COLUMNS = (
    "candidate",
    "over",
    "by",
    "win rate, %",
    "before correction",
    "pairs people rated",
    "asked for",
)
WINS_NOTE = (
    "win rate: the share of test items on which the candidate's answer is preferred, a tie being half of one,"
    " as gate.target.win_rate asks for it; it is the gain that the decision goes by."
)


def wins_rows(facts: Sequence[CandidateFacts], declared: TargetPolicy | None) -> list[list[str]]:
    """List the candidates whose answers were to be preferred; none where no win rate was declared."""
    if declared is None or declared.win_rate is None:
        return []
    asked = formatting.percent(declared.win_rate)
    return [[f.label, *_cells(f.wins), asked] for f in facts if f.wins]


def _cells(wins: Wins) -> tuple[str, ...]:
    own = formatting.percent(wins.uncorrected) if wins.uncorrected is not None else UNKNOWN
    return wins.over, wins.by, _rate(wins), own, formatting.count(wins.n_ratings)


def _rate(wins: Wins) -> str:
    if wins.rate is None:
        return UNKNOWN
    lacking = f" ({formatting.pluralize(wins.lacking, 'more rating')} needed)" if wins.lacking else ""
    return formatting.score(wins.rate.unit, *wins.rate[:3]) + lacking


def bias_sentences(facts: Sequence[CandidateFacts]) -> list[str]:
    """Say of each judge of a win rate what it prefers: a place, length, a candidate."""
    return [said for f in facts if f.wins and f.wins.bias for said in _biases(f.label, f.wins, f.wins.bias)]


def _biases(name: str, wins: Wins, bias: PairBias) -> Iterator[str]:
    of = f"{wins.by} on {name} beside {wins.over}"
    if bias.first:
        rate = _share(bias.first)
        yield f"{of}: the answer shown first won {rate} % of comparisons, where 50 % favours no place"
    if bias.longer:
        yield f"{of}: the longer answer won {_share(bias.longer)} % of pairs whose lengths differ"
    if bias.favour:
        by = formatting.change(bias.favour.unit, *bias.favour[:3])
        yield f"{of}: it favours {name} by {by} points of win rate more than people do on the same pairs"
    if longer := bias.longer_beside_people:
        by = formatting.change(longer.favour.unit, *longer.favour[:3])
        also = "" if longer.is_length else "; what else sets the two apart may be the cause as well"
        yield f"{of}: it favours the longer answer by {by} points of win rate more than people do{also}"


def _share(e: Estimate) -> str:
    return formatting.score(e.unit, *e[:3])


def wins_sentence(f: CandidateFacts, declared: TargetPolicy | None) -> str:
    """Say how often a candidate is preferred; empty where no win rate was declared, or is known."""
    wins = f.wins
    if declared is None or declared.win_rate is None or wins is None or wins.rate is None:
        return ""
    asked = f"{formatting.percent(declared.win_rate)} % is asked"
    lacking = (
        f"; {formatting.pluralize(wins.lacking, 'more rating')} of people needed" if wins.lacking else ""
    )
    rate = formatting.score(wins.rate.unit, *wins.rate[:3])
    return f"preferred to {wins.over} on {rate} % of items {basis_text(wins)}, where {asked}{lacking}"
