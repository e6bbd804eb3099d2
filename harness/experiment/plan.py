"""Plan of a comparison: its steps, their dependencies, and the journal of their outcomes.

Invariant: a plan is pure; a step names its result, so repeating it computes nothing twice. Lines of the
journal are appended under a lock, and count once they are complete. Results are waited for, because a network
file system may cache for a while that a file is missing.
Source: nfs(5), *Directory entry caching*: `acdirmax`, 60 s unless the mount says otherwise.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from harness.errors import CandidateFailed
from harness.evaluation.candidates import ResolvedCandidate
from harness.evaluation.row_sets import RunRequest
from harness.evaluation.session import Session
from harness.experiment.stored_rows import is_cross_validated
from harness.formatting import count
from harness.models.hub import ModelSource
from harness.training.worker import decode_error

if TYPE_CHECKING:
    from filelock import BaseFileLock


class Step(NamedTuple):
    """Work for one worker: a base's answers, its control arm, a trial or fit of weights, or a run's answers.

    `name` is a candidate's, or the weights digest of a base. Answers are every `parts`-th row set from `part`
    on; `part` of a trial is the point of the sweep.
    """

    kind: Literal["base", "control", "trial", "fit", "answer"]
    name: str
    seed: int = 0
    part: int = 0
    parts: int = 1
    suites: bool = False


class Plan(NamedTuple):
    """Steps with the steps that each waits for, and the steps of each run by candidate and seed."""

    needs: dict[Step, tuple[Step, ...]]
    rests_on: dict[tuple[str, int], tuple[Step, ...]]

    def __str__(self) -> str:
        """Describe the number of steps of each kind."""
        kinds = Counter(step.kind for step in self.needs)
        said = ", ".join(f"{kind} {count(n)}" for kind, n in kinds.items())
        return f"{count(len(self.needs))} steps ({said})"


def make_plan(
    session: Session, requests: Sequence[RunRequest], n_workers: int, *, answers: bool = True
) -> Plan:
    """Plan the workers' part of the requested runs.

    The command makes the rest: answers of endpoints, work in folds, and sweeps that a judge must grade.
    Without `answers` the plan has only weights that do not depend on answers.
    """
    needs_judge = session.target.task.primary_metric in session.target.judged
    shared = []
    for one in requests:
        chooses = any(recipe.tried for recipe in one.candidate.lineage.values())
        apart = one.candidate.is_remote or bool(one.candidate.choosers)
        apart = apart or is_cross_validated(session.folds, one.candidate)
        if not (apart or (chooses and (needs_judge or not answers))):
            shared.append(one)
    plan = Plan({}, {})
    planner = _Planner(session, plan.needs, n_workers)
    if answers:
        compared = [one.candidate for one in shared if one.candidate.method.makes_language_model]
        for source in list_measured_bases(compared):
            planner.base_steps(source)
    for one in shared:
        made = planner.weights_step(one.candidate, one.seed)
        plan.rests_on[one.candidate.name, one.seed] = (made,) if made else ()
    if not answers:
        return plan
    # Answers are split so that no worker is idle; suites are answered once per weights.
    parts = -(-n_workers // max(1, len(shared)))
    answered: dict[tuple[str, int, str], tuple[Step, ...]] = {}
    for candidate, seed in shared:
        run = (candidate.name, seed)
        weights = (candidate.source_name, seed, candidate.served_base.weights_digest)
        gated = candidate.method.makes_language_model and not candidate.is_target_only
        suites = gated and candidate.given != candidate.base and weights not in answered
        n = min(parts, 2 + suites * len(session.suites))
        steps = tuple(Step("answer", *run, part, n, suites) for part in range(n))
        plan.needs.update(dict.fromkeys(steps, (*plan.rests_on[run], *planner.control_steps(candidate))))
        plan.rests_on[run] += (*steps, *(answered.get(weights, ()) if gated else ()))
        if suites:
            answered[weights] = steps
    return plan


class _Planner(NamedTuple):
    """Builder of a session's steps in `needs`, split for `n` workers."""

    session: Session
    needs: dict[Step, tuple[Step, ...]]
    n_workers: int

    def base_steps(self, source: ModelSource) -> tuple[Step, ...]:
        """Add the answers of a base to the suites."""
        parts = min(self.n_workers, len(self.session.suites))
        steps = tuple(Step("base", source.weights_digest, part=part, parts=parts) for part in range(parts))
        self.needs.update(dict.fromkeys(steps, ()))
        return steps

    def control_steps(self, candidate: ResolvedCandidate) -> tuple[Step, ...]:
        """Add the control arm of a candidate's base, which answers some of its stored items again."""
        if not self.session.suites or not candidate.method.makes_language_model:
            return ()
        step = Step("control", candidate.base.weights_digest)
        if step not in self.needs:
            self.needs[step] = self.base_steps(candidate.base)
        return (step,)

    def weights_step(self, candidate: ResolvedCandidate, seed: int) -> Step | None:
        """Add the step for a candidate's weights, after those they start from; None if they are given."""
        if candidate.given:
            return None
        step = Step("fit", candidate.source_name, seed)
        if step in self.needs:
            return step
        needs = self.steps_before(candidate, seed)
        if candidate.source.tried and candidate.method.trains:
            # A choice waits for the trials of a sweep; those of a search are one step, in turn.
            first = self.session.first_seed
            before = (*self.steps_before(candidate, first), *self.control_steps(candidate))
            if candidate.source.search:
                needs += before
                if seed != first:  # whose step is the search
                    needs += tuple(filter(None, [self.weights_step(candidate, first)]))
            else:
                n = len(candidate.points)
                trials = tuple(Step("trial", candidate.source_name, first, part, n) for part in range(n))
                self.needs.update(dict.fromkeys(trials, before))
                needs += trials
        self.needs[step] = needs
        return step

    def steps_before(self, candidate: ResolvedCandidate, seed: int) -> tuple[Step, ...]:
        """Add the steps of the candidates that weights start from, are rewarded by, or merge."""
        behind = filter(None, (candidate.init, candidate.reward, *candidate.merges))
        made = (self.weights_step(one, seed) for one in behind)
        return tuple(step for step in made if step)


