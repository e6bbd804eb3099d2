"""Executors: what workers make of a comparison before the command, alone, goes through it in process.

Invariant: there is one way to judge. Workers make weights, answers and control arms under the names that
these have in any case; then the ordinary comparison runs, finds them, and times, judges and writes the index.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

from harness.config import LoadedExperiment
from harness.evaluation.rows.row_sets import RunRequest
from harness.evaluation.session import Session
from harness.experiment.executors.dispatch import run_jobs
from harness.experiment.executors.job_runner import JobInputs, JobResult, write_assignment
from harness.experiment.executors.work_plan import WorkerJob, WorkPlan, plan_work
from harness.experiment.preparation.scope import Scope
from harness.experiment.weights.candidate_weights import note_failed_trial
from harness.formatting import pluralize
from harness.models.hardware import torch_threads
from harness.records import Run
from harness.store import CLAIMS, remove


class WorkerPool(Protocol):
    """Workers that run jobs: at most `size` at once, each asked from a thread of its own."""

    @property
    def size(self) -> int:
        """Number of jobs that run at once."""

    def run(self, job: WorkerJob, known: JobInputs) -> JobResult:
        """Run a job and wait for it; one whose worker is lost is run again, twice at most."""

    def stop(self) -> None:
        """End whatever runs."""


def plan_of(
    session: Session,
    requests: Sequence[RunRequest],
    found: Sequence[Run | None],
    n_workers: int,
    scope: Scope,
) -> WorkPlan:
    """Plan what workers make of the runs that are not done.

    Of interim analyses they make weights alone: each analysis decides what the next one asks.
    """
    pairs = zip(requests, found, strict=True)
    open_ = [one for one, run in pairs if run is None or run.state != "done"]
    return plan_work(session, open_, n_workers, answers=not scope.fewer)


def make_on_workers(
    session: Session,
    loaded: LoadedExperiment,
    scope: Scope,
    requests: Sequence[RunRequest],
    found: Sequence[Run | None],
) -> None:
    """Let workers make what they can of the runs that are not done, as the experiment's `execution` says.

    What fails is kept in `session.failures` by candidate and seed, the control arms in `session.controls`.

    Raises:
        UserError: the executor cannot be used here, or a worker is not like this machine.
    """
    done = all(run and run.state == "done" for run in found)
    if done or session.experiment.execution.executor == "in_process":
        return
    threads = worker_threads(session)
    session.unload()
    try:
        with (
            write_assignment(session, loaded, scope, threads) as file,
            open_pool(session, file, threads) as pool,
        ):
            plan = plan_of(session, requests, found, pool.size, scope)
            if plan.needs:
                label = (
                    f"{plan} on {pluralize(pool.size, 'worker')} ({session.experiment.execution.executor})"
                )
                with session.progress.stage(label) as advance:
                    runs, note = session.store.folder, partial(_note_failed_trial, session)
                    failed = run_jobs(plan.needs, pool, session.controls, advance, runs, note)
                _keep_failures(session, plan, failed)
    finally:
        remove(session.store.folder, [session.store.folder / CLAIMS])


def _note_failed_trial(session: Session, job: WorkerJob, error: Exception) -> bool:
    """Note the trial of a job, or that its search is at, as a failed one; tells whether it could be named."""
    return note_failed_trial(session, session.candidates[job.name], job.part, error)


def _keep_failures(session: Session, plan: WorkPlan, failed: Mapping[WorkerJob, Exception]) -> None:
    for run, jobs in plan.rests_on.items():
        if errors := [failed[job] for job in jobs if job in failed]:
            session.failures[run] = errors[0]


def worker_threads(session: Session) -> int:
    """Return the threads of a worker: as written, else this command's, which workers on its CPUs share."""
    policy = session.experiment.execution
    if policy.threads:
        return policy.threads
    n_sharing = policy.workers or 1 if policy.executor == "local" and session.machine.device == "cpu" else 1
    return max(1, torch_threads() // n_sharing)


def open_pool(session: Session, file: Path, threads: int) -> AbstractContextManager[WorkerPool]:
    """Open the workers of an experiment's executor for an assignment.

    Raises:
        UserError: they cannot be had here.
    """
    policy, device = session.experiment.execution, session.machine.device
    if policy.executor == "local":
        from harness.experiment.executors.local import LocalPool

        return LocalPool(file, policy.workers, threads, device)
    if policy.executor == "ray":
        from harness.experiment.executors.ray_cluster import RayPool

        return RayPool(file, policy.address, policy.workers, threads, device)
    from harness.experiment.executors.slurm import SlurmPool

    return SlurmPool(file, policy, threads, device)
