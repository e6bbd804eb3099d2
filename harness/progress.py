"""How long work reports where it is: one protocol, and the silent implementation of it.

Invariant: nothing here knows a terminal; the command line passes in what draws there.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Reports finished work within one stage."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Say how much of the stage is done, both in the stage's own unit."""


class Progress(Protocol):
    """Receives stages of work as they begin, and the rows of the table as they finish."""

    def stage(self, label: str, expected_s: float = 0.0) -> AbstractContextManager[Advance]:
        """Open a stage that is expected to take so many seconds; a context manager of `Advance`."""

    def finished(self, candidate: str, line: str) -> None:
        """Show the line of a candidate that is done or has failed."""


class Prefixed:
    """Passes progress on, each label and line with the same words in front."""

    def __init__(self, inner: Progress, prefix: str) -> None:
        self._inner, self._prefix = inner, prefix

    def stage(self, label: str, expected_s: float = 0.0) -> AbstractContextManager[Advance]:
        """Open a stage under its longer label."""
        return self._inner.stage(f"{self._prefix}{label}", expected_s)

    def finished(self, candidate: str, line: str) -> None:
        """Show the longer line of a candidate."""
        self._inner.finished(candidate, f"{self._prefix}{line}")


class Silent:
    """Reports nothing: for use from Python and in tests."""

    @contextmanager
    def stage(self, label: str, expected_s: float = 0.0) -> Iterator[Advance]:
        """Open a stage and ignore what it reports."""
        yield lambda done, total, note="": None

    def finished(self, candidate: str, line: str) -> None:
        """Ignore the candidate."""