BASE_ARM = "capability suite of the base"


def list_measured_bases(candidates: Collection[ResolvedCandidate]) -> list[ModelSource]:
    """List the bases that gated candidates are measured against: as published, then as served otherwise."""
    gated = [c for c in candidates if not c.is_target_only]
    return list(dict.fromkeys([*(c.base for c in gated), *(c.served_base for c in gated)]))


def arm_label(base_model: str, source: ModelSource) -> str:
    """Name the measurement of a base on the capability suite; `base_model` is the experiment's own."""
    other = "" if source.name == base_model else f" {source.name}"
    return f"{BASE_ARM}{other}{' in ' * bool(source.quantization)}{source.quantization.upper()}"


TRIES = 3  # attempts of a step whose workers are killed
PATIENCE_S = 90.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0


class Outcome(NamedTuple):
    """Outcome of a step: the id of a control arm, an encoded error, and the files that others need."""

    value: str = ""
    error: tuple[str, list[Any]] | None = None
    files: tuple[str, ...] = ()


class Journal:
    """State of a plan when last read.

    `ready` are the steps that can start, in the plan's order; `failed` includes steps that needed a failed
    one. `n_begun` counts starts of a step without an outcome. `refusal` is bad input that would stop every
    step. `files` maps ended steps to the files of them and their needs.
    """

    def __init__(self, file: Path, plan: Plan) -> None:
        self.plan, self.file, self._n_read = plan, file, 0
        self._steps = list(plan.needs)
        self._places = {step: place for place, step in enumerate(self._steps)}
        self.outcomes: dict[Step, Outcome] = {}
        self.failed: dict[Step, Exception] = {}
        self.files: dict[Step, tuple[str, ...]] = {}
        self.ready: dict[Step, None] = {}
        self.n_begun: Counter[Step] = Counter()
        self.refusal: Exception | None = None
        self._order = TopologicalSorter(plan.needs)
        self._order.prepare()
        self.read()

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to make."""
        return self.refusal is not None or not self._order.is_active()

    @property
    def is_under_way(self) -> bool:
        """Whether no step is left that waits for another one."""
        return len(self.files) + len(self.ready) == len(self._steps)

    @property
    def controls(self) -> dict[str, str]:
        """The control arms that were measured, by base."""
        made = (item for item in self.outcomes.items() if item[0].kind == "control")
        return {step.name: outcome.value for step, outcome in made if outcome.error is None}

    def read(self) -> None:
        """Read the whole lines that were appended since; one that was cut short by a kill is skipped."""
        whole, ended, entries = b"", [], list[Any]()
        if self.file.exists():
            with self.file.open("rb") as file:
                file.seek(self._n_read)
                lines, newline, _ = file.read().rpartition(b"\n")
            self._n_read += len(lines) + len(newline)
            whole = lines
        for line in whole.splitlines():
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
                before = (name for need in needs for name in self.files[need])
                self.files[step] = tuple(dict.fromkeys((*before, *outcome.files)))
            fresh = self._order.get_ready() if self._order.is_active() else ()
            self.ready.update(dict.fromkeys(fresh))
            ended = [
                step
                for step in fresh
                if step in self.outcomes or any(need in self.failed for need in self.plan.needs[step])
            ]
            if not ended:
                return

    def claim(self, locks: Path) -> "tuple[Step, BaseFileLock] | None":
        """Claim the first step that is ready and that no other worker has; a killed worker's claim ends."""
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

    def begin(self, step: Step) -> None:
        """Record that a worker has begun a step."""
        append(self.file, "begun", self._places[step])

    def end(self, step: Step, outcome: Outcome) -> None:
        """Record the outcome of a step."""
        append(self.file, "ended", self._places[step], *outcome)

    def fail_unseen(self, runs: Path) -> None:
        """Wait until all results are visible here; steps with missing files fail, with their dependants."""
        end = time.monotonic() + PATIENCE_S
        for step, files in self.files.items():
            try:
                wait_for_files(runs, files, end - time.monotonic())
            except CandidateFailed as error:
                self.failed.setdefault(step, error)


