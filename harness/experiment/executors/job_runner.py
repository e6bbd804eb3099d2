"""Runner of one job in a worker, and the assignment that tells every worker of a comparison what it works on.

Invariant: a worker computes only where code, packages, processor, threads, models and data are those of the
command that asked; it writes rows, weights and measurements under their own names, and never the index. What
it made is waited for before anybody looks for it, for a network file system may remember for a while that a
file is not there, and so it is never made twice.
Source: nfs(5), *Directory entry caching*: `acdirmax`, 60 s unless the mount says otherwise.
"""

import os
import pickle
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from harness import provenance, store
from harness.config import LoadedExperiment
from harness.errors import CandidateFailed, Problem, UserError, refuse
from harness.evaluation.candidates import base_weights
from harness.evaluation.control_arm import measure_once
from harness.evaluation.rescoring import rescore_stored
from harness.evaluation.rows.row_sets import RowSet, is_there, suite_sets, target_sets
from harness.evaluation.runner import answer, fill, find_base_rows, open_weights
from harness.evaluation.session import Session
from harness.experiment.executors.work_plan import WorkerJob
from harness.experiment.preparation import prepare_session
from harness.experiment.preparation.scope import Scope
from harness.experiment.runs.run_candidate import row_sets
from harness.experiment.weights.candidate_weights import ensure_weights, make_trial
from harness.models.devices import learn_costs, list_known_costs
from harness.models.hardware import Machine, cpu_kernels, cpu_name, current_device, torch_threads, use_threads
from harness.models.hub import ModelSource
from harness.progress import SilentProgress, quiet_libraries
from harness.records import digest
from harness.training import FIT, Weights
from harness.training.worker import encode_error

PACKAGE = Path(__file__).parents[2]
WORKERS = ".workers"  # a folder of the store


class Assignment(NamedTuple):
    """The experiment, its scope, machine and threads; `state` is all that has to be the same at a worker.

    `costs` of a pass lay out the batches of its card as the command's.
    """

    loaded: LoadedExperiment
    scope: Scope
    machine: Machine
    threads: int
    folder: Path
    state: dict[str, str]
    costs: dict[str, Any]


class JobInputs(NamedTuple):
    """Results of earlier jobs that one needs: control arms by base, and files of the store."""

    controls: Mapping[str, str]
    files: tuple[str, ...] = ()


class JobResult(NamedTuple):
    """Result of a job: the id of a control arm, or an error as `training.worker.decode_error` reads it.

    `files` are those of the store that others need and that are complete now, relative to its folder.
    `killed` says that its worker was killed each time, as the system does when memory runs out.
    """

    value: str = ""
    error: tuple[str, list[Any]] | None = None
    files: tuple[str, ...] = ()
    killed: bool = False


@contextmanager
def write_assignment(
    session: Session, loaded: LoadedExperiment, scope: Scope, threads: int
) -> Iterator[Path]:
    """Write an assignment into the store, for as long as workers need it; gives its file."""
    machine = session.machine
    if machine.device == "cpu":
        machine = machine._replace(name=cpu_name(threads))
    state = _state(session, machine.name, threads)
    assignment = Assignment(loaded, scope, machine, threads, Path.cwd(), state, list_known_costs())
    file = session.store.folder.resolve() / WORKERS / f"{uuid4().hex}.pickle"
    store.remove(session.store.folder, [session.store.folder / WORKERS])  # of a command that was killed
    file.parent.mkdir(parents=True)
    # The code comes first: what other code wrote need not be readable.
    file.write_bytes(pickle.dumps(_code_digest()) + pickle.dumps(assignment))
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def run_job(file: Path, job: WorkerJob, known: JobInputs) -> JobResult:
    """Make what a job asks for, as far as it is not there."""
    try:
        if file not in _opened:
            _opened.clear()
            _opened[file] = _prepare(_read_assignment(file))
        session = _opened[file]
        session.controls.update(known.controls)
        wait_for_files(session.store.folder, known.files)
        return _MAKE[job.kind](session, job)
    except Exception as error:  # noqa: BLE001 (the command hears of it, and decides)
        return JobResult(error=encode_error(error))


_opened: dict[Path, Session] = {}  # one: a worker works for one comparison at a time


def _read_assignment(file: Path) -> Assignment:
    # Listing asks the server of a network file system, where looking for a name may ask its memory.
    if not file.parent.is_dir() or file.name not in os.listdir(file.parent):  # noqa: PTH208
        step = "keep the project on a file system that all workers see, under the same path"
        raise UserError(Problem(_worker_name(), f"no {file}", "the runs folder of the command", step))
    with file.open("rb") as content:
        _refuse_other({"code of harness": pickle.load(content)}, {"code of harness": _code_digest()})
        found: Assignment = pickle.load(content)
    return found


def _prepare(assignment: Assignment) -> Session:
    """Open the experiment as the command has it, on as many threads, and refuse any difference."""
    os.chdir(assignment.folder)
    os.environ["OMP_NUM_THREADS"] = str(assignment.threads)  # before a library is loaded
    quiet_libraries()
    use_threads(assignment.threads)
    learn_costs(assignment.costs)
    session = prepare_session(assignment.loaded, assignment.scope, SilentProgress(), assignment.machine)
    session.is_worker = True
    _refuse_other(
        assignment.state, _state(session, current_device(assignment.machine.device), torch_threads())
    )
    return session


