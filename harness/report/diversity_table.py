"""The table of how varied a fine-tune's answers are, and the sentence that names a mode collapse.

Invariant: base stands beside new, of the same items; the texts that are quoted are cut.
"""

from collections.abc import Sequence

from harness import formatting
from harness.comparison import AnswerDiversity, Answers

COLUMNS = (
    "task",
    "n",
    "commonest answer, base",
    "new",
    "change",
    "commonest reference",
    "distinct answers, base",
    "new",
    "the commonest new answer",
)
NOTE = (
    "Of generated answers: the share in % of the one given most often, and how many are distinct. "
    "Mode collapse is a share far above both the base's and the commonest reference's: at least twice as "
    "large, or leaving at most half as much, with a paired 95 % interval (Tango's) that excludes 0."
)
_LONGEST = 60  # characters of an answer that is quoted


def rows(found: Sequence[AnswerDiversity]) -> list[list[str]]:
    """List one row a task."""
    return [
        [
            d.task,
            formatting.count(d.n),
            formatting.percent(d.base.share) if d.base else formatting.UNKNOWN,
            formatting.percent(d.new.share),
            formatting.points(d.new.share - d.base.share, d.low, d.high) if d.base else formatting.UNKNOWN,
            formatting.percent(d.reference_share),
            _distinct(d.base) if d.base else formatting.UNKNOWN,
            _distinct(d.new),
            quoted(d.new.commonest),
        ]
        for d in found
    ]


def sentence(label: str, found: Sequence[AnswerDiversity]) -> str:
    """Name the tasks on which the answers have collapsed; empty where there is none."""
    said = [
        f"on {d.task} {quoted(d.new.commonest)} is the answer to {formatting.percent(d.new.share)} % of the "
        f"{formatting.count(d.n)} items, the base's commonest to {formatting.percent(d.base.share)} %"
        for d in found
        if d.collapsed and d.base
    ]
    return f"{label}: mode collapse, {'; '.join(said)}" if said else ""


def _distinct(answers: Answers) -> str:
    return f"{formatting.count(answers.n_distinct)} ({formatting.percent(answers.distinct_share)} %)"


def quoted(text: str) -> str:
    """Quote an answer on one line, cut where it is long; an empty one is called so."""
    line = " ".join(text.split())
    if not line:
        return "(empty)"
    return f"“{line[:_LONGEST]}…”" if len(line) > _LONGEST else f"“{line}”"
