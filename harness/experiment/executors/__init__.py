"""Executors: workers that pull the steps of a comparison before the command, alone, goes through it.

Invariant: there is one way to judge. Workers make weights, answers and control arms under the names that
these have in any case; then the ordinary comparison runs, finds them, and times, judges and writes the index.
"""

import time
from collections.abc import Sequence

from harness.config import LoadedExperiment
from harness.errors import CandidateFailed
from harness.evaluation.row_sets import RunRequest
from harness.evaluation.session import Session
from harness.experiment.executors.journal import TRIES, Journal
from harness.experiment.executors.starters import Starter, open_starter
from harness.experiment.executors.worker import (
    ASSIGNMENT,
    find_assignment,
    name_assignment,
    work,
    write_assignment,
)
from harness.experiment.preparation.plan import Plan, make_plan
from harness.experiment.preparation.scope import Scope
from harness.formatting import pluralize
from harness.models.hardware import torch_threads
from harness.progress import Advance
from harness.records import Run
from harness.store import CLAIMS, remove
from harness.training import MEMORY_KNOBS

_POLL_S = 0.1


def plan_of(
    session: Session,
    requests: Sequence[RunRequest],
    found: Sequence[Run | None],
    n_workers: int,
    scope: Scope,
) -> Plan:
    """Plan what workers make of the runs that are not done.

    Of interim analyses they make weights alone: each analysis decides what the next one asks.
    """
    pairs = zip(requests, found, strict=True)
    open_ = [one for one, run in pairs if run is None or run.state != "done"]
    return make_plan(session, open_, n_workers, answers=not scope.fewer)


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
    policy = session.experiment.execution
    done = all(run and run.state == "done" for run in found)
    if done or policy.executor == "in_process":
        return
    threads = worker_threads(session)
    session.unload()
    file = name_assignment(session)
    try:
        with open_starter(file, policy, threads, session.machine.device) as starter:
            plan = plan_of(session, requests, found, starter.size, scope)
            if not plan.needs:
                return
            journal = write_assignment(file, session, loaded, scope, plan, threads)
            label = f"{plan} on {pluralize(starter.size, 'worker')} ({policy.executor})"
            with session.progress.stage(label) as advance:
                follow(journal, starter, advance)
                journal.fail_unseen(session.store.folder)
            session.controls.update(journal.controls)
            for run, steps in plan.rests_on.items():
                if errors := [journal.failed[step] for step in steps if step in journal.failed]:
                    session.failures[run] = errors[0]
    finally:
        file.unlink(missing_ok=True)
        remove(session.store.folder, [session.store.folder / CLAIMS])


def follow(journal: Journal, starter: Starter, advance: Advance) -> None:
    """Start workers, and others in the place of those that are lost, until no step is left.

    Raises:
        UserError: a worker met bad input, or is not like this machine.
    """
    started = dict(enumerate(starter.start(range(starter.size))))
    n_ended = n_lost = 0
    last_words = ""
    try:
        while not journal.is_over:
            time.sleep(_POLL_S)
            ends = {place: worker.read_end() for place, worker in started.items()}
            journal.read()
            if journal.refusal:
                raise journal.refusal
            if len(journal.files) > n_ended:
                n_ended, n_lost = len(journal.files), 0
                last = next(reversed(journal.files))
                advance(n_ended, len(journal.plan.needs), f"{last.kind} {last.name}")
            lost = {place: said for place, said in ends.items() if said}
            started = {place: worker for place, worker in started.items() if ends[place] is None}
            n_lost += len(lost)
            last_words = next(iter(lost.values()), last_words)
            if n_lost >= TRIES * starter.size and not started:
                found = f"every worker ended {TRIES} times without a result: {last_words}"
                journal.fail_rest(CandidateFailed(found, f"{MEMORY_KNOBS}, or fewer workers"))
                return
            # Where none is lost, what the others left as under way is of one that was.
            places = list(lost) if started or lost else [0]
            if places and n_lost < TRIES * starter.size and not journal.is_over:
                started |= dict(zip(places, starter.start(places), strict=True))
    finally:
        for worker in started.values():
            worker.stop()


def worker_threads(session: Session) -> int:
    """Return the threads of a worker: as written, else this command's, which workers on its CPUs share."""
    policy = session.experiment.execution
    if policy.threads:
        return policy.threads
    n_sharing = policy.workers or 1 if policy.executor == "local" and session.machine.device == "cpu" else 1
    return max(1, torch_threads() // n_sharing)