def _state(session: Session, device: str, threads: int) -> dict[str, str]:
    """Describe by name what rows and weights depend on: where they are computed, models and data."""
    of_cpu = session.machine.device == "cpu"
    kernels = {f"CPU {name}": value for name, value in cpu_kernels().items()} if of_cpu else {}
    if "CPU flags" in kernels:
        kernels["CPU flags"] = digest(kernels["CPU flags"])  # too many to read
    models = {f"model {name}": _model(source) for name, source in session.sources.items()}
    data = {f"data of {m.task.name}": digest(dict(m.versions)) for m in session.tasks}
    computed = {"precision": session.machine.precision, "threads": str(threads)}
    return provenance.describe_environment(device) | computed | kernels | models | data


def _model(source: ModelSource) -> str:
    return f"{source.weights_digest}/{source.template_digest}"


def _refuse_other(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Refuse to work where something is not as it is for the command."""
    step = "give all workers the same code, packages, processor, models and data as the command"
    problems = [
        Problem(f"{_worker_name()}: {name}", found.get(name, "none"), expected.get(name, "none"), step)
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    refuse(problems)


def _worker_name() -> str:
    return f"worker on {socket.gethostname()}"


def _code_digest() -> str:
    """Digest the files of this package."""
    files = sorted((*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.toml")))
    return digest([(str(file.relative_to(PACKAGE)), file.read_text("utf-8")) for file in files])


def _make_weights(session: Session, job: WorkerJob) -> JobResult:
    candidate = session.candidates[job.name]
    # Trials of a sweep were jobs that this one waited for; of a search that goes on, those of the worker that
    # was killed are known.
    if candidate.source.sweep or job.part:
        session.searched.add(candidate.source_name)
    return _weights_outcome(session, ensure_weights(session, candidate, job.seed))


def _make_trial(session: Session, job: WorkerJob) -> JobResult:
    return _weights_outcome(session, make_trial(session, session.candidates[job.name], job.part))


def _weights_outcome(session: Session, weights: Weights | None) -> JobResult:
    return JobResult(files=_there(session, [weights.folder / FIT] if weights and weights.folder else []))


def _measure_control(session: Session, job: WorkerJob) -> JobResult:
    measured = measure_once(session, _base(session, job.name))
    written = [store.control_file(session.store, measured)] if measured else []
    return JobResult(measured, files=_there(session, written))


def _answer_as_base(session: Session, job: WorkerJob) -> JobResult:
    weights = base_weights(_base(session, job.name))
    sets = suite_sets(session, weights)[job.part :: job.parts]
    if lacking := find_base_rows(session, _find_unanswered(session, sets)):
        with open_weights(session, weights) as model:
            fill(session, model, lacking, "base", shared=True)
    return _rows_outcome(session, sets)


def _answer(session: Session, job: WorkerJob) -> JobResult:
    candidate = session.candidates[job.name]
    weights = ensure_weights(session, candidate, job.seed)
    sets = (
        row_sets(session, candidate, weights, job.seed)
        if job.suites
        else target_sets(session, candidate.recipe, weights, job.seed)
    )
    own = sets[job.part :: job.parts]
    if lacking := _find_unanswered(session, own):
        answer(session, weights, lacking, "", candidate.base)
    return _rows_outcome(session, own)


def _rows_outcome(session: Session, sets: Sequence[RowSet]) -> JobResult:
    """Name the files of complete sets; what a worker that was killed at their completion left goes."""
    digests = [rows.answers.identity.digest for rows in sets]
    for one in digests:
        if (session.store.rows(one) / "blocks").exists():
            with session.claim(one):
                store.remove_merged_blocks(session.store, one)
    return JobResult(files=_there(session, map(session.store.parquet, digests)))


def _there(session: Session, files: Iterable[Path]) -> tuple[str, ...]:
    """Name the files that are in the store."""
    own = session.store.folder
    return tuple(str(file.relative_to(own)) for file in files if file.is_relative_to(own) and file.exists())


def _find_unanswered(session: Session, sets: Sequence[RowSet]) -> list[RowSet]:
    """List the sets that lack answers; what judges have yet to grade is graded where the command runs."""
    return [rows for rows in rescore_stored(session, sets) if not is_there(session, rows.answers)]


def _base(session: Session, weights_digest: str) -> ModelSource:
    known = (source for one in session.candidates.values() for source in one.bases)
    return next(source for source in known if source.weights_digest == weights_digest)


_MAKE = {
    "base": _answer_as_base,
    "control": _measure_control,
    "trial": _make_trial,
    "fit": _make_weights,
    "answer": _answer,
}


PATIENCE_S = 90.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0


def wait_for_files(folder: Path, names: Sequence[str], patience_s: float = PATIENCE_S) -> None:
    """Wait until files below a folder, which are known to be there, are seen by this machine.

    Raises:
        CandidateFailed: one of them is not seen in time.
    """
    end, pause = time.monotonic() + patience_s, _FIRST_WAIT_S
    while unseen := [name for name in names if not (folder / name).exists()]:
        if time.monotonic() > end:
            found = f"{folder / unseen[0]}, which a worker wrote, is not seen here after {patience_s:.0f} s"
            raise CandidateFailed(found, "a smaller acdirmax where the file system of the runs is mounted")
        for name in unseen:
            _list_folders(folder, name)
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT_S)


def _list_folders(folder: Path, name: str) -> None:
    """List the folders on the way to a file: listing asks the server, where a name may come from memory."""
    for parent in reversed(Path(name).parents):
        with suppress(OSError):
            os.listdir(folder / parent)  # noqa: PTH208
