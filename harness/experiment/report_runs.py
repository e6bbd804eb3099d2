"""Reports of runs that are there: just made, or stored as they are written now.

Invariant: nothing is trained or evaluated; what is not stored is refused with the reason that is known.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

from harness.errors import CandidateFailed, IncompatibleRuns
from harness.evaluation.candidate_rows import describe_training_rows
from harness.evaluation.judging_stage import judge_remarks, pair_remarks, self_preference_remarks
from harness.evaluation.row_sets import RunRequest
from harness.evaluation.session import Session
from harness.experiment.analysis import report_of
from harness.experiment.analysis.run_remarks import describe_prompting, describe_trainings, list_remarks
from harness.experiment.analysis.study import Study, study_session
from harness.experiment.analysis.target_facts import judge_of_pairs
from harness.experiment.analysis.verdict_records import report_changes
from harness.experiment.curves.data_scaling import fit_stored_curve
from harness.experiment.preparation import served_bases
from harness.experiment.run_preview import in_order, say_never_loaded
from harness.experiment.runs.candidate_result import outcome
from harness.experiment.runs.run_candidate import describe_outdated, find_stored_runs
from harness.experiment.runs.stored_rows import Reader, Runs
from harness.records import Run
from harness.report import ExperimentReport


def report_stored(session: Session, selected: Iterable[str]) -> ExperimentReport:
    """Report the stored runs of the selected candidates as they are written now; computes nothing.

    Raises:
        IncompatibleRuns: a candidate has no stored run, or only runs of another recipe or other items.
    """
    wanted = in_order(session, selected)
    return _report_runs(session, wanted, find_stored_runs(session, wanted), may_leave_out=True)


def _report_runs(
    session: Session,
    wanted: Sequence[RunRequest],
    found: Sequence[Run | None],
    *,
    may_leave_out: bool = False,
) -> ExperimentReport:
    """Report runs that were looked up; all have to be there, or the error names those to select instead."""
    if absent := [one for one, run in zip(wanted, found, strict=True) if run is None]:
        raise _phrase_absent(session, absent, wanted if may_leave_out else ())
    reader = Reader(session)
    return report_finished(
        session, reader, [outcome(session, reader, run) for run in found if run is not None]
    )


def _phrase_absent(
    session: Session, absent: Sequence[RunRequest], selectable: Sequence[RunRequest]
) -> IncompatibleRuns:
    """Say of which candidates no run is stored as written now, and as far as that is known why."""
    names = [one.candidate.name for one in absent]
    if unknown := session.unknown_bases():
        return IncompatibleRuns(
            f"{session.store.folder}: unknown whether {', '.join(names)} is stored as written now: "
            f"{say_never_loaded(unknown)}; expected a finished run; "
            "next: harness report, which loads it once"
        )
    reason = describe_outdated(session, absent[0])
    stored_as = f" ({reason})" if reason else ""
    kept = dict.fromkeys(one.candidate.name for one in selectable if one.candidate.name not in names)
    step = f"harness compare, or --candidates {','.join(kept)}" if kept else "harness compare"
    return IncompatibleRuns(
        f"{session.store.folder}: found no run of {', '.join(names)} as written now{stored_as}; "
        f"expected one of each candidate; next: {step}"
    )


def report_stored_so_far(session: Session, selected: Sequence[str], needed: str) -> ExperimentReport:
    """Report the stored runs of those selected candidates that have one; `needed` has to be among them.

    Raises:
        IncompatibleRuns: there is no run of `needed` as it is written now.
    """
    wanted = in_order(session, selected)
    found = list(zip(wanted, find_stored_runs(session, wanted), strict=True))
    there = {needed, *(one.candidate.name for one, run in found if run)}
    kept = [(one, run) for one, run in found if one.candidate.name in there]
    return _report_runs(session, [one for one, _ in kept], [run for _, run in kept])


def report_finished(
    session: Session,
    reader: Reader,
    runs: Runs,
    *,
    smoke: bool = False,
    said: Sequence[str] = (),
    wall_s: float | None = None,
) -> ExperimentReport:
    """Report finished runs, with what was `said` while they were made, and which stored verdicts are others.

    `wall_s` is what making them took.
    """
    header = _header(session) | ({} if wall_s is None else {"wall_s": wall_s})
    study = study_session(session, reader)
    notes, curve_of = [*said, *_notes(session, study, runs)], partial(fit_stored_curve, session, reader, runs)
    report = report_of(session, reader, runs, smoke=smoke, header=header, notes=notes, curve_of=curve_of)
    changed = report_changes(report, runs, study)
    return replace(report, notes=(*report.notes, *changed))


def _header(session: Session) -> dict[str, object]:
    """Say what all of it ran on; a base that cannot be read has no engine, and its candidates say why."""
    header: dict[str, object] = {"device": session.machine.name, "precision": session.machine.precision}
    with suppress(CandidateFailed):
        header["engine"] = session.engine(session.source)[0]
    return header


def _notes(session: Session, study: Study, runs: Runs) -> list[str]:
    names = dict.fromkeys(run.candidate for run in runs)
    of_rows = [*session.target.items.notes, *describe_training_rows(session, names)]
    of_rows += describe_prompting(session, names)
    of_pairs = [*filter(None, [judge_of_pairs(session)])]
    judged = [one for task in session.tasks for one in task.judged.values()] + of_pairs
    of_judges = [*judge_remarks(session.tasks), *self_preference_remarks(judged, runs)]
    for one in of_pairs:
        of_judges += pair_remarks(one, session.experiment.gate.max_errors)
    of_bases = served_bases.sentences(session.sources)
    of_weights = dict.fromkeys(describe_trainings(study, [run for run in runs if run.state == "done"]))
    of_runs = [*of_weights, *list_remarks(session, runs)]
    return [*_name_left_out(session, names), *of_rows, *of_bases, *of_runs, *of_judges]


def _name_left_out(session: Session, reported: Collection[str]) -> list[str]:
    """Name the candidates of the file that could answer and were not selected."""
    others = [n for n, one in session.candidates.items() if n not in reported and one.method.answers]
    return [f"not in this report, of the candidates that are written: {', '.join(others)}"] if others else []