def append(file: Path, *entry: Any) -> None:
    """Append a line to a journal, also after one that was cut short."""
    from filelock import FileLock

    with FileLock(file.with_suffix(".lock")), file.open("a+b") as journal:
        is_cut = False
        if journal.tell():
            journal.seek(-1, os.SEEK_END)
            is_cut = journal.read() != b"\n"
        journal.write(b"\n" * is_cut + json.dumps(entry).encode() + b"\n")


def wait_for_files(folder: Path, names: Sequence[str], patience_s: float = PATIENCE_S) -> None:
    """Wait until files below a folder, which are known to be there, are seen by this machine.

    Raises:
        CandidateFailed: one of them is not seen in time.
    """
    end, pause = time.monotonic() + patience_s, _FIRST_WAIT_S
    while unseen := [name for name in names if not (folder / name).exists()]:
        if time.monotonic() > end:
            found = f"{folder / unseen[0]}, which a worker wrote, is not seen here after {PATIENCE_S:.0f} s"
            raise CandidateFailed(found, "a smaller acdirmax where the file system of the runs is mounted")
        # Listing the parent folders asks the server; a single name may come from a cache.
        for parent in {parent for name in unseen for parent in Path(name).parents}:
            with suppress(OSError):
                os.listdir(folder / parent)  # noqa: PTH208
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT_S)
