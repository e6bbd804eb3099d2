"""Dispatch of a plan's jobs to workers, each as soon as what it waits for is there.

Invariant: at most as many jobs are under way as there are workers. A job that fails ends those alone that
wait for it; bad input ends everything.
"""

from collections import deque
from collections.abc import Mapping, MutableMapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

from harness.errors import UserError
from harness.experiment.executors.job_runner import Outcome
from harness.experiment.executors.work_plan import Job
from harness.progress import Advance
from harness.training.worker import decode_error

if TYPE_CHECKING:
    from harness.experiment.executors import Pool


def run_jobs(
    needs: Mapping[Job, Sequence[Job]], pool: "Pool", controls: MutableMapping[str, str], advance: Advance
) -> dict[Job, Exception]:
    """Run jobs in the order of their needs; returns the errors of those that failed, and of what needs them.

    The control arms that are measured are added to `controls`, and known to whatever begins after.

    Raises:
        UserError: a worker met one, which no other job would escape.
    """
    order, failed, ready = TopologicalSorter(needs), dict[Job, Exception](), deque[Job]()
    running: dict[Future[Outcome], Job] = {}
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
                    running[threads.submit(pool.run, job, dict(controls))] = job
            for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                job = running.pop(future)
                _keep(job, future.result(), controls, failed)
                order.done(job)
                n_done += 1
                advance(n_done, len(needs), f"{job.kind} {job.name}")
    finally:
        pool.stop()
        threads.shutdown(cancel_futures=True)
    return failed


def _keep(
    job: Job, outcome: Outcome, controls: MutableMapping[str, str], failed: MutableMapping[Job, Exception]
) -> None:
    if outcome.error is None:
        if job.kind == "control":
            controls[job.name] = outcome.value
        return
    error = decode_error(*outcome.error)
    if isinstance(error, UserError):
        raise error
    failed[job] = error
