"""Dispatch of a plan's jobs to workers, each as soon as what it waits for is there.

Invariant: at most as many jobs are under way as there are workers. A job that fails ends those alone that
wait for it, but a trial whose worker was killed is a failed trial, behind which a search goes on; bad input
ends everything. What a job has made is seen here before it counts as done.
"""

from collections import Counter, deque
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import CandidateFailed, UserError
from harness.experiment.executors.job_runner import JobInputs, JobResult, wait_for_files
from harness.experiment.executors.work_plan import WorkerJob
from harness.progress import Advance
from harness.training.worker import decode_error, encode_error

if TYPE_CHECKING:
    from harness.experiment.executors import WorkerPool


def run_jobs(
    needs: Mapping[WorkerJob, Sequence[WorkerJob]],
    pool: "WorkerPool",
    controls: MutableMapping[str, str],
    advance: Advance,
    runs: Path,
    note_failed_trial: Callable[[WorkerJob, Exception], bool] = lambda job, error: False,
) -> dict[WorkerJob, Exception]:
    """Run jobs in the order of their needs; returns the errors of those that failed, and of what needs them.

    The control arms that are measured are added to `controls`, and known to whatever begins after. `runs` is
    the folder in which the files that a job leaves are waited for. `note_failed_trial` notes a trial whose
    worker was killed as a failed one and tells whether it could: then what waits for it runs, and a search
    is asked to go on.

    Raises:
        UserError: a worker met one, which no other job would escape.
    """
    order, failed, ready = TopologicalSorter(needs), dict[WorkerJob, Exception](), deque[WorkerJob]()
    running: dict[Future[JobResult], WorkerJob] = {}
    files: dict[WorkerJob, tuple[str, ...]] = {}  # of a job and of all that it waited for
    n_killed: Counter[WorkerJob] = Counter()  # trials of a search whose worker was killed
    order.prepare()
    threads = ThreadPoolExecutor(pool.size, thread_name_prefix="job")
    try:
        n_done = 0
        while order.is_active():
            ready.extend(order.get_ready())
            while ready and len(running) < pool.size:
                job = ready.popleft()
                if error := next((failed[one] for one in needs[job] if one in failed), None):
                    failed[job] = error
                    order.done(job)
                else:
                    files[job] = tuple(dict.fromkeys(name for one in needs[job] for name in files[one]))
                    known = JobInputs(dict(controls), files[job])
                    numbered = job._replace(part=n_killed[job]) if job.kind == "fit" else job
                    running[threads.submit(_run, pool, numbered, known, runs)] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                job = running.pop(future)
                outcome = future.result()
                files[job] += outcome.files
                is_noted = outcome.killed and _note(job, outcome, note_failed_trial)
                if is_noted and job.kind == "fit":
                    n_killed[job] += 1
                    ready.append(job)
                    continue
                if not is_noted:
                    _keep(job, outcome, controls, failed)
                order.done(job)
                n_done += 1
                advance(n_done, len(needs), f"{job.kind} {job.name}")
    finally:
        pool.stop()
        threads.shutdown(cancel_futures=True)
    return failed


def _run(pool: "WorkerPool", job: WorkerJob, known: JobInputs, runs: Path) -> JobResult:
    """Run a job, and wait until what it made is seen here too."""
    outcome = pool.run(job, known)
    try:
        wait_for_files(runs, outcome.files)
    except CandidateFailed as error:
        return JobResult(error=encode_error(error))
    return outcome


def _keep(
    job: WorkerJob,
    outcome: JobResult,
    controls: MutableMapping[str, str],
    failed: MutableMapping[WorkerJob, Exception],
) -> None:
    if outcome.error is None:
        if job.kind == "control":
            controls[job.name] = outcome.value
        return
    error = decode_error(*outcome.error)
    if isinstance(error, UserError):
        raise error
    failed[job] = error


def _note(
    job: WorkerJob, outcome: JobResult, note_failed_trial: Callable[[WorkerJob, Exception], bool]
) -> bool:
    """Note the trial of a job whose worker was killed as a failed one; False where it is at none."""
    if outcome.error is None or job.kind not in ("trial", "fit"):
        return False
    return note_failed_trial(job, decode_error(*outcome.error))
