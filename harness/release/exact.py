"""Score a run's pinned items again in fp32, which tells a lost item from one that rounding moved.

Invariant: the weights are the run's own; only the precision of computing differs.
"""

from dataclasses import replace

from harness import store
from harness.candidates import Candidate
from harness.evaluate import evaluate_block
from harness.records import Run
from harness.run import Bench, RowSet, ensure_weights, suite_sets


def rescore_pinned(bench: Bench, run: Run) -> list[str]:
    """Answer the regression suites in fp32 with a run's weights; returns the tasks now stored so.

    Raises:
        HarnessError: the weights cannot be opened.
    """
    recipe = bench.experiment.candidates[run.candidate]
    weights = ensure_weights(bench, recipe, run.seed)
    exact = replace(
        bench,
        machine=bench.machine._replace(precision="fp32"),
        suites=tuple(m for m in bench.suites if m.role == "regression"),
    )
    sets = suite_sets(exact, weights)
    missing = [s for s in sets if not store.has_rows(bench.store, s.identity, s.ids)]
    if missing and weights.folder is None:
        _fill(exact, missing, exact.host.base)
    elif missing and weights.folder is not None:
        with exact.host.adapted(weights.folder / "adapter", weights.digest) as candidate:
            _fill(exact, missing, candidate)
    return [s.measured.task.name for s in sets]


def _fill(bench: Bench, sets: list[RowSet], candidate: Candidate) -> None:
    for rows in sets:
        job = rows.job()
        for index in range(job.n_blocks):
            store.append_block(bench.store, job.identity, index, evaluate_block(candidate, job, index))
        store.complete_rows(bench.store, job.identity, len(rows.ids))
