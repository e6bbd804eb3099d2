"""Table of answer diversity: the commonest answer and the distinct ones, base beside new, by task.

Invariant: shares are printed in percent, answers on one line, cut where they are long.
"""

from collections.abc import Sequence

from harness import formatting
from harness.comparison import AnswerDiversity, Answers
from harness.report.document import Section

_COLUMNS = (
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
_NOTE = (
    "Of generated answers: the share in % of the one given most often, and how many are distinct. "
    "Mode collapse is a share far above both the base's and the commonest reference's: at least twice as "
    "large, or leaving at most half as much, with a paired 95 % interval (Tango's) that excludes 0."
)
_LONGEST_ANSWER = 60  # characters of an answer that is quoted


def diversity_section(label: str, found: Sequence[AnswerDiversity]) -> Section:
    """Lay out how varied the generated answers are, base beside new, one row a task."""
    rows = [
        [
            d.task,
            formatting.count(d.n),
            formatting.percent(d.base.share) if d.base else formatting.UNKNOWN,
            formatting.percent(d.new.share),
            formatting.points(d.new.share - d.base.share, d.low, d.high) if d.base else formatting.UNKNOWN,
            formatting.percent(d.reference_share),
            _distinct(d.base) if d.base else formatting.UNKNOWN,
            _distinct(d.new),
            _quote(d.new.commonest),
        ]
        for d in found
    ]
    return Section("diversity", f"How varied the answers of {label} are", _COLUMNS, rows, _NOTE, label=label)


def collapse_sentence(label: str, found: Sequence[AnswerDiversity]) -> str:
    """Name the tasks on which the answers have collapsed; empty where there is none."""
    said = [
        f"on {d.task} {_quote(d.new.commonest)} is the answer to {formatting.percent(d.new.share)} % of the "
        f"{formatting.count(d.n)} items, the base's commonest to {formatting.percent(d.base.share)} %"
        for d in found
        if d.collapsed and d.base
    ]
    return f"{label}: mode collapse, {'; '.join(said)}" if said else ""


def diversity_text(label: str, found: Sequence[AnswerDiversity]) -> str:
    """Say how varied the answers to the target are, beside the base's; empty where none were generated."""
    if not found:
        return ""
    d = found[0]
    beside = f"; of the base {_variety_text(d.base)}" if d.base else ""
    return f"{label}: answers to {d.task}: {_variety_text(d.new)}{beside}"


def _variety_text(answers: Answers) -> str:
    return f"{_distinct(answers)} are distinct, the commonest is {formatting.percent(answers.share)} %"


def _distinct(answers: Answers) -> str:
    return f"{formatting.count(answers.n_distinct)} ({formatting.percent(answers.distinct_share)} %)"


def _quote(text: str) -> str:
    """Quote an answer on one line, cut where it is long; an empty one is called so."""
    line = " ".join(text.split())
    if not line:
        return "(empty)"
    return f"“{line[:_LONGEST_ANSWER]}…”" if len(line) > _LONGEST_ANSWER else f"“{line}”"
