"""Slurm through submitit: each job is a job of Slurm's, submitted when its needs are met.

Invariant: submitit submits and waits, Slurm schedules; nothing is submitted that still waits for another job.
A job that is lost (killed, its node gone, its time over) is submitted again, and goes on with what is there.
The package is imported only where it is requested.
Source: submitit 1.5, `AutoExecutor`; its clusters `local` and `debug` run the same without Slurm.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from harness.errors import CandidateFailed, Problem, UserError
from harness.experiment.executors.job_runner import JobInputs, JobResult, run_job
from harness.experiment.executors.local import TRIES
from harness.experiment.executors.work_plan import WorkerJob
from harness.spec import ExecutionPolicy
from harness.training import MEMORY_KNOBS
from harness.training.worker import encode_error


class SlurmPool:
    """An executor of submitit's; its files and logs lie beside the assignment."""

    def __init__(
        self,
        file: Path,
        policy: ExecutionPolicy,
        threads: int,
        device: str,
        work: Callable[..., Any] = run_job,
    ) -> None:
        self._file, self._policy, self._threads, self._work = file, policy, threads, work
        self._n_gpus = int(device == "cuda")
        self._lock = threading.Lock()  # submitit's executor is not made for several threads
        self._jobs: set[Any] = set()
        self._stopped = False
        self.size = policy.workers or 0
        if not self.size:
            step = "--workers 8"
            raise UserError(Problem("execution.workers", "none", "how many jobs run at once", step))

    def __enter__(self) -> Self:
        self._executor = _executor(self._file.parent, self._policy, self._threads, self._n_gpus)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, job: WorkerJob, known: JobInputs) -> JobResult:
        """Submit a job and wait for it; one that is lost is submitted again."""
        from submitit.core.utils import FailedJobError

        for _ in range(TRIES):
            with self._lock:
                submitted = self._executor.submit(self._work, self._file, job, known)
                self._jobs.add(submitted)
            try:
                found: JobResult = submitted.result()
                return found
            except Exception as error:  # noqa: BLE001 (submitit's own, or whatever ended the job)
                last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                reason = f"job {submitted.job_id} ({job.kind} {job.name}) ended without a result: {last}"
                lost = CandidateFailed(reason, f"{MEMORY_KNOBS}, or more of slurm:")
                if self._stopped or isinstance(error, FailedJobError):  # would fail again
                    break
            finally:
                self._jobs.discard(submitted)
        return JobResult(error=encode_error(lost))

    def stop(self) -> None:
        """Cancel what is submitted and not finished."""
        self._stopped = True
        for submitted in list(self._jobs):
            submitted.cancel()


def _executor(folder: Path, policy: ExecutionPolicy, threads: int, n_gpus: int) -> Any:
    """Make the executor, with the parameters that the experiment gives it."""
    try:
        import submitit
    except ImportError:
        step = "pip install 'harness-evals[cluster]'"
        raise UserError(Problem("executor: slurm", "no package submitit", "the package", step)) from None
    cluster = "slurm" if policy.address == "auto" else policy.address
    try:
        executor = submitit.AutoExecutor(folder=str(folder / "%j"), cluster=cluster)
        own = {"cpus_per_task": threads} if cluster == "slurm" else {}
        own |= {"gpus_per_node": 1} if n_gpus else {}
        executor.update_parameters(**{"name": "harness", **own, **policy.slurm})
    except (AssertionError, RuntimeError, ValueError, TypeError, NameError) as error:
        found = str(error).strip().partition("\n")[0]
        step = "run this where sbatch is, or fix address: and slurm:"
        raise UserError(
            Problem("executor: slurm", found, "submitit's clusters and parameters", step)
        ) from None
    return executor
