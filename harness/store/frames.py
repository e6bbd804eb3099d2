"""The stored tables as pandas frames, for notebooks: `harness.frames.scores("runs")`.

Invariant: a frame has the columns that `harness sql --tables` documents, and holds what the folders hold now.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from harness.store.read_only import frame

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

__all__ = ["runs", "samples", "scores", "verdicts"]


def runs(folder: str | Path = "runs") -> "DataFrame":
    """Return one row for each candidate and seed."""
    return frame(folder, "runs")


def scores(folder: str | Path = "runs") -> "DataFrame":
    """Return one row for each run, item and metric."""
    return frame(folder, "scores")


def samples(folder: str | Path = "runs") -> "DataFrame":
    """Return one row for each run and item, with prompt and answer."""
    return frame(folder, "samples")


def verdicts(folder: str | Path = "runs") -> "DataFrame":
    """Return one row for each verdict of the gate, with its numbers and whether it is stale."""
    return frame(folder, "verdicts")
