"""Executors: workers that carry out the steps of a comparison before the command collects the results.

Invariant: workers only make weights, answers and control arms; the command then times, judges and writes the
index. A local worker ends with the command that started it.
Source: Ray 2.60, `ray.remote` and `runtime_env` (env_vars); submitit 1.5, `AutoExecutor`, whose `batch` is a
Slurm job array.
"""

import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.config import LoadedExperiment
from harness.errors import CandidateFailed, UserError
from harness.evaluation.row_sets import RunRequest, list_open
from harness.evaluation.session import Session
from harness.experiment import step_worker
from harness.experiment.plan import Plan, make_plan
from harness.experiment.preparation import Scope
from harness.experiment.step_worker import PATIENCE_S, TRIES, Assignment, Journal
from harness.experiment.stored_rows import FoundRuns, is_cross_validated
from harness.formatting import count, pluralize
from harness.models.hardware import cpu_name, torch_threads, visible_gpus
from harness.models.pass_costs import list_known_costs
from harness.progress import Advance
from harness.spec import ExecutionPolicy
from harness.store import CLAIMS, remove
from harness.training import MEMORY_KNOBS


def plan_for_workers(
    session: Session, requests: Sequence[RunRequest], n_workers: int, *, answers: bool = True
) -> Plan:
    """Plan the steps of the requested runs that workers carry out.

    The command does the rest: answers of endpoints, work in folds, and sweeps that a judge must grade.
    Without `answers` the plan has only weights that do not depend on answers.
    """
    needs_judge = session.target.task.primary_metric in session.target.judged
    shared = []
    for request in requests:
        chooses = any(recipe.tried for recipe in request.candidate.lineage.values())
        apart = request.candidate.is_remote or bool(request.candidate.choosers)
        apart = apart or is_cross_validated(session.folds, request.candidate)
        if not (apart or (chooses and (needs_judge or not answers))):
            shared.append(request)
    return make_plan(session, shared, n_workers=n_workers, answers=answers, timed_again=False)


COMMAND = (sys.executable, "-P", "-m", "harness", "worker", "--until-input-ends")
_REACHED_S, _POLL_S = 10, 0.1
_PASSED_ON = ("HARNESS_", "HF_", "TOKENIZERS_")  # variables that workers get from the command's environment


class StartedWorker(NamedTuple):
    """Started worker: its error (None while running, empty on success), and a function that ends it."""

    read_end: Callable[[], str | None]
    stop: Callable[[], object]


class Starter(NamedTuple):
    """A way to start workers: the number at once, and a function that starts those with the given indices."""

    size: int
    start: Callable[[Sequence[int]], list[StartedWorker]]


@contextmanager
def open_starter(
    file: Path, policy: ExecutionPolicy, threads: int, device: str, command: Sequence[str] = COMMAND
) -> Iterator[Starter]:
    """Open the starter of an assignment's workers."""
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
    gpus = visible_gpus() if device == "cuda" else []  # one for each worker; extra workers share them
    if device != "cuda" and policy.workers is None:
        expected = "how many share the processors of this machine"
        raise UserError("execution.workers", "none, and no GPU", expected, "--workers 2")

    def start(index: int) -> StartedWorker:
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}
        log = file.with_name(f"{index}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, str(file)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=os.environ | _own_environment(threads) | gpu,
                start_new_session=True,  # the terminal interrupts the command, which ends the workers
            )

        def read_end() -> str | None:
            if (code := process.poll()) is None:
                return None
            process.communicate()
            lines = log.read_text("utf-8", "replace").strip().splitlines() if code else []
            return f"exit code {code}: {(lines or ['no output'])[-1]}" if code else ""

        def stop() -> None:
            process.kill()
            process.communicate()

        return StartedWorker(read_end, stop)

    return Starter(policy.workers or len(gpus), lambda indices: list(map(start, indices)))


