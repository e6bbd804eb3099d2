"""Worker of a comparison: claims a ready step of the plan, carries it out, and repeats until none is left.

    runs/.workers/<id>/plan.pickle      experiment, plan and machine, while workers need them
    runs/.workers/<id>/journal          outcomes of the steps

Invariant: a worker computes only with the command's code, packages, processor, threads, models and data. It
writes rows, weights and measurements under their usual names, but never the index.
"""

import json
import os
import pickle
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import uuid4

from harness import provenance, store
from harness.config import LoadedExperiment
from harness.errors import CandidateFailed, Problem, UserError, refuse
from harness.evaluation.candidates import base_weights
from harness.evaluation.control_arm import measure_control
from harness.evaluation.row_sets import RowSet, suite_sets, target_sets
from harness.evaluation.runner import answer, fill, find_base_rows, open_weights
from harness.evaluation.session import MeasuredTask, Session
from harness.evaluation.stored_scores import rescore_stored
from harness.experiment.candidate_weights import ensure_weights, make_trial
from harness.experiment.plan import Plan, Step
from harness.experiment.preparation import Scope, prepare_session
from harness.experiment.run_candidate import row_sets
from harness.models.hardware import Machine, cpu_kernels, current_device, torch_threads, use_threads
from harness.models.hub import ModelSource
from harness.models.pass_costs import learn_costs
from harness.progress import SilentProgress, quiet_libraries
from harness.records import digest
from harness.training import FIT, MEMORY_KNOBS
from harness.training.job_worker import decode_error, encode_error

if TYPE_CHECKING:
    from filelock import BaseFileLock


TRIES = 3  # attempts of a step whose workers are killed
PATIENCE_S = 90.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0


class Outcome(NamedTuple):
    """Outcome of a step: the id of a control arm, an encoded error, and files that other steps need."""

    value: str = ""
    error: tuple[str, list[Any]] | None = None
    files: tuple[str, ...] = ()


class Journal:
    """State of a plan when last read.

    `ready` are the steps that can start, in the plan's order. `failed` includes steps that needed a failed
    one. `n_begun` counts starts of each step. `refusal` is an input error that stops every step. `files` maps
    ended steps to their files.
    """

    def __init__(self, file: Path, plan: Plan) -> None:
        self.plan, self.file, self._n_read = plan, file, 0
        self._steps = list(plan.needs)
        self._places = {step: index for index, step in enumerate(self._steps)}
        self.outcomes, self.failed = dict[Step, Outcome](), dict[Step, Exception]()
        self.files, self.ready = dict[Step, tuple[str, ...]](), dict[Step, None]()
        self.n_begun: Counter[Step] = Counter()
        self.refusal: Exception | None = None
        self._order = TopologicalSorter(plan.needs)
        self._order.prepare()
        self.read()

    @property
    def is_over(self) -> bool:
        """Whether no step is left."""
        return self.refusal is not None or not self._order.is_active()

    @property
    def controls(self) -> dict[str, str]:
        """The control arms that were measured, by base."""
        control_outcomes = (item for item in self.outcomes.items() if item[0].kind == "control")
        return {step.name: outcome.value for step, outcome in control_outcomes if outcome.error is None}

    def read(self) -> None:
        """Read the complete lines appended since the last call; lines that a kill truncated are skipped."""
        ended, entries, lines = list[Step](), list[Any](), b""
        if self.file.exists():
            with self.file.open("rb") as file:
                file.seek(self._n_read)
                lines, newline, _ = file.read().rpartition(b"\n")
            self._n_read += len(lines) + len(newline)
        for line in lines.splitlines():
            with suppress(ValueError):
                entries.append(json.loads(line))
        for kind, *content in entries:
            if kind == "refused":
                self.refusal = decode_error(*content)
                continue
            step = self._steps[content[0]]
            if kind == "begun":
                self.n_begun[step] += 1
            else:
                self.outcomes[step] = Outcome(*content[1:])
                ended.append(step)
        self._settle([step for step in ended if step in self.ready])

    def _settle(self, ended: list[Step]) -> None:
        while True:
            for step in ended:
                self.ready.pop(step)
                self._order.done(step)
                needs = self.plan.needs[step]
                outcome = self.outcomes.get(step, Outcome())
                if outcome.error:
                    self.failed[step] = decode_error(*outcome.error)
                elif error := next((self.failed[need] for need in needs if need in self.failed), None):
                    self.failed[step] = error
                self.files[step] = outcome.files
            fresh = self._order.get_ready() if self._order.is_active() else ()
            self.ready.update(dict.fromkeys(fresh))
            cannot_start = {step for step in fresh if self.failed.keys() & self.plan.needs[step]}
            ended = [step for step in fresh if step in self.outcomes or step in cannot_start]
            if not ended:
                return

    def claim(self, locks: Path) -> "tuple[Step, BaseFileLock] | None":
        """Claim the first ready step that no other worker holds; the claim of a killed worker ends."""
        from filelock import FileLock, Timeout

        locks.mkdir(exist_ok=True)
        for step in list(self.ready):
            lock = FileLock(locks / f"{self.file.parent.name}-{self._places[step]}")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            self.read()
            if step in self.ready:
                return step, lock
            lock.release()
        return None

    def note(self, kind: Literal["begun", "ended"], step: Step, outcome: Sequence[object] = ()) -> None:
        """Record that a worker has begun a step, or its outcome."""
        append(self.file, kind, self._places[step], *outcome)


