"""Table of more targets: what each candidate reaches on tasks beside the one that decides.

Invariant: every score has its interval, and every difference is paired on the same items.
"""

from collections.abc import Sequence

from harness import formatting
from harness.comparison import Comparison
from harness.decision import CandidateFacts, TargetScore

TARGETS_TITLE = "More targets"
TARGETS_COLUMNS = ("target", "candidate", "score", "vs best untrained", "vs prompt")
TARGETS_NOTE = (
    "Every candidate answered these as it is: nothing was trained for them or chosen on them, and neither the"
    " gate nor the decision looks at them. The best untrained is that of each target, by its validation rows;"
    " without any there is none."
)


def targets_rows(done: Sequence[CandidateFacts]) -> list[list[str]]:
    """List what each candidate reached, target by target, the best first."""
    found = [(f, one) for f in done for one in f.more_targets]
    tasks = list(dict.fromkeys(one.task for _, one in found))
    return [
        _row(f, one)
        for task in tasks
        for f, one in sorted(found, key=lambda of: -of[1].score.unit.sign * of[1].score.score)
        if one.task == task
    ]


def _row(f: CandidateFacts, of: TargetScore) -> list[str]:
    score = formatting.score(of.score.unit, *of.score[:3]) + formatting.errors(of.score.n_errors)
    own = "(this one)" if f.name == of.untrained else _difference(of.vs_untrained)
    return [f"{of.task} ({of.metric})", f.label, score, own, _difference(of.vs_prompt)]


def _difference(of: Comparison | None) -> str:
    return formatting.UNKNOWN if of is None else formatting.change(of.unit, of.delta, of.low, of.high)
