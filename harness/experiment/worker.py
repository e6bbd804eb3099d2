"""Worker of a comparison: claims a ready step of its plan, makes it, and repeats until none is left.

    runs/.workers/<id>/plan.pickle      experiment, plan and machine, while workers need them
    runs/.workers/<id>/journal          outcomes of the steps

Invariant: a worker computes only with the code, packages, processor, threads, models and data of the command;
it writes rows, weights and measurements under their usual names, but never the index.
"""

import os
import pickle
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from harness import provenance, store
from harness.config import LoadedExperiment
from harness.errors import CandidateFailed, Problem, UserError, refuse
from harness.evaluation.candidates import base_weights
from harness.evaluation.judging_stage import rescore_stored
from harness.evaluation.row_sets import RowSet, suite_sets, target_sets
from harness.evaluation.runner import answer, fill, find_base_rows, measure_once, open_weights
from harness.evaluation.session import MeasuredTask, Session
from harness.experiment.candidate_weights import ensure_weights, make_trial
from harness.experiment.plan import TRIES, Journal, Outcome, Plan, Step, append, wait_for_files
from harness.experiment.preparation import Scope, prepare_session
from harness.experiment.run_candidate import row_sets
from harness.models.hardware import Machine, cpu_kernels, cpu_name, current_device, torch_threads, use_threads
from harness.models.hub import ModelSource
from harness.models.pass_costs import learn_costs, list_known_costs
from harness.progress import SilentProgress, quiet_libraries
from harness.records import digest
from harness.training import FIT, MEMORY_KNOBS
from harness.training.worker import encode_error

PACKAGE = Path(__file__).parents[1]
WORKERS, ASSIGNMENT, JOURNAL = ".workers", "plan.pickle", "journal"  # a folder of the store, and files in it
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0


class Assignment(NamedTuple):
    """Settings that workers are given; `state` must be the same there, `costs` of a pass lay out batches."""

    loaded: LoadedExperiment
    scope: Scope
    plan: Plan
    machine: Machine
    threads: int
    folder: Path
    state: dict[str, str]
    costs: dict[str, Any]


def name_assignment(at: store.Store) -> Path:
    """Return the file of a new assignment in its own folder; those of killed commands are removed."""
    folder = at.folder.resolve() / WORKERS
    store.remove(at.folder, [at.folder / WORKERS])
    file = folder / uuid4().hex / ASSIGNMENT
    file.parent.mkdir(parents=True)
    return file


def write_assignment(
    file: Path, session: Session, loaded: LoadedExperiment, scope: Scope, plan: Plan, threads: int
) -> Journal:
    """Write what workers need to know; returns the journal that they will write."""
    machine = session.machine
    if machine.device == "cpu":
        machine = machine._replace(name=cpu_name(threads))
    state = _state(session.sources, session.tasks, machine, threads)
    assignment = Assignment(loaded, scope, plan, machine, threads, Path.cwd(), state, list_known_costs())
    # The code comes first: what other code wrote need not be readable.
    content = pickle.dumps(_code_digest()) + pickle.dumps(assignment)
    part = file.with_suffix(".part")
    part.write_bytes(content)
    part.rename(file)
    return Journal(file.with_name(JOURNAL), plan)


def find_assignment(runs: Path) -> Path:
    """Find what the comparison that works in a runs folder has written for its workers."""
    found = sorted(runs.resolve().glob(f"{WORKERS}/*/{ASSIGNMENT}"))
    if not found:
        step = "harness compare --executor local --workers 2, or name its runs folder"
        raise UserError(Problem(str(runs), "no comparison that has workers", "one at work there", step))
    return found[-1]


def work(file: Path, *, reports: bool = True) -> None:
    """Make the steps of an assignment until all are done or in progress elsewhere.

    With `reports`, bad input is reported to the command, which then ends everything.

    Raises:
        UserError: this machine differs from the command's, or a step met bad input.
    """
    try:
        assignment = _read_assignment(file)
        session = _prepare(assignment)
    except UserError as error:
        if reports and file.exists():
            append(file.with_name(JOURNAL), "refused", *encode_error(error))
        raise
    _Worker(session, Journal(file.with_name(JOURNAL), assignment.plan), file).pull()