def append(file: Path, *entry: Any) -> None:
    """Append a line to a journal, also after a truncated line."""
    from filelock import FileLock

    with FileLock(file.with_suffix(".lock")), file.open("a+b") as journal:
        is_cut = False
        if journal.tell():
            journal.seek(-1, os.SEEK_END)
            is_cut = journal.read() != b"\n"
        journal.write(b"\n" * is_cut + json.dumps(entry).encode() + b"\n")


def wait_for_files(folder: Path, names: Sequence[str], patience_s: float = PATIENCE_S) -> None:
    """Wait until this machine sees files below a folder; raises CandidateFailed after the timeout."""
    end, pause = time.monotonic() + patience_s, _FIRST_WAIT_S
    while unseen := [name for name in names if not (folder / name).exists()]:
        if time.monotonic() > end:
            found = f"{folder / unseen[0]}, which a worker wrote, is not seen here after {PATIENCE_S:.0f} s"
            raise CandidateFailed(found, "a smaller acdirmax where the file system of the runs is mounted")
        # Listing the parent folders queries the server; single names may come from a cache.
        for parent in {parent for name in unseen for parent in Path(name).parents}:
            with suppress(OSError):
                os.listdir(folder / parent)  # noqa: PTH208
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT_S)


PACKAGE = Path(__file__).parents[1]
WORKERS, ASSIGNMENT, JOURNAL = ".workers", "plan.pickle", "journal"  # a folder of the store, and files in it


class Assignment(NamedTuple):
    """Settings for workers; their `state` must equal this one, and `costs` of passes lay out batches."""

    loaded: LoadedExperiment
    scope: Scope
    plan: Plan
    machine: Machine
    threads: int
    folder: Path
    state: dict[str, str]
    costs: dict[str, Any]


def name_assignment(at: store.Store) -> Path:
    """Return the file of a new assignment in its own folder; remove assignments of killed commands."""
    folder = at.folder.resolve() / WORKERS
    store.remove(at.folder, [at.folder / WORKERS])
    file = folder / uuid4().hex / ASSIGNMENT
    file.parent.mkdir(parents=True)
    return file


def find_assignment(runs: Path) -> Path:
    """Find the assignment of the comparison that is running in a runs folder."""
    assignments = sorted(runs.resolve().glob(f"{WORKERS}/*/{ASSIGNMENT}"))
    if not assignments:
        step = "harness compare --executor local --workers 2, or name its runs folder"
        raise UserError(str(runs), "no comparison that has workers", "one at work there", step)
    return assignments[-1]


def work(file: Path, *, reports: bool = True) -> None:
    """Carry out the steps of an assignment until all are done or in progress elsewhere.

    With `reports`, input errors are reported to the command, which then stops everything. Raises UserError if
    this machine differs from the command's, or a step met an input error.
    """
    try:
        worker = _prepare(_read_assignment(file), file)
    except UserError as error:
        if reports and file.exists():
            append(file.with_name(JOURNAL), "refused", *encode_error(error))
        raise
    worker.pull()


