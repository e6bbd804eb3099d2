"""Answers that no judge was asked about: how many of each run, and why.

Invariant: an answer counts once, by what became of it, under all judged metrics of its task together.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from harness.evaluation.session import Session
from harness.experiment.runs.stored_rows import Reader
from harness.formatting import count, pluralize
from harness.records import Run, SampleResult
from harness.spec import Task

_CUT, _FAILED = "cut at max_new_tokens:", "failed"
_STEP = " (raise max_new_tokens, or truncated_scores: true in the task lets judges grade cut ones)"


def count_ungraded(session: Session, reader: Reader, runs: Iterable[Run]) -> Iterator[str]:
    """Say of each run how many answers to a judged task were cut, empty or failed, and so never judged."""
    judged = [m for m in session.tasks if m.judged]
    for run in (run for run in runs if run.state == "done"):
        for measured in (m for m in judged if f"{m.task.name}/test" in run.rows):
            rows = reader.answers(run, measured)
            why = Counter(filter(None, (_reason(measured.task, row) for row in rows)))
            if n := why.total():
                of = f"{count(n)} of {pluralize(len(rows), 'answer')} to {measured.task.name}"
                reasons = ", ".join(f"{count(k)} {reason}" for reason, k in why.most_common())
                worst = "" if set(why) == {_FAILED} else "; what is cut or empty has the lowest grade"
                asked = f"{run.candidate}: {', '.join(measured.judged)} was not asked about {of}"
                step = _STEP if any(reason.startswith(_CUT) for reason in why) else ""
                yield f"{asked}: {reasons}{worst}{step}"


def _reason(task: Task, row: SampleResult) -> str:
    """Say why no judge was asked about an answer; empty where one was."""
    if row.status == "truncated" and not task.truncated_scores:
        return f"{_CUT} {task.max_new_tokens}"
    if row.status == "unparsable":
        return "none of the labels" if row.text.strip() else "empty"
    return _FAILED if row.finish_reason == "error" else ""