class _Worker(NamedTuple):
    """Makes the steps of the assignment in a file, and notes what became of them."""

    session: Session
    journal: Journal
    file: Path

    def pull(self) -> None:
        """Make one step after the other, as long as the command that wrote the file is interested."""
        journal, pause = self.journal, _FIRST_WAIT_S
        while self.file.exists() and not journal.is_over:
            if claimed := journal.claim(self.session.store.folder / store.CLAIMS):
                step, lock = claimed
                try:
                    self.make(step)
                finally:
                    lock.release()
                pause = _FIRST_WAIT_S
            elif journal.is_under_way:
                return
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST_WAIT_S)
            journal.read()

    def make(self, step: Step) -> None:
        """Make the missing parts of a step, and record its outcome."""
        if self.journal.n_begun[step] >= TRIES:
            found = f"its worker ended {TRIES} times without a result at {step.kind} {step.name}"
            lost = CandidateFailed(found, f"{MEMORY_KNOBS}, or fewer workers")
            self.journal.end(step, Outcome(error=encode_error(lost)))
            return
        self.journal.begin(step)
        self.session.controls.update(self.journal.controls)
        candidate = self.session.candidates.get(step.name)
        if step.kind == "fit" and candidate and candidate.source.sweep:  # its trials were earlier steps
            self.session.searched.add(candidate.source_name)
        try:
            needed = (name for need in self.journal.plan.needs[step] for name in self.journal.files[need])
            wait_for_files(self.session.store.folder, tuple(needed))
            outcome = _MAKE[step.kind](self, step)
        except UserError as error:
            append(self.file.with_name(JOURNAL), "refused", *encode_error(error))
            raise
        except Exception as error:  # noqa: BLE001 (the command hears of it, and the other steps go on)
            outcome = Outcome(error=encode_error(error))
        self.journal.end(step, outcome)

    def make_weights(self, step: Step) -> Outcome:
        candidate = self.session.candidates[step.name]
        if step.kind == "trial":
            weights = make_trial(self.session, candidate, step.part)
        else:
            weights = ensure_weights(self.session, candidate, step.seed)
        return Outcome(files=self.there([weights.folder / FIT] if weights and weights.folder else []))

    def measure_control(self, step: Step) -> Outcome:
        measured = measure_once(self.session, self.base(step.name))
        written = [store.control_file(self.session.store, measured)] if measured else []
        return Outcome(measured, files=self.there(written))

    def answer_as_base(self, step: Step) -> Outcome:
        weights = base_weights(self.base(step.name))
        sets = suite_sets(self.session, weights)[step.part :: step.parts]
        if lacking := find_base_rows(self.session, self.find_unanswered(sets)):
            with open_weights(self.session, weights) as model:
                fill(self.session, model, lacking, "base", shared=True)
        return self.rows_outcome(sets)

    def answer(self, step: Step) -> Outcome:
        session, candidate = self.session, self.session.candidates[step.name]
        weights = ensure_weights(session, candidate, step.seed)
        if step.suites:
            sets = row_sets(session, candidate, weights, step.seed)
        else:
            sets = target_sets(session, candidate.recipe, weights, step.seed)
        own = sets[step.part :: step.parts]
        if lacking := self.find_unanswered(own):
            answer(session, weights, lacking, "", candidate.base)
        return self.rows_outcome(own)

    def rows_outcome(self, sets: Sequence[RowSet]) -> Outcome:
        """Name the files of complete sets; blocks left by a worker that was killed at completion go."""
        digests = [rows.answers.identity.digest for rows in sets]
        for one in digests:
            if (self.session.store.rows(one) / "blocks").exists():
                with self.session.claim(one):
                    store.remove_merged_blocks(self.session.store, one)
        return Outcome(files=self.there(map(self.session.store.parquet, digests)))

    def there(self, files: Iterable[Path]) -> tuple[str, ...]:
        own = self.session.store.folder
        there = (file for file in files if file.is_relative_to(own) and file.exists())
        return tuple(str(file.relative_to(own)) for file in there)

    def find_unanswered(self, sets: Sequence[RowSet]) -> list[RowSet]:
        """List the sets that lack answers; what judges have yet to grade is graded where the command runs."""
        lacking = rescore_stored(self.session, sets)
        return [rows for rows in lacking if not rows.answers.is_there(self.session.store)]

    def base(self, weights_digest: str) -> ModelSource:
        known = (source for one in self.session.candidates.values() for source in one.bases)
        return next(source for source in known if source.weights_digest == weights_digest)


_MAKE = {
    "base": _Worker.answer_as_base,
    "control": _Worker.measure_control,
    "trial": _Worker.make_weights,
    "fit": _Worker.make_weights,
    "answer": _Worker.answer,
}


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
    os.chdir(assignment.folder)
    os.environ["OMP_NUM_THREADS"] = str(assignment.threads)  # before a library is loaded
    quiet_libraries()
    use_threads(assignment.threads)
    learn_costs(assignment.costs)
    session = prepare_session(assignment.loaded, assignment.scope, SilentProgress(), assignment.machine)
    session.is_worker = True
    here = session.machine._replace(name=current_device(assignment.machine.device))
    _refuse_other(assignment.state, _state(session.sources, session.tasks, here, torch_threads()))
    return session


def _state(
    sources: Mapping[str, ModelSource], tasks: Iterable[MeasuredTask], machine: Machine, threads: int
) -> dict[str, str]:
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
    problems = [
        Problem(f"{_worker_name()}: {name}", found.get(name, "none"), expected.get(name, "none"), step)
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    refuse(problems)


def _worker_name() -> str:
    return f"worker on {socket.gethostname()}"


def _code_digest() -> str:
    files = sorted((*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.toml")))
    return digest([(str(file.relative_to(PACKAGE)), file.read_text("utf-8")) for file in files])