class _Worker(NamedTuple):
    # Carries out the steps of an assignment, and records their outcomes.
    session: Session
    journal: Journal
    file: Path

    def pull(self) -> None:
        # The command removes the file when it needs no more results.
        journal, pause = self.journal, _FIRST_WAIT_S
        while self.file.exists() and not journal.is_over:
            if claimed := journal.claim(self.session.store.folder / store.CLAIMS):
                step, lock = claimed
                try:
                    self.carry_out(step)
                finally:
                    lock.release()
                pause = _FIRST_WAIT_S
            elif len(journal.files) + len(journal.ready) == len(journal.plan.needs):
                return  # no step waits for another one
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_WAIT_S)
            journal.read()

    def carry_out(self, step: Step) -> None:
        if self.journal.n_begun[step] >= TRIES:
            found = f"its worker ended {TRIES} times without a result at {step.kind} {step.name}"
            lost = CandidateFailed(found, f"{MEMORY_KNOBS}, or fewer workers")
            self.journal.note("ended", step, Outcome(error=encode_error(lost)))
            return
        self.journal.note("begun", step)
        self.session.controls.update(self.journal.controls)
        candidate = self.session.candidates.get(step.name)
        if step.kind == "fit" and candidate and candidate.source.sweep:  # its trials were steps of their own
            self.session.searched.add(candidate.source_name)
        try:
            needed = (name for need in self.journal.plan.needs[step] for name in self.journal.files[need])
            wait_for_files(self.session.store.folder, tuple(needed))
            outcome = self.find_or_make(step)
        except UserError as error:
            append(self.file.with_name(JOURNAL), "refused", *encode_error(error))
            raise
        except Exception as error:  # noqa: BLE001 (the command hears of it, and the other steps go on)
            outcome = Outcome(error=encode_error(error))
        self.journal.note("ended", step, outcome)

    def find_or_make(self, step: Step) -> Outcome:
        session, at = self.session, self.session.store
        if step.kind in ("base", "control"):
            bases = (source for candidate in session.candidates.values() for source in candidate.bases)
            base = next(source for source in bases if source.weights_digest == step.name)
            if step.kind == "control":
                measured = measure_control(session, base)
                return self.outcome([store.control_file(at, measured)] if measured else [], measured)
            weights = base_weights(base)
            sets = suite_sets(session, weights)[step.part :: step.parts]
            if lacking := find_base_rows(session, self.find_unanswered(sets)):
                with open_weights(session, weights) as model:
                    fill(session, model, lacking, "base", shared=True)
        else:
            candidate = session.candidates[step.name]
            if step.kind == "trial":
                trial = make_trial(session, candidate, step.part)
                return self.outcome([trial.folder / FIT] if trial and trial.folder else [])
            weights = ensure_weights(session, candidate, step.seed)
            if step.kind == "fit":
                return self.outcome([weights.folder / FIT] if weights.folder else [])
            sets = target_sets(session, candidate.recipe, weights, step.seed)
            if step.suites:
                sets = row_sets(session, candidate, weights, step.seed)
            sets = sets[step.part :: step.parts]
            if lacking := self.find_unanswered(sets):
                answer(session, weights, lacking, "", candidate.base)
        digests = [rows.ungraded.identity.digest for rows in sets]
        for rows_digest in digests:  # remove blocks of a worker killed at completion
            if (at.rows(rows_digest) / "blocks").exists():
                with session.claim(rows_digest):
                    store.remove_merged_blocks(at, rows_digest)
        return self.outcome(map(at.parquet, digests))

    def outcome(self, files: Iterable[Path], value: str = "") -> Outcome:
        store_folder = self.session.store.folder
        written = (file for file in files if file.is_relative_to(store_folder) and file.exists())
        return Outcome(value, files=tuple(str(file.relative_to(store_folder)) for file in written))

    def find_unanswered(self, sets: Sequence[RowSet]) -> list[RowSet]:
        # Ungraded answers do not count, as the command grades them.
        lacking = rescore_stored(self.session, sets)
        return [rows for rows in lacking if not rows.ungraded.is_there(self.session.store)]


def _read_assignment(file: Path) -> Assignment:
    # Listing queries the server of a network file system; looking up a name may use a cache.
    if not file.parent.is_dir() or file.name not in os.listdir(file.parent):  # noqa: PTH208
        step = "keep the project on a file system that all workers see, under the same path"
        worker = f"worker on {socket.gethostname()}"
        raise UserError(worker, f"no {file}", "the runs folder of the command", step)
    with file.open("rb") as content:
        _refuse_other({"code of harness": pickle.load(content)}, {"code of harness": code_digest()})
        assignment: Assignment = pickle.load(content)
    return assignment


def _prepare(assignment: Assignment, file: Path) -> _Worker:
    os.chdir(assignment.folder)
    os.environ["OMP_NUM_THREADS"] = str(assignment.threads)  # before a library is loaded
    quiet_libraries()
    use_threads(assignment.threads)
    learn_costs(assignment.costs)
    session = prepare_session(assignment.loaded, assignment.scope, SilentProgress(), assignment.machine)
    session.is_worker = True
    machine = session.machine._replace(name=current_device(assignment.machine.device))
    _refuse_other(assignment.state, describe_state(session.sources, session.tasks, machine, torch_threads()))
    return _Worker(session, Journal(file.with_name(JOURNAL), assignment.plan), file)


def describe_state(
    sources: Mapping[str, ModelSource], tasks: Iterable[MeasuredTask], machine: Machine, threads: int
) -> dict[str, str]:
    """Describe the state that must be the same on all workers and where the command runs."""
    of_cpu = machine.device == "cpu"
    kernels = {f"CPU {name}": value for name, value in cpu_kernels().items()} if of_cpu else {}
    if "CPU flags" in kernels:
        kernels["CPU flags"] = digest(kernels["CPU flags"])  # too many to read
    models = {f"model {n}": f"{s.weights_digest}/{s.template_digest}" for n, s in sources.items()}
    data = {f"data of {m.task.name}": digest(dict(m.versions)) for m in tasks}
    computed = {"precision": machine.precision, "threads": str(threads)}
    return provenance.describe_environment(machine.name) | computed | kernels | models | data


def _refuse_other(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    step = "give all workers the same code, packages, processor, models and data as the command"
    pairs = {name: (found.get(name, "none"), expected.get(name, "none")) for name in {**expected, **found}}
    where = f"worker on {socket.gethostname()}"
    refuse(Problem(f"{where}: {name}", *pair, step) for name, pair in pairs.items() if pair[0] != pair[1])


def code_digest() -> str:
    """Return the digest of all our code."""
    files = sorted((*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.toml")))
    return digest([(str(file.relative_to(PACKAGE)), file.read_text("utf-8")) for file in files])
