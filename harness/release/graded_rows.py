"""Check that stored rows were graded as the files say now: by which judges, and by which rubrics.

Invariant: neither a judge nor a model is needed to tell; rows that were graded in another way are refused and
never judged by.
"""

from harness.config import CommandLine, Loaded
from harness.errors import IncompatibleRuns
from harness.evaluation.judges import stored_digests
from harness.evaluation.rows.row_sets import scoring_digest
from harness.records import Run
from harness.spec import JUDGE, Role, Task
from harness.store import Store, read_identity


def refuse_regraded(loaded: Loaded, at: Store, run: Run) -> None:
    """Compare what graded the rows of a run, on the target and in the suites, with what the files name now.

    Raises:
        UserError: a rubric cannot be used.
        IncompatibleRuns: another judge or rubric graded one of the tasks.
    """
    refuse_other_grades(loaded.experiment.target, "target", at, run, loaded.typed)
    for suite in loaded.experiment.suites:
        for task in suite.tasks:
            refuse_other_grades(task, suite.role, at, run, loaded.typed)


def refuse_other_grades(task: Task, role: Role, at: Store, run: Run, typed: CommandLine) -> None:
    """Refuse rows of one task that were graded by another judge, by another rubric, or in another way.

    Raises:
        UserError: a rubric cannot be used.
        IncompatibleRuns: they were.
    """
    key = f"{task.name}/test"
    if key not in run.rows or not any(written.startswith(JUDGE) for written in task.metrics):
        return
    then = read_identity(at, run.rows[key]).scoring_digest
    graded = stored_digests(task, at)
    if then not in {scoring_digest(task, role, judged, of) for judged in graded for of in (False, True)}:
        raise IncompatibleRuns(
            f"{run.run_id}: found grades of {key} by another judge or rubric, or another scoring of it; "
            "expected those of the files as they are now; next: "
            f"{typed.command('compare')}, which grades the same answers anew"
        )
