"""Local workers: processes on this machine, each with a GPU where there are GPUs; more workers share them.

Invariant: a worker ends with the command that started it, however that ends; one that is killed takes its job
alone with it, which another runs again. Between them go pickles over pipes: an assignment's file and jobs to
the worker, outcomes from it.
"""

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from harness.errors import CandidateFailed, Problem, UserError
from harness.experiment.executors.job_runner import PACKAGE, JobInputs, JobResult, run_job
from harness.experiment.executors.work_plan import WorkerJob
from harness.models.hardware import visible_gpus
from harness.progress import quiet_environment
from harness.training import MEMORY_KNOBS
from harness.training.worker import encode_error

TRIES = 3
COMMAND = (sys.executable, "-P", "-m", "harness.experiment.executors.local")


class LocalPool:
    """Worker processes, started when they are first needed; the log of each lies beside the assignment."""

    def __init__(
        self, file: Path, n_workers: int | None, threads: int, device: str, command: Sequence[str] = COMMAND
    ) -> None:
        self._file, self._threads, self._command = file, threads, command
        self._gpus = visible_gpus() if device == "cuda" else []
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._workers: dict[int, subprocess.Popen[bytes]] = {}
        self._stopped = False
        self.size = _n_workers(n_workers, len(self._gpus), device)

    def __enter__(self) -> Self:
        for place in range(self.size):
            self._free.put(place)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, job: WorkerJob, known: JobInputs) -> JobResult:
        """Run a job on a free worker; on another one where the first is killed."""
        place, ended = self._free.get(), 0
        try:
            for _ in range(TRIES):
                if self._stopped:
                    break
                worker = self._workers.get(place) or self._start(place)
                try:
                    pickle.dump((job, known), _stream(worker.stdin))
                    _stream(worker.stdin).flush()
                    found: JobResult = pickle.load(_stream(worker.stdout))
                    return found
                except (EOFError, OSError, pickle.UnpicklingError):
                    self._workers.pop(place, None)
                    ended = _end(worker)
            error = encode_error(self._describe_loss(job, place, ended))
            return JobResult(error=error, killed=ended == -signal.SIGKILL and not self._stopped)
        finally:
            self._free.put(place)

    def stop(self) -> None:
        """End all workers at once; whatever they have finished is there."""
        self._stopped = True
        for worker in list(self._workers.values()):
            worker.kill()
        while self._workers:
            _end(self._workers.popitem()[1])

    def _start(self, place: int) -> subprocess.Popen[bytes]:
        """Start a worker; a terminal's interrupt goes to the command, which ends the workers."""
        path = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(self._threads)}
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[place % len(self._gpus)]} if self._gpus else {}
        with self._log(place).open("wb") as log:
            worker = subprocess.Popen(
                [*self._command, str(self._file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | own | gpu,
                start_new_session=True,
            )
        self._workers[place] = worker
        if self._stopped:  # meanwhile, when this one was not there yet to be ended
            worker.kill()
        return worker

    def _log(self, place: int) -> Path:
        return self._file.with_name(f"{place}.log")

    def _describe_loss(self, job: WorkerJob, place: int, code: int) -> CandidateFailed:
        last = (self._log(place).read_text("utf-8", "replace").strip().splitlines() or [""])[-1]
        found = f"its worker ended {TRIES} times with exit code {code} at the job {job.kind} {job.name}"
        killed = code == -signal.SIGKILL  # as where memory is short
        knob = f"{MEMORY_KNOBS}, or fewer workers" if killed else f"fixing it by its log, {self._log(place)}"
        return CandidateFailed(f"{found}{': ' if last else ''}{last}", knob)


def _n_workers(requested: int | None, n_gpus: int, device: str) -> int:
    """Return how many workers to start: as many as are requested, else one for each GPU."""
    if device != "cuda" and requested is None:
        expected = "how many share the processors of this machine"
        raise UserError(Problem("execution.workers", "none, and no GPU", expected, "--workers 2"))
    return requested or n_gpus


def _stream(pipe: Any) -> Any:
    assert pipe is not None
    return pipe


def _end(worker: subprocess.Popen[bytes]) -> int:
    """Make sure that a worker has ended; returns its exit code, negative of a signal."""
    worker.kill()
    code = worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        with suppress(OSError):  # what was not sent yet has nobody to go to
            _stream(pipe).close()
    return code


def main() -> None:
    """Run the jobs that standard input names, until it ends: whoever asks for them is gone then."""
    quiet_environment()
    jobs: queue.SimpleQueue[tuple[WorkerJob, JobInputs]] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                jobs.put(pickle.load(sys.stdin.buffer))
        except (EOFError, pickle.UnpicklingError):
            os._exit(0)

    with os.fdopen(os.dup(1), "wb") as outcomes:
        os.dup2(2, 1)  # what libraries print is no outcome
        threading.Thread(target=listen, daemon=True).start()
        while True:
            pickle.dump(run_job(Path(sys.argv[1]), *jobs.get()), outcomes)
            outcomes.flush()


if __name__ == "__main__":
    main()
