"""Progress bars on stderr with the time left; sparse lines where stderr is not a terminal."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from harness.formatting import seconds
from harness.progress import Advance

_WORTH_A_LINE_S = 15.0
_GUESSED_S = 20.0  # expected seconds that are added to the measured ones when the pace is estimated
_BETWEEN = "bookkeeping and statistics"  # while no stage is open
_LINE_EVERY_S, _LOOK_EVERY_S = 60.0, 5.0


def console(width: int | None = None, *, stderr: bool = False) -> Console:
    """Open the terminal for writing, without colours and other styles if NO_COLOR is set."""
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(width=width, stderr=stderr, highlight=False, color_system=None if plain else "auto")


@dataclass
class _Stage:
    """A running stage: name, expected seconds, start, share that is done, time of that share, and a note."""

    label: str
    expected_s: float
    began: float
    share: float = 0.0
    share_at: float = 0.0
    note: str = ""


class TerminalProgress:
    """Draws stages, with or without a plan, and the lines of finished candidates.

    If stderr is not a terminal, a line per minute shows the current stage and the time left.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        look_every_s: float = _LOOK_EVERY_S,
        *,
        shows_items: bool = True,
    ) -> None:
        self._left: dict[str, float] = {}
        self._is_watched = False
        self._shows_items = shows_items
        self._clock, self._look_every_s = clock, look_every_s
        self._console = console(stderr=True)
        self._stages: list[_Stage] = []
        self._last_line = clock()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._expected_s = self._spent_s = 0.0
        self._passed_s = 0.0  # expected seconds of the stages since a candidate was last finished

    @contextmanager
    def follow(self, plan: Mapping[str, float]) -> Iterator[None]:
        """Draw the progress along a plan: candidates and their expected seconds."""
        self._left = dict(plan)
        with self._bar, self._each_minute():
            yield

    @contextmanager
    def stage(self, label: str, expected_s: float = 0.0) -> Iterator[Advance]:
        """Open a stage; its expected time improves the estimate of the time left."""
        stage = _Stage(label, expected_s, self._clock())
        task = self._bar.add_task(escape(label), total=1.0, note="")
        if expected_s > _WORTH_A_LINE_S and not self._left:
            self._print(f"{label} … about {seconds(expected_s)}")
        elif expected_s > _WORTH_A_LINE_S and not self._console.is_terminal:
            self._print(f"{label} … about {seconds(self._left_s())} left in all")

        def advance(done: float, total: float, note: str = "") -> None:
            stage.share, stage.share_at, stage.note = done / total, self._clock(), note
            eta = f"about {seconds(self._estimate_left_s(stage))} left"
            self._bar.update(task, completed=stage.share, note=f"{escape(note)}  {eta}" if note else eta)

        self._stages.append(stage)
        try:
            with nullcontext() if self._bar.live.is_started else self._bar, self._each_minute():
                yield advance
        finally:
            self._stages.remove(stage)
            self._bar.remove_task(task)
            self._passed_s += expected_s
            if expected_s:
                self._expected_s += expected_s
                self._spent_s += self._clock() - stage.began

    def show(self, candidate: str, line: str, *items: str) -> None:
        """Show a line of a candidate that is not done yet; the stages so far were part of its plan."""
        if candidate in self._left:
            self._left[candidate] = max(0.0, self._left[candidate] - self._passed_s)
        self._passed_s = 0.0
        self._print(line, *items)

    def finish(self, candidate: str, line: str, *items: str) -> None:
        """Show a candidate's line; its share of the plan is done, whether computed or already stored."""
        self._left.pop(candidate, None)
        self._passed_s = 0.0
        self._print(line, *items)

    def say_where(self) -> None:
        """Print the current stage, unless a line was printed within the last minute."""
        if self._clock() - self._last_line < _LINE_EVERY_S:
            return
        stages = [*self._stages]  # the working thread may close one meanwhile
        if not stages:
            left_s = self._left_s()
            self._print(f"{_BETWEEN} …{f' about {seconds(left_s)} left in all' if left_s else ''}")
            return
        stage = stages[-1]
        share = [f"{100 * stage.share:.0f} %"] if stage.share else []
        left_s = self._estimate_left_s(stage)
        eta = [f"about {seconds(left_s)} left{' in all' if self._left else ''}"] if left_s else []
        took = f"{seconds(self._clock() - stage.began)} so far"
        self._print(f"{stage.label} … {', '.join([*share, *filter(None, [stage.note]), took, *eta])}")

    @contextmanager
    def _each_minute(self) -> Iterator[None]:
        if self._console.is_terminal or self._is_watched:
            yield
            return
        is_over, self._is_watched = threading.Event(), True

        def look() -> None:
            while not is_over.wait(self._look_every_s):
                self.say_where()

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            is_over.set()
            watcher.join()
            self._is_watched = False

    def _print(self, line: str, *items: str) -> None:
        self._last_line = self._clock()
        # Lines of a log are not wrapped, because the reader's width is unknown.
        self._console.print(escape(line), soft_wrap=not self._console.is_terminal)
        for item in items if self._shows_items else ():
            self._console.print(Text(f"  {item}"), no_wrap=True, overflow="ellipsis")

    def _estimate_left_s(self, stage: _Stage) -> float:
        if not self._left and not stage.share:
            return max(0.0, stage.expected_s - (self._clock() - stage.began))
        if self._left or not stage.share:
            return max(0.0, self._left_s() - stage.expected_s * self._pace() * stage.share)
        elapsed_s = self._clock() - stage.began
        if not stage.expected_s:
            return elapsed_s * (1 - stage.share) / stage.share
        # A stage's start (a model is loaded, rows are read) says little about the pace of the rest.
        return (1 - stage.share) * ((1 - stage.share) * stage.expected_s + elapsed_s)

    def _pace(self) -> float:
        started = [stage for stage in [*self._stages] if stage.share and stage.expected_s]
        expected_s = self._expected_s + sum(stage.expected_s * stage.share for stage in started)
        spent_s = self._spent_s + sum(stage.share_at - stage.began for stage in started)
        return (spent_s + _GUESSED_S) / (expected_s + _GUESSED_S)

    def _left_s(self) -> float:
        return max(0.0, sum(self._left.values()) - self._passed_s) * self._pace()
