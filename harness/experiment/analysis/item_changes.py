"""Changes of single items and answers: which ones fine-tunes lost and gained, and collapsed answers."""

from collections.abc import Sequence
from dataclasses import replace

from harness import comparison, gating
from harness import decision as decide
from harness.comparison import AnswerDiversity
from harness.evaluation.session import Session
from harness.experiment.analysis import target_comparisons as against
from harness.experiment.analysis.gate_results import Judged, measured_of
from harness.experiment.runs.stored_rows import Reader
from harness.gating import Measurement, TaskComparison
from harness.records import Run
from harness.report import Flip, flips_of


def find_flips(
    session: Session, reader: Reader, runs: Sequence[Run], judged: Judged
) -> dict[str, tuple[Flip, ...]]:
    """Show items that fine-tunes lost and gained: on the suites only once for the same weights."""
    best, tasks = decide.best_untrained(judged.facts) or "", judged.tasks
    by_name = {run.candidate: run for run in runs if run.state == "done"}
    out: dict[str, tuple[Flip, ...]] = {}
    seen: set[str] = set()
    for f, run in zip(judged.facts, runs, strict=True):
        if f.state == "failed" or not decide.is_fine_tuned(f):
            continue
        shown: list[Flip] = []
        if f.vs_untrained:
            old, new = (reader.of(r, session.target) for r in (by_name[best], run))
            shown += flips_of(f.vs_untrained, old, new, best)
        if run.weights_digest not in seen:
            by_task = {
                m.task.name: m for m in measured_of(session, reader, run, judged.base[run.base_digest])
            }
            shown += (flip for t in tasks[run.run_id] for flip in _flips_of_task(t, by_task[t.task.name]))
        seen.add(run.weights_digest)
        out[f.label] = tuple(shown)
    return out


def describe_diversity(
    session: Session, reader: Reader, runs: Sequence[Run], judged: Judged
) -> dict[str, tuple[AnswerDiversity, ...]]:
    """Describe the generated answers of fine-tunes beside the base's: the target's, then the suites'."""
    out: dict[str, tuple[AnswerDiversity, ...]] = {}
    for f, run in zip(judged.facts, runs, strict=True):
        if f.state == "failed" or not decide.is_fine_tuned(f):
            continue
        old, new = against.answers_on_target(session, reader, run, runs)
        found = [comparison.answer_diversity(new, old)]
        for m in measured_of(session, reader, run, judged.base[run.base_digest]):
            if m.role != "regression":
                # What should be refused is refused in the same words: that is no collapse.
                of = comparison.answer_diversity(m.new, m.base)
                found.append(replace(of, collapsed=False) if of and m.role == "safety" else of)
        out[f.label] = tuple(filter(None, found))
    return {label: found for label, found in out.items() if found}


def _flips_of_task(t: TaskComparison, measured: Measurement) -> list[Flip]:
    """Show items of a task's primary metric; a change in bits per byte is nothing to be read."""
    if t.comparison.metric != t.task.primary_metric or gating.is_reported_only(t.task):
        return []
    return flips_of(t.comparison, measured.base, measured.new, "base")
