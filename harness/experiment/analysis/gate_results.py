"""Gate results of finished runs: each against its own base, alone and among all fine-tunes.

Invariant: runs of the same weights are compared once, and a verdict that an interim analysis settled stays.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from harness import decision as decide
from harness import gating, store
from harness.comparison import Comparison
from harness.decision import CandidateFacts
from harness.errors import IncompatibleRuns
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.analysis import target_comparisons as against
from harness.experiment.analysis.changed_scores import add_changes
from harness.experiment.analysis.human_labels import describe_reached
from harness.experiment.analysis.target_comparisons import add_more_targets
from harness.experiment.analysis.target_wins import add_wins
from harness.experiment.preparation.planned_work import list_measured_bases
from harness.experiment.runs.stored_rows import (
    Facts,
    Reader,
    Rows,
    Runs,
    controls_of,
    documents_of,
    find_measured_arm,
    read_documents_of,
)
from harness.gating import (
    AdmittedTasks,
    ComparedArms,
    GateResult,
    Measurement,
    TargetFacts,
    TaskComparison,
    Verdict,
)
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
    """Facts of runs with their verdicts, the results behind these by run, and the bases' rows."""

    facts: tuple[CandidateFacts, ...]
    results: dict[str, GateResult]
    base: dict[str, dict[str, Rows]]

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
    reached = describe_reached(session, reader, runs)
    compared = against.add_comparisons(session, reader, runs, reached)
    compared = add_wins(session, reader, runs, compared)
    changed = add_changes(session, reader, runs, compared)
    facts = add_more_targets(session, reader, runs, changed)
    read_documents_of(session, runs)
    arms = _RunComparisons(session, reader, base)
    results = _gate_results(session, reader, runs, facts, arms)
    # What answers no capability suite (a classifier) has no verdict.
    judged = tuple(
        replace(f, verdict=results[f.run_id].verdict)
        if f.target and f.run_id in results and results[f.run_id].tasks
        else f
        for f in facts
    )
    placed = decide.place_in_family(judged, decide.family_of(session.experiment))
    first = RunVerdicts(tuple(placed), results, base)
    return first._replace(facts=_judge_family_again(session, reader, runs, first, arms))


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
            "expected them beside the runs; next: harness compare"
        )
    return out


class _RunComparisons:
    """Both arms of runs on the suites: those of the same rows are compared once, a base is admitted once."""

    def __init__(self, session: Session, reader: Reader, base: Mapping[str, Mapping[str, Rows]]) -> None:
        self._session, self._reader, self._base = session, reader, base
        self._names = [f"{m.task.name}/test" for m in session.suites]
        self._admitted: dict[tuple[str, ...], AdmittedTasks] = {}
        self._compared: dict[tuple[str | None, ...], tuple[list[Measurement], ComparedArms]] = {}

    def compare(self, run: Run) -> tuple[list[Measurement], ComparedArms]:
        """Compare a run with its base, or return what was found of a run with the same rows."""
        key = (run.base_digest, run.weights_digest, *(run.rows.get(name) for name in self._names))
        if key not in self._compared:
            self._compared[key] = self._compare(run)
        return self._compared[key]

    def _compare(self, run: Run) -> tuple[list[Measurement], ComparedArms]:
        measured = build_measurements(self._session, self._reader, run, self._base[run.base_digest])
        seed, of = self._session.first_seed, (run.base_digest, *(m.task.name for m in measured))
        if of not in self._admitted:
            self._admitted[of] = gating.admit_tasks(measured, seed)
        found = gating.compare_arms(
            measured,
            self._session.experiment.gate,
            identical=run.weights_digest == run.base_digest,
            seed=seed,
            admitted=self._admitted[of],
        )
        return measured, found


def _gate_results(
    session: Session, reader: Reader, runs: Runs, facts: Facts, arms: _RunComparisons
) -> dict[str, GateResult]:
    """Judge every finished run against its own base."""
    # A baseline is what others are to beat: what it lacks of the base's abilities is not judged.
    out: dict[str, GateResult] = {}
    for f, run in zip(facts, runs, strict=True):
        if run.run_id in session.settled:
            out[run.run_id] = session.settled[run.run_id].result
        elif run.state == "done" and not session.candidates[run.candidate].is_target_only:
            commonest = against.commonest_answers(session, reader, run, runs)
            out[run.run_id] = _gate_result(session, reader, run, f, arms, commonest)
    return out


def _gate_result(
    session: Session,
    reader: Reader,
    run: Run,
    f: CandidateFacts,
    arms: _RunComparisons,
    commonest: tuple[Comparison, ...],
    level: float | None = None,
) -> GateResult:
    policy = session.experiment.gate
    judged = (m for m in session.suites if gating.may_decide(m.task, m.role, m.suite, policy))
    measured, compared = arms.compare(run)
    return gating.judge(
        measured,
        gating.applicable_policy(policy, trained=f.trained),
        target=TargetFacts(f.target, f.vs_untrained, f.labels_missing, f.wins, commonest)
        if f.target
        else None,
        identical=run.weights_digest == run.base_digest,
        controls=controls_of(session.store, run, reader.controls),
        compared=compared,
        missing=[m.task.name for m in judged if f"{m.task.name}/test" not in run.rows],
        level=level,
    )


def _judge_family_again(
    session: Session, reader: Reader, runs: Runs, first: RunVerdicts, arms: _RunComparisons
) -> tuple[CandidateFacts, ...]:
    """Judge the fine-tunes of a family once more, each at the level that is left to it."""

    def correct(f: CandidateFacts, run: Run) -> CandidateFacts:
        if run.run_id in session.settled:
            return replace(f, corrected=session.settled[run.run_id].corrected)
        if f.standing is None or f.verdict is None or f.standing.level == f.standing.alpha:
            return f
        commonest = against.commonest_answers(session, reader, run, runs)
        found = _gate_result(session, reader, run, f, arms, commonest, f.standing.level)
        return replace(f, corrected=found.verdict)

    return tuple(correct(f, run) for f, run in zip(first.facts, runs, strict=True))


def build_measurements(
    session: Session, reader: Reader, run: Run, base: Mapping[str, Rows]
) -> list[Measurement]:
    """Put the rows of both arms beside each task that the run answered, with its A/A noise.

    Of a run that an interim analysis settled those are the items that it was evaluated on.
    """
    noise = store.flip_rates(session.store, run.base_digest, session.machine.precision)
    return [
        Measurement(
            m.task,
            m.role,
            m.suite,
            m.metrics,
            *_arms(session, reader, run, m, base),
            noise.get(m.task.name),
            documents=documents_of(session.store, m.task, m.role, run.rows[f"{m.task.name}/test"]),
        )
        for m in session.suites
        if f"{m.task.name}/test" in run.rows
    ]


def _arms(
    session: Session, reader: Reader, run: Run, m: MeasuredTask, base: Mapping[str, Rows]
) -> tuple[Rows, Rows]:
    """Read both arms' rows of a task: all, or those of the items that a settled run was evaluated on."""
    old, new = base[m.task.name], reader.read(run, m)
    if run.run_id in session.settled:
        evaluated = {row.example_id for row in new}
        old = [row for row in old if row.example_id in evaluated]
    return old, new
