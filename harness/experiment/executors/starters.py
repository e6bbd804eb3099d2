"""Starters of workers: processes on this machine, tasks of a Ray cluster, or jobs of Slurm by submitit.

Invariant: each starts the same `harness worker`, which finds its steps itself; nothing but the name of a file
goes to it. A local worker ends with the command that started it, however that ends. Ray and submitit are
imported only where they are requested.
Source: Ray 2.60, `ray.remote` and `runtime_env` (env_vars); submitit 1.5, `AutoExecutor`, whose `batch` is a
job array of Slurm's and whose clusters `local` and `debug` run the same without Slurm.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.errors import Problem, UserError
from harness.experiment.executors.worker import PACKAGE, work
from harness.models.hardware import visible_gpus
from harness.spec import ExecutionPolicy

COMMAND = (sys.executable, "-P", "-m", "harness", "worker", "--until-input-ends")
_REACHED_S = 10
_PASSED_ON = ("HARNESS_", "HF_", "TOKENIZERS_")  # what a task's environment takes from the command's


class StartedWorker(NamedTuple):
    """A worker: how it ended (None while it works, empty where it ended well), and what ends it at once."""

    read_end: Callable[[], str | None]
    stop: Callable[[], object]


class Starter(NamedTuple):
    """A way to start workers: how many at once, and what starts those of some places among them."""

    size: int
    start: Callable[[Sequence[int]], list[StartedWorker]]


@contextmanager
def open_starter(
    file: Path, policy: ExecutionPolicy, threads: int, device: str, command: Sequence[str] = COMMAND
) -> Iterator[Starter]:
    """Open what starts the workers of an assignment.

    Raises:
        UserError: they cannot be had here.
    """
    if policy.executor == "local":
        yield _start_here(file, policy, threads, device, command)
    elif policy.executor == "slurm":
        yield _start_by_submitit(file, policy, threads, device)
    else:
        ray = _connect(policy.address, threads)
        try:
            yield _start_on_ray(ray, file, policy, threads, device)
        finally:
            ray.shutdown()


def _start_here(
    file: Path, policy: ExecutionPolicy, threads: int, device: str, command: Sequence[str]
) -> Starter:
    """Start processes on this machine, each with a GPU where there are GPUs; more workers share them."""
    gpus = visible_gpus() if device == "cuda" else []
    if device != "cuda" and policy.workers is None:
        expected = "how many share the processors of this machine"
        raise UserError(Problem("execution.workers", "none, and no GPU", expected, "--workers 2"))
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))

    def start(place: int) -> StartedWorker:
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {}
        log = file.with_name(f"{place}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(file)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)} | gpu,
                start_new_session=True,  # a terminal's interrupt goes to the command, which ends the workers
            )

        def read_end() -> str | None:
            if (code := process.poll()) is None:
                return None
            process.communicate()
            return f"exit code {code}: {_last_line(log)}" if code else ""

        def stop() -> None:
            process.kill()
            process.communicate()

        return StartedWorker(read_end, stop)

    return Starter(policy.workers or len(gpus), lambda places: list(map(start, places)))


def _last_line(log: Path) -> str:
    return (log.read_text("utf-8", "replace").strip().splitlines() or ["it said nothing"])[-1]


def _start_by_submitit(file: Path, policy: ExecutionPolicy, threads: int, device: str) -> Starter:
    """Submit workers as a job array; their logs lie beside the assignment."""
    if not policy.workers:
        raise UserError(Problem("execution.workers", "none", "how many work at once", "--workers 8"))
    try:
        import submitit
    except ImportError:
        raise _missing("slurm", "submitit") from None
    cluster = "slurm" if policy.address == "auto" else policy.address
    try:
        executor = submitit.AutoExecutor(folder=str(file.with_name("%j")), cluster=cluster)
        own = {"cpus_per_task": threads} if cluster == "slurm" else {}
        own |= {"gpus_per_node": 1} if device == "cuda" else {}
        executor.update_parameters(**{"name": "harness", **own, **policy.slurm})
    except (AssertionError, RuntimeError, ValueError, TypeError, NameError) as error:
        found = str(error).strip().partition("\n")[0]
        step = "run this where sbatch is, or fix address: and slurm:"
        expected = "submitit's clusters and parameters"
        raise UserError(Problem("executor: slurm", found, expected, step)) from None

    def start(places: Sequence[int]) -> list[StartedWorker]:
        with executor.batch():
            jobs = [executor.submit(work, file) for _ in places]
        return [StartedWorker(partial(_end_of_job, job), job.cancel) for job in jobs]

    return Starter(policy.workers, start)


def _end_of_job(job: Any) -> str | None:
    if not job.done():
        return None
    error = job.exception()
    return f"job {job.job_id}: {_last_words(error)}" if error else ""


def _last_words(error: BaseException) -> str:
    return (str(error).strip(" -\n").splitlines() or [type(error).__name__])[-1]


def _start_on_ray(ray: Any, file: Path, policy: ExecutionPolicy, threads: int, device: str) -> Starter:
    """Start tasks where the cluster has room for them."""
    n_gpus = int(device == "cuda")
    resources = ray.cluster_resources()
    room = int(resources.get("CPU", 0) // threads)
    room = min(room, int(resources.get("GPU", 0))) if n_gpus else room
    if not room:
        found = f"no node with {threads} CPUs{' and a GPU' * n_gpus}"
        step = "ray start on more machines, or --threads 1"
        raise UserError(Problem(f"Ray at {policy.address}", found, "room for a worker", step))
    task = ray.remote(work).options(num_cpus=threads, num_gpus=n_gpus, max_retries=0)

    def read_end(running: Any) -> str | None:
        if not ray.wait([running], timeout=0)[0]:
            return None
        try:
            ray.get(running)
        except ray.exceptions.RayTaskError as error:
            step = "install the same harness-evals on every node"
            found = _last_words(error)
            raise UserError(Problem("worker of Ray", found, "a node that runs harness", step)) from None
        except ray.exceptions.RayError as error:
            return f"Ray lost it: {str(error).strip().splitlines()[0]}"
        return ""

    def stop(running: Any) -> None:
        with suppress(Exception):
            ray.cancel(running, force=True)

    def start(places: Sequence[int]) -> list[StartedWorker]:
        running = [task.remote(file) for _ in places]
        return [StartedWorker(partial(read_end, one), partial(stop, one)) for one in running]

    return Starter(min(room, policy.workers or room), start)


def _connect(address: str, threads: int) -> Any:
    """Connect to a running cluster; fails within seconds where nothing listens."""
    try:
        import ray
    except ImportError:
        raise _missing("ray", "ray") from None
    known = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    variables = known | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
    try:
        # A host and port are tried for some seconds: Ray itself waits for minutes.
        at = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
        host, colon, port = at.removeprefix("ray://").rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_S).close()
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


def _missing(executor: str, package: str) -> UserError:
    step = "pip install 'harness-evals[cluster]'"
    return UserError(Problem(f"executor: {executor}", f"no package {package}", "the package", step))