def _own_environment(threads: int) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(step_worker.PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def _start_by_submitit(file: Path, policy: ExecutionPolicy, threads: int, device: str) -> Starter:
    if not policy.workers:
        raise UserError("execution.workers", "none", "how many work at once", "--workers 8")
    try:
        import submitit
    except ImportError:
        raise _missing("slurm", "submitit") from None
    cluster = "slurm" if policy.address == "auto" else policy.address
    try:
        executor = submitit.AutoExecutor(folder=str(file.with_name("%j")), cluster=cluster)
        resources = {"cpus_per_task": threads} if cluster == "slurm" else {}
        resources |= {"gpus_per_node": 1} if device == "cuda" else {}
        executor.update_parameters(**{"name": "harness", **resources, **policy.slurm})
    except (AssertionError, RuntimeError, ValueError, TypeError, NameError) as error:
        found = str(error).strip().partition("\n")[0]
        step = "run this where sbatch is, or fix address: and slurm:"
        raise UserError("executor: slurm", found, "submitit's clusters and parameters", step) from None

    def start(indices: Sequence[int]) -> list[StartedWorker]:
        with executor.batch():
            jobs = [executor.submit(step_worker.work, file) for _ in indices]
        return [StartedWorker(partial(read_end, job), job.cancel) for job in jobs]

    def read_end(job: Any) -> str | None:
        if not job.done():
            return None
        error = job.exception()
        return f"job {job.job_id}: {_last_words(error)}" if error else ""

    return Starter(policy.workers, start)


def _last_words(error: BaseException) -> str:
    return (str(error).strip(" -\n").splitlines() or [type(error).__name__])[-1]


def _start_on_ray(ray: Any, file: Path, policy: ExecutionPolicy, threads: int, device: str) -> Starter:
    n_gpus, resources = int(device == "cuda"), ray.cluster_resources()
    room = int(resources.get("CPU", 0) // threads)
    room = min(room, int(resources.get("GPU", 0))) if n_gpus else room
    if not room:
        found = f"no node with {threads} CPUs{' and a GPU' * n_gpus}"
        step = "ray start on more machines, or --threads 1"
        raise UserError(f"Ray at {policy.address}", found, "room for a worker", step)
    task = ray.remote(step_worker.work).options(num_cpus=threads, num_gpus=n_gpus, max_retries=0)

    def read_end(running: Any) -> str | None:
        if not ray.wait([running], timeout=0)[0]:
            return None
        try:
            ray.get(running)
        except ray.exceptions.RayTaskError as error:
            found, step = _last_words(error), "install the same harness-evals on every node"
            raise UserError("worker of Ray", found, "a node that runs harness", step) from None
        except ray.exceptions.RayError as error:
            return f"Ray lost it: {str(error).strip().splitlines()[0]}"
        return ""

    def stop(running: Any) -> None:
        with suppress(Exception):
            ray.cancel(running, force=True)

    def start(indices: Sequence[int]) -> list[StartedWorker]:
        running = [task.remote(file) for _ in indices]
        return [StartedWorker(partial(read_end, task_run), partial(stop, task_run)) for task_run in running]

    return Starter(min(room, policy.workers or room), start)


def _connect(address: str, threads: int) -> Any:
    try:
        import ray
    except ImportError:
        raise _missing("ray", "ray") from None
    passed_environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    runtime = {"env_vars": passed_environment | _own_environment(threads)}
    try:
        # Tries the host and port for some seconds first, because Ray waits for minutes.
        at = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
        host, colon, port = at.removeprefix("ray://").rpartition(":")
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_S).close()
        ray.init(address=address, runtime_env=runtime, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        found = f"no cluster ({str(error).strip().partition(chr(10))[0]})"
        step = "ray start --head on one machine, ray start --address on the others"
        raise UserError(f"Ray at {address}", found, "a running cluster", step) from None
    return ray


def _missing(executor: str, package: str) -> UserError:
    step = "pip install 'harness-evals[cluster]'"
    return UserError(f"executor: {executor}", f"no package {package}", "the package", step)


def describe_workers(session: Session, requests: Sequence[RunRequest], runs: FoundRuns, scope: Scope) -> str:
    """Describe the steps that workers would carry out; empty without workers."""
    policy = session.experiment.execution
    if policy.executor == "in_process":
        return ""
    plan = plan_for_workers(session, list_open(requests, runs), policy.workers or 1, answers=not scope.fewer)
    worker_limit = f", at most {count(policy.workers)} at once" if policy.workers else ""
    return f"workers ({policy.executor}{worker_limit}) would get {plan}"


def make_on_workers(
    session: Session, loaded: LoadedExperiment, scope: Scope, requests: list[RunRequest], runs: FoundRuns
) -> None:
    """Let workers make their part of the unfinished runs.

    Errors are kept in `session.failures` by candidate and seed, control arms in `session.controls`.
    """
    policy, open_ = session.experiment.execution, list_open(requests, runs)
    # The number set, or this command's threads, shared among local CPU workers.
    on_cpu = policy.executor == "local" and session.machine.device == "cpu"
    threads = policy.threads or max(1, torch_threads() // (policy.workers or 1 if on_cpu else 1))
    session.unload()
    file = step_worker.name_assignment(session.store)
    try:
        with open_starter(file, policy, threads, session.machine.device) as starter:
            # With interim analyses, workers only make weights: each analysis decides the next items.
            plan = plan_for_workers(session, open_, starter.size, answers=not scope.fewer)
            if not plan.needs:
                return
            journal = write_assignment(file, session, loaded, scope, plan, threads)
            label = f"{plan} on {pluralize(starter.size, 'worker')} ({policy.executor})"
            with session.progress.stage(label) as advance:
                follow(journal, starter, advance)
                end = time.monotonic() + PATIENCE_S
                for step, files in journal.files.items():  # wait until this machine sees all results
                    try:
                        step_worker.wait_for_files(session.store.folder, files, end - time.monotonic())
                    except CandidateFailed as failed:
                        journal.failed.setdefault(step, failed)
            session.controls.update(journal.controls)
            for run, steps in plan.runs.items():
                if errors := [journal.failed[step] for step in steps if step in journal.failed]:
                    session.failures[run] = errors[0]
    finally:
        file.unlink(missing_ok=True)
        remove(session.store.folder, [session.store.folder / CLAIMS])


def write_assignment(
    file: Path, session: Session, loaded: LoadedExperiment, scope: Scope, plan: Plan, threads: int
) -> Journal:
    """Write the assignment of the workers; return the journal that they will write."""
    machine = session.machine
    machine = machine._replace(name=cpu_name(threads)) if machine.device == "cpu" else machine
    state = step_worker.describe_state(session.sources, session.tasks, machine, threads)
    assignment = Assignment(loaded, scope, plan, machine, threads, Path.cwd(), state, list_known_costs())
    # The code's digest comes first, because other code may not be able to read the rest.
    content = pickle.dumps(step_worker.code_digest()) + pickle.dumps(assignment)
    partial_file = file.with_suffix(".part")
    partial_file.write_bytes(content)
    partial_file.rename(file)
    return Journal(file.with_name(step_worker.JOURNAL), plan)


def follow(journal: Journal, starter: Starter, advance: Advance) -> None:
    """Start workers and replace lost ones until no step is left; raises a worker's refusal."""
    started, last_words = dict(enumerate(starter.start(range(starter.size)))), ""
    n_ended = n_lost = 0
    try:
        while not journal.is_over:
            time.sleep(_POLL_S)
            ends = {index: worker.read_end() for index, worker in started.items()}
            journal.read()
            if journal.refusal:
                raise journal.refusal
            if len(journal.files) > n_ended:
                n_ended, n_lost = len(journal.files), 0
                last = next(reversed(journal.files))
                advance(n_ended, len(journal.plan.needs), f"{last.kind} {last.name}")
            lost = {index: last_word for index, last_word in ends.items() if last_word}
            started = {index: worker for index, worker in started.items() if ends[index] is None}
            n_lost += len(lost)
            last_words = next(iter(lost.values()), last_words)
            if n_lost >= TRIES * starter.size and not started:
                found = f"every worker ended {TRIES} times without a result: {last_words}"
                error = CandidateFailed(found, f"{MEMORY_KNOBS}, or fewer workers")
                journal.failed |= {step: error for step in journal.plan.needs if step not in journal.files}
                return
            # If all workers ended without error but steps are left, a lost worker held one: start another.
            indices = list(lost) if started or lost else [0]
            if indices and n_lost < TRIES * starter.size and not journal.is_over:
                started |= dict(zip(indices, starter.start(indices), strict=True))
    finally:
        for worker in started.values():
            worker.stop()
