"""Journal of a plan: what workers began and made of it, as lines of one file that all of them see.

Invariant: a line is appended under a lock, counts once it is whole, and never changes. What waits for a
failed step fails with it. What a worker made is waited for before anybody looks for it, for a network file
system may remember for a while that a file is not there, and so it is never made twice.
Source: nfs(5), *Directory entry caching*: `acdirmax`, 60 s unless the mount says otherwise.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.errors import CandidateFailed
from harness.experiment.plan import Plan, Step
from harness.training.worker import decode_error

if TYPE_CHECKING:
    from filelock import BaseFileLock

TRIES = 3  # of a step whose workers are killed
PATIENCE_S = 90.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 1.0


class Outcome(NamedTuple):
    """Outcome of a step: the id of a control arm, or an error as `training.worker.decode_error` reads it.

    `files` are those of the store that others need and that are complete now, relative to its folder.
    """

    value: str = ""
    error: tuple[str, list[Any]] | None = None
    files: tuple[str, ...] = ()


class Journal:
    """State of a plan, as read last.

    `ready` are the steps that wait for nothing more, in the plan's order. `outcomes` are of the steps that
    ended, and `failed` also holds what waited for one that failed. `n_begun` counts how often a step was
    begun without an outcome; `passed_over` are searches whose lost trial was noted as a failed one. `refusal`
    is bad input, which no step would escape. `files` maps a step that ended to what it and its needs left.
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
        self.passed_over: set[Step] = set()
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
        """Read what was appended since."""
        ended = []
        for kind, *content in self._new_lines():
            if kind == "refused":
                self.refusal = decode_error(*content)
                continue
            step = self._steps[content[0]]
            if kind == "begun":
                self.n_begun[step] += 1
            elif kind == "passed over":
                self.n_begun[step] = 0
                self.passed_over.add(step)
            else:
                self.outcomes[step] = Outcome(*content[1:])
                ended.append(step)
        self._settle([step for step in ended if step in self.ready])

    def _new_lines(self) -> list[Any]:
        """Read the lines that are whole; one that was cut short by a kill is skipped."""
        if not self.file.exists():
            return []
        with self.file.open("rb") as file:
            file.seek(self._n_read)
            whole = file.read().rpartition(b"\n")
        self._n_read += len(whole[0]) + len(whole[1])
        found = []
        for line in whole[0].splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def _settle(self, ended: list[Step]) -> None:
        """Let go on what waited for steps that ended; what waits for a failed one ends with it."""
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
        """Note that a worker has begun a step."""
        append(self.file, "begun", self._places[step])

    def pass_over(self, step: Step) -> None:
        """Note that a lost trial of a search was noted as a failed one, so that the search goes on."""
        append(self.file, "passed over", self._places[step])

    def end(self, step: Step, outcome: Outcome) -> None:
        """Note the outcome of a step."""
        append(self.file, "ended", self._places[step], *outcome)

    def fail_rest(self, error: Exception) -> None:
        """Let everything that is not made fail with an error, here alone."""
        self.failed |= {step: error for step in self._steps if step not in self.files}

    def fail_unseen(self, runs: Path) -> None:
        """Wait until all that was made is seen on this machine; what is not fails, with what waits for it."""
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
        # Listing the folders on the way asks the server, where a name may come from memory.
        for parent in {parent for name in unseen for parent in Path(name).parents}:
            with suppress(OSError):
                os.listdir(folder / parent)  # noqa: PTH208
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT_S)
