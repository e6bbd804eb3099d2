"""Gate results of finished runs: each against its own base, alone and among all fine-tunes.

Invariant: a verdict that an interim analysis settled stays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from harness import decision as decide
from harness.decision import CandidateFacts
from harness.errors import IncompatibleRuns
from harness.evaluation.session import Session
from harness.experiment.analysis import target_comparisons as against
from harness.experiment.analysis.human_labels import describe_reached
from harness.experiment.analysis.judging import judge
from harness.experiment.analysis.study import Study, study_session
from harness.experiment.analysis.target_comparisons import add_more_targets
from harness.experiment.analysis.target_wins import add_wins
from harness.experiment.preparation.planned_work import list_measured_bases
from harness.experiment.runs.stored_rows import (
    Facts,
    Reader,
    Rows,
    Runs,
    find_measured_arm,
    read_documents_of,
)
from harness.gating import GateResult, TaskComparison, Verdict
from harness.records import Run


class InterimVerdict(NamedTuple):
    """Verdict on a run at the interim analysis that settled it; `corrected` is that among all fine-tunes.

    `alpha` is the one-sided level of that analysis, `n` the items of the suites that it asked.
    """

    result: GateResult
    corrected: Verdict | None
    alpha: float
    n: int


class RunVerdicts(NamedTuple):
    """Facts of runs with their verdicts, the results behind these by run, the bases' rows, and the study."""

    facts: tuple[CandidateFacts, ...]
    results: dict[str, GateResult]
    base: dict[str, dict[str, Rows]]
    study: Study

    @property
    def tasks(self) -> dict[str, Sequence[TaskComparison]]:
        """Comparisons of each run with its base, by task."""
        return {run_id: result.tasks for run_id, result in self.results.items()}


def judge_runs(session: Session, reader: Reader, runs: Runs) -> RunVerdicts:
    """Judge the finished runs of an experiment, alone and among all its fine-tunes.

    A run whose verdict an earlier interim analysis settled keeps that.
    """
    reader.prepare(digest for run in runs for digest in run.rows.values())
    base = bases_of(session, reader, runs)
    reached, study = describe_reached(session, reader, runs), study_session(session, reader)
    compared = against.add_comparisons(study, runs, reached)
    compared = add_wins(study, runs, compared)
    facts = add_more_targets(study, runs, compared)
    read_documents_of(session, runs)
    results = _gate_results(session, study, runs)
    # What answers no capability suite (a classifier) has no verdict.
    judged = tuple(
        replace(f, verdict=results[f.run_id].verdict)
        if f.target and f.run_id in results and results[f.run_id].tasks
        else f
        for f in facts
    )
    placed = decide.place_in_family(judged, decide.family_of(session.experiment))
    return RunVerdicts(_judge_family_again(session, study, runs, placed), results, base, study)


def bases_of(session: Session, reader: Reader, runs: Iterable[Run]) -> dict[str, dict[str, Rows]]:
    """Map digests of the bases that runs are measured against to their rows of each suite's task.

    Raises:
        IncompatibleRuns: the capability suite of a base was not measured as it is written now.
    """
    gated = {name for name, candidate in session.candidates.items() if not candidate.is_target_only}
    done = [run for run in runs if run.state == "done" and run.candidate in gated]
    out: dict[str, dict[str, Rows]] = {}
    for source in list_measured_bases([session.candidates[run.candidate] for run in done]):
        rows = find_measured_arm(session, source)
        if rows is not None:
            reader.prepare(rows.values())
            sizes = {m.task.name: m.size("test") for m in session.suites}
            out[source.weights_digest] = {name: reader.rows(rows[name], n) for name, n in sizes.items()}
    if any(run.base_digest not in out for run in done):
        raise IncompatibleRuns(
            f"{session.store.folder}: found no rows of the base on the capability suite as written now; "
            "expected them with the runs; next: harness compare"
        )
    return out


def _gate_results(session: Session, study: Study, runs: Runs) -> dict[str, GateResult]:
    """Judge every finished run against its own base."""
    # A baseline is what others are to beat: what it lacks of the base's abilities is not judged.
    return {
        run.run_id: session.settled[run.run_id].result if run.run_id in session.settled else judge(study, run)
        for run in runs
        if run.state == "done" and not session.candidates[run.candidate].is_target_only
    }


def _judge_family_again(
    session: Session, study: Study, runs: Runs, facts: Facts
) -> tuple[CandidateFacts, ...]:
    """Judge the fine-tunes of a family once more, each at the level that is left to it."""

    def correct(f: CandidateFacts, run: Run) -> CandidateFacts:
        if run.run_id in session.settled:
            return replace(f, corrected=session.settled[run.run_id].corrected)
        if f.standing is None or f.verdict is None or f.standing.level == f.standing.alpha:
            return f
        return replace(f, corrected=judge(study, run, level=f.standing.level).verdict)

    return tuple(correct(f, run) for f, run in zip(facts, runs, strict=True))
