"""Ray's cluster: each job is a task, which Ray schedules, and runs again where a worker or a node is lost.

Invariant: no row, weight or item goes through Ray, only names of files and jobs; the package is imported only
where a Ray cluster is requested.
Source: Ray 2.60, `ray.remote` (num_cpus, num_gpus, max_retries) and `runtime_env` (env_vars).
"""

import logging
import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from harness.errors import CandidateFailed, Problem, UserError
from harness.experiment.executors.job_runner import PACKAGE, JobInputs, JobResult, run_job
from harness.experiment.executors.work_plan import WorkerJob
from harness.training import MEMORY_KNOBS
from harness.training.worker import encode_error

RETRIES = 2
_REACHED_S = 10
_PASSED_ON = ("HARNESS_", "HF_", "TOKENIZERS_")  # what a job's environment takes from the command's


class RayPool:
    """A connection to a running cluster, and the tasks that it runs for this command."""

    def __init__(self, file: Path, address: str, n_workers: int | None, threads: int, device: str) -> None:
        self._file, self._address, self._threads = file, address, threads
        self._n_gpus = int(device == "cuda")
        self._requested = n_workers
        self._tasks: set[Any] = set()
        self._ray: Any = None
        self.size = 0

    def __enter__(self) -> Self:
        self._ray = _connect(self._address, self._threads)
        room = _room(self._ray.cluster_resources(), self._threads, self._n_gpus)
        if not room:
            self._ray.shutdown()
            found = f"no node with {self._threads} CPUs{' and a GPU' * self._n_gpus}"
            step = "ray start on more machines, or --threads 1"
            raise UserError(Problem(f"Ray at {self._address}", found, "room for a worker", step))
        self.size = min(room, self._requested or room)
        options = {"num_cpus": self._threads, "num_gpus": self._n_gpus, "max_retries": RETRIES}
        self._task = self._ray.remote(run_job).options(**options)
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def run(self, job: WorkerJob, known: JobInputs) -> JobResult:
        """Run a job where Ray has room for it.

        Raises:
            UserError: the node that Ray chose cannot run this code at all.
        """
        task = self._task.remote(self._file, job, known)
        self._tasks.add(task)
        try:
            found: JobResult = self._ray.get(task)
            return found
        except self._ray.exceptions.RayTaskError as error:
            step = "install the same harness-evals on every node"
            last = str(error).strip().splitlines()[-1]
            raise UserError(Problem("worker of Ray", last, "a node that runs harness", step)) from None
        except self._ray.exceptions.RayError as error:
            reason = f"Ray lost the job {job.kind} {job.name}: {str(error).strip().splitlines()[0]}"
            return JobResult(error=encode_error(CandidateFailed(reason, f"{MEMORY_KNOBS}, or fewer workers")))
        finally:
            self._tasks.discard(task)

    def stop(self) -> None:
        """Cancel what runs, with the processes that run it."""
        for task in list(self._tasks):
            with suppress(Exception):
                self._ray.cancel(task, force=True)


def _connect(address: str, threads: int) -> Any:
    """Connect to a running cluster; fails within seconds where nothing listens."""
    try:
        import ray
    except ImportError:
        step = "pip install 'harness-evals[cluster]'"
        raise UserError(Problem("executor: ray", "no package ray", "the package", step)) from None
    known = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    variables = known | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    try:
        _refuse_silent_address(os.environ.get("RAY_ADDRESS", address) if address == "auto" else address)
        ray.init(
            address=address,
            runtime_env={"env_vars": variables},
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        found = f"no cluster ({str(error).strip().partition(chr(10))[0]})"
        step = "ray start --head on one machine, ray start --address on the others"
        raise UserError(Problem(f"Ray at {address}", found, "a running cluster", step)) from None
    return ray


def _refuse_silent_address(address: str) -> None:
    """Try a host and port for some seconds: Ray itself waits for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_S).close()


def _room(resources: Mapping[str, float], threads: int, n_gpus: int) -> int:
    """Count the workers that a cluster of these resources runs at once."""
    by_cpu = int(resources.get("CPU", 0) // threads)
    return min(by_cpu, int(resources.get("GPU", 0))) if n_gpus else by_cpu
