"""The stored tables as pandas frames, for notebooks: `harness.frames.scores("runs")`."""

from pathlib import Path
from typing import TYPE_CHECKING

from harness.store.index import frame

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]

__all__ = ["deltas", "query", "runs", "samples", "scores", "verdicts"]


def runs(folder: str | Path = "runs") -> "DataFrame":
    """Return one row for each candidate and seed."""
    return frame(folder, "FROM runs")


def scores(folder: str | Path = "runs") -> "DataFrame":
    """Return one row for each run, item and metric."""
    return frame(folder, "FROM scores")


def samples(folder: str | Path = "runs") -> "DataFrame":
    """Return one row for each run and item, with prompt and answer."""
    return frame(folder, "FROM samples")


def verdicts(folder: str | Path = "runs") -> "DataFrame":
    """Return one row for each verdict of the gate, with its numbers and whether it is stale."""
    return frame(folder, "FROM verdicts")


def deltas(folder: str | Path = "runs") -> "DataFrame":
    """Return one row for each run, item and metric, with the difference from the base's score."""
    return frame(folder, "FROM deltas")


def query(sql: str, folder: str | Path = "runs") -> "DataFrame":
    """Return the rows of one SELECT in DuckDB's SQL, as `harness sql` does."""
    return frame(folder, sql)
