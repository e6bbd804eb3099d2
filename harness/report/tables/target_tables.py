"""Tables of targets: more targets beside the one that decides, and win rates.

Invariant: every score has its interval and every change is paired on the same items; a win rate stands beside
the one that was required, and a judge's own beside the corrected one.
"""

from collections.abc import Iterator, Sequence

from harness import formatting
from harness.comparison import PairBias, Wins
from harness.decision import CandidateFacts, TargetScore, basis_text
from harness.formatting import UNKNOWN
from harness.report.document import Section
from harness.report.wording import change_text, score_text
from harness.spec import TargetPolicy

_TARGETS_COLUMNS = ("target", "candidate", "score", "vs best untrained", "vs prompt")
_TARGETS_NOTE = (
    "Every candidate answered these as it is: nothing was trained for them or chosen on them, and neither the"
    " gate nor the decision looks at them. The best untrained is that of each target, by its validation rows;"
    " without any there is none."
)


def targets_section(done: Sequence[CandidateFacts]) -> Section:
    """Lay out what each candidate reached, target by target, the best first."""
    found = [(f, one) for f in done for one in f.more_targets]
    found.sort(key=lambda of: -of[1].score.unit.sign * of[1].score.score)
    tasks = dict.fromkeys(one.task for f in done for one in f.more_targets)
    rows = [_target_row(f, one) for task in tasks for f, one in found if one.task == task]
    return Section("more targets", "More targets", _TARGETS_COLUMNS, rows, _TARGETS_NOTE)


def _target_row(f: CandidateFacts, of: TargetScore) -> list[str]:
    score = score_text(of.score) + formatting.errors(of.score.n_errors)
    own = "(this one)" if f.name == of.untrained else change_text(of.vs_untrained)
    return [f"{of.task} ({of.metric})", f.label, score, own, change_text(of.vs_prompt)]


_WINS_COLUMNS = (
    "candidate",
    "over",
    "by",
    "win rate, %",
    "before correction",
    "pairs people rated",
    "required",
)
_WINS_NOTE = (
    "win rate: the share of test items on which the candidate's answer is preferred, a tie being half of one,"
    " as gate.target.win_rate requires it; it is the gain that the decision goes by."
)


def wins_section(facts: Sequence[CandidateFacts], declared: TargetPolicy | None) -> Section:
    """Lay out the candidates whose answers were to be preferred, and say what each judge prefers."""
    if declared is None or declared.win_rate is None:
        return Section("wins")
    known = [(f.label, f.wins) for f in facts if f.wins]
    rows = [[label, *_cells(wins), formatting.percent(declared.win_rate)] for label, wins in known]
    notes = [said for label, wins in known if wins.bias for said in _biases(label, wins, wins.bias)]
    return Section("wins", "Win rates", _WINS_COLUMNS, rows, _WINS_NOTE, notes)


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
    of = f"{wins.by} on {name} against {wins.over}"
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
    required = f"{formatting.percent(declared.win_rate)} % is required"
    lacking = (
        f"; {formatting.pluralize(wins.lacking, 'more rating')} of people needed" if wins.lacking else ""
    )
    rate = score_text(wins.rate)
    return f"preferred to {wins.over} on {rate} % of items {basis_text(wins)}, where {required}{lacking}"
