"""Whether a stored run answered what the files of its tasks hold now.

Invariant: a verdict on items that were since added, mended or dropped is refused, by the digest
that differs; the files are read, nothing is asked again.
"""

from collections.abc import Mapping

from harness import store
from harness.data.version_cache import version_of_test
from harness.errors import IncompatibleRuns
from harness.evaluation import lm_eval
from harness.evaluation.row_sets import rows_version
from harness.records import FEWER, Run
from harness.spec import Experiment, Task
from harness.store import Store


def refuse_changed(
    experiment: Experiment, catalogue: Mapping[str, lm_eval.Found], at: Store, run: Run
) -> None:
    """Compare the versions of a run's rows with those that its files make now.

    A run of another experiment (a limited one, named by its id) answered other items on purpose.

    Raises:
        UserError: a file of a task cannot be read.
        IncompatibleRuns: a task's definition, its items or the code that asks them have changed, or the
            items of the run were drawn.
    """
    refuse_drawn(experiment, run)
    if run.experiment != experiment.name:
        return
    changed = []
    for task in experiment.tasks:
        if (key := f"{task.name}/test") in run.rows:
            then = store.read_identity(at, run.rows[key]).task_version
            now = _version(task, catalogue, experiment.seeds[0])
            if then != now:
                changed.append(f"{key} (task_version {then!r} then, {now!r} now)")
    if changed:
        raise IncompatibleRuns(
            f"{run.run_id}: found other items, definitions or asking code than it answered: "
            f"{'; '.join(changed)}; expected the files as they were; next: harness compare, which computes "
            "what changed"
        )


def refuse_drawn(experiment: Experiment, run: Run) -> None:
    """Refuse a run that was asked a drawn part of the items: its plain means are not those of the tasks.

    Raises:
        IncompatibleRuns: the items of the run were drawn.
    """
    if run.experiment == f"{experiment.name}{FEWER}":
        raise IncompatibleRuns(
            f"{run.run_id}: found a run of --fewer-items, whose items count by weights of its report; "
            f"expected whole tasks; next: harness compare --exact --candidates {run.candidate}"
        )


def _version(task: Task, catalogue: Mapping[str, lm_eval.Found], seed: int) -> str:
    if task.lm_eval:
        return rows_version(catalogue[task.name].task, catalogue[task.name].version)
    return rows_version(task, version_of_test(task, seed))
