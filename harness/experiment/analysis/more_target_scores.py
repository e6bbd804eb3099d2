"""Scores on more targets: of every run that answered them, paired with the best that trains nothing there.

Invariant: reads rows from the store; what is best on a target was chosen on that target's validation rows.
"""

from collections.abc import Sequence
from dataclasses import replace

from harness import comparison
from harness import decision as decide
from harness.decision import CandidateFacts, TargetScore
from harness.evaluation.session import Measured, Session
from harness.experiment.analysis.target_comparisons import add_comparisons
from harness.experiment.runs.stored_rows import Reader
from harness.records import Run


def add_more_targets(
    session: Session, reader: Reader, runs: Sequence[Run], facts: Sequence[CandidateFacts]
) -> list[CandidateFacts]:
    """Add what the runs reached on more targets; as they are where there are none."""
    found: dict[str, tuple[TargetScore, ...]] = {}
    for m in session.more_targets:
        for run_id, score in _scores(session, reader, runs, facts, m).items():
            found[run_id] = (*found.get(run_id, ()), score)
    return [replace(f, more_targets=found.get(f.run_id, ())) for f in facts]


def _scores(
    session: Session, reader: Reader, runs: Sequence[Run], facts: Sequence[CandidateFacts], m: Measured
) -> dict[str, TargetScore]:
    """Map runs to their scores on one of them; a run of which no answer could be scored has none."""
    answered = [
        (run, _on(reader, run, f, m))
        for run, f in zip(runs, facts, strict=True)
        if f"{m.task.name}/test" in run.rows and any(r.status != "error" for r in reader.of(run, m))
    ]
    there, own = [run for run, _ in answered], [f for _, f in answered]
    compared = add_comparisons(replace(session, target=m), reader, there, own)
    best = decide.best_untrained(compared)
    return {
        f.run_id: TargetScore(m.task.name, m.primary.name, f.target, best, f.vs_untrained, f.vs_prompt)
        for f in compared
        if f.target is not None
    }


def _on(reader: Reader, run: Run, f: CandidateFacts, m: Measured) -> CandidateFacts:
    """Return a run's facts with what it reached on another target in place of the one that decides."""
    has_validation = f"{m.task.name}/validation" in run.rows
    validation = comparison.estimate(m.primary, reader.of(run, m, "validation")) if has_validation else None
    test = comparison.estimate(m.primary, reader.of(run, m))
    return replace(f, target=test, validation=validation.score if validation else None)
