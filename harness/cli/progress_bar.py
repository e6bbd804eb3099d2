"""Progress bars on stderr with the time left; sparse lines where stderr is no terminal.

Invariant: progress goes to stderr; stdout belongs to results.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from harness.formatting import seconds
from harness.progress import Advance

_WORTH_A_LINE_S = 15.0
_FIRST_GUESS = 1.0


def console(width: int | None = None, *, stderr: bool = False) -> Console:
    """Open the terminal for writing; where NO_COLOR is set, nothing is coloured, bold or otherwise styled."""
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(width=width, stderr=stderr, highlight=False, color_system=None if plain else "auto")


class TerminalProgress:
    """Draws stages as they pass, and the lines of candidates that are finished."""

    def __init__(self) -> None:
        self._left: dict[str, float] = {}
        self._console = console(stderr=True)
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
    def following(self, plan: Mapping[str, float]) -> Iterator[None]:
        """Draw while a plan (candidates and their expected seconds) is worked off."""
        self._left = dict(plan)
        with self._bar:
            yield

    @contextmanager
    def stage(self, label: str, expected_s: float = 0.0) -> Iterator[Advance]:
        """Open a stage; what it is expected to take teaches the estimate of the time left."""
        start = time.monotonic()
        task = self._bar.add_task(escape(label), total=1.0, note="")
        if expected_s > _WORTH_A_LINE_S and not self._left:
            self._console.print(f"{escape(label)} … about {seconds(expected_s)}")
        elif expected_s > _WORTH_A_LINE_S and not self._console.is_terminal:
            self._console.print(f"{escape(label)} … about {seconds(self._left_s())} left in all")

        def advance(done: float, total: float, note: str = "") -> None:
            left = (
                f"about {seconds(max(0.0, self._left_s() - expected_s * self._pace() * done / total))} left"
            )
            self._bar.update(task, completed=done / total, note=f"{escape(note)}  {left}" if note else left)

        try:
            yield advance
        finally:
            self._bar.remove_task(task)
            self._passed_s += expected_s
            if expected_s:
                self._expected_s += expected_s
                self._spent_s += time.monotonic() - start

    def finish(self, candidate: str, line: str) -> None:
        """Show a candidate's line; its share of the plan is done, whether computed or found."""
        self._left.pop(candidate, None)
        self._passed_s = 0.0
        self._console.print(escape(line))

    def _pace(self) -> float:
        """Return measured seconds per expected second so far."""
        return self._spent_s / self._expected_s if self._expected_s else _FIRST_GUESS

    def _left_s(self) -> float:
        return max(0.0, sum(self._left.values()) - self._passed_s) * self._pace()
