"""Table of more targets: what each candidate reaches on tasks beside the one that decides.

Invariant: every score has its interval, and every difference is paired on the same items.
"""

from collections.abc import Sequence

from harness import formatting
from harness.decision import CandidateFacts, TargetScore
from harness.report.document import Section
from harness.report.experiment_report import change_text, score_text

_COLUMNS = ("target", "candidate", "score", "vs best untrained", "vs prompt")
_NOTE = (
    "Every candidate answered these as it is: nothing was trained for them or chosen on them, and neither the"
    " gate nor the decision looks at them. The best untrained is that of each target, by its validation rows;"
    " without any there is none."
)


def targets_section(done: Sequence[CandidateFacts]) -> Section:
    """Lay out what each candidate reached, target by target, the best first."""
    found = [(f, one) for f in done for one in f.more_targets]
    found.sort(key=lambda of: -of[1].score.unit.sign * of[1].score.score)
    tasks = dict.fromkeys(one.task for f in done for one in f.more_targets)
    rows = [_row(f, one) for task in tasks for f, one in found if one.task == task]
    return Section("more targets", "More targets", _COLUMNS, rows, _NOTE)


def _row(f: CandidateFacts, of: TargetScore) -> list[str]:
    score = score_text(of.score) + formatting.errors(of.score.n_errors)
    own = "(this one)" if f.name == of.untrained else change_text(of.vs_untrained)
    return [f"{of.task} ({of.metric})", f.label, score, own, change_text(of.vs_prompt)]
