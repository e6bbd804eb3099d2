"""Rows of stored runs, and what the control arm found beside them, each read once for a whole report.

Invariant: rows come cut to the items that this experiment asks.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

from harness import comparison, store
from harness.comparison import Estimate
from harness.data import Split
from harness.evaluation.session import Bench, Measured
from harness.experiment.control_rows import judged_controls
from harness.gating import ControlFacts
from harness.records import Run, SampleResult

Rows = list[SampleResult]


class Reader:
    """Reads a row set once, cut to the items of this experiment, with their inclusion weights."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._weights = {m.task.name: m.weights for m in bench.suites if m.weights is not None}
        self.rows = cache(self._rows)
        self._whole: dict[str, Rows] = {}
        self._controls: dict[str, ControlFacts] = {}

    def prepare(self, rows_digests: Iterable[str]) -> None:
        """Read row sets that will be asked for, as far as they are not held, in one go."""
        self._whole |= store.read_many(self._bench.store, set(rows_digests) - self._whole.keys())

    def _rows(self, rows_digest: str, n: int) -> Rows:
        if len(self._whole.get(rows_digest, ())) < n:  # one that has grown is read again
            self._whole |= store.read_many(self._bench.store, [rows_digest])
        rows = self._whole[rows_digest][:n]
        weights = self._weights.get(rows[0].task) if rows else None
        return [replace(row, weight=weights[row.example_id]) for row in rows] if weights else rows

    def of(self, run: Run, measured: Measured, split: Split = "test") -> Rows:
        """Return a run's rows of one task and split."""
        return self.rows(run.rows[f"{measured.task.name}/{split}"], measured.size(split))

    def controls(self) -> Mapping[str, ControlFacts]:
        """Return what the store's control arms found; judged anew when one has come."""
        if len(store.controls(self._bench.store)) != len(self._controls):
            self._controls = judged_controls(self._bench.store)
        return self._controls

    def scores(self, run: Run) -> dict[str, dict[str, Estimate]]:
        """Return every metric of every task that a run answered on test."""
        return {
            m.task.name: {
                name: comparison.estimate(metric, self.of(run, m)) for name, metric in m.metrics.items()
            }
            for m in (self._bench.target, *self._bench.suites)
            if f"{m.task.name}/test" in run.rows
        }
