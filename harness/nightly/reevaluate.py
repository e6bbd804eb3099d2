"""Re-evaluation of weights on some items of a task, resumed where a killed night stopped.

Invariant: rows lie in the night's folder and nowhere else; an answer is written before the next
task is evaluated, and before a judge sees it, whose grades lie in its book.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from harness import store
from harness.evaluation.judges.judging_stage import grade_rows
from harness.evaluation.rows.row_sets import RowSet
from harness.evaluation.runner import open_weights
from harness.evaluation.session import Session
from harness.formatting import pluralize
from harness.models.candidate import Candidate
from harness.nightly.rotation import Cluster, ids_by_task
from harness.records import SampleResult, digest
from harness.training import Weights

Rows = dict[tuple[str, str], SampleResult]  # by task and example id


class ItemBatch(NamedTuple):
    """Some items of one task: the anchors or the fresh ones, in their prompts."""

    rows: RowSet
    kind: str
    ids: tuple[str, ...]


def split_items(
    sets: Sequence[RowSet], anchors: Sequence[Cluster], fresh: Sequence[Cluster]
) -> list[ItemBatch]:
    """Cut a night's items by task and kind; tasks without items tonight are left out."""
    chosen = {"anchors": ids_by_task(anchors), "fresh": ids_by_task(fresh)}
    return [
        ItemBatch(rows, kind, tuple(ids))
        for rows in sets
        for kind, by_task in chosen.items()
        if (ids := by_task.get(rows.measured.task.name))
    ]


def reevaluate(
    session: Session, folder: Path, who: str, weights: Weights, batches: Sequence[ItemBatch]
) -> Rows:
    """Return the rows of the batches, evaluated now or earlier in the same night; judges grade new answers.

    Raises:
        HarnessError: the weights cannot be opened, a judge cannot be asked, or the disk is full.
    """
    files = [batch_file(folder, who, batch) for batch in batches]
    known = [store.read_measured(file) for file in files]
    missing = [at for at, batch in enumerate(batches) if not _is_complete(known[at], batch)]
    if missing:
        with (
            open_weights(session, weights) as candidate,
            session.progress.stage(f"{who}: {pluralize(len(missing), 'task')}") as advance,
        ):
            for done, at in enumerate(missing):
                rows = _evaluate_batch(candidate, batches[at])
                store.write_records(session.store, files[at], rows)
                known[at] = rows
                advance(done + 1, len(missing))
    graded = grade_rows(session, [(b.rows, rows or ()) for b, rows in zip(batches, known, strict=True)])
    return index_by_item(row for rows in graded for row in rows)


def index_by_item(rows: Iterable[SampleResult]) -> Rows:
    """Index rows by task and example id."""
    return {(row.task, row.example_id): row for row in rows}


def batch_file(folder: Path, who: str, batch: ItemBatch) -> Path:
    """Name the file of a part, by everything that decides what it holds."""
    key = digest([who, batch.rows.identity.digest, batch.kind, list(batch.ids)])
    return folder / "rows" / f"{key}.jsonl"


def _is_complete(rows: Sequence[SampleResult] | None, batch: ItemBatch) -> bool:
    return rows is not None and tuple(row.example_id for row in rows) == batch.ids


def _evaluate_batch(candidate: Candidate, batch: ItemBatch) -> list[SampleResult]:
    whole = batch.rows.answers.job()
    by_id = {e.id: e for e in whole.examples}
    job = replace(whole, examples=tuple(e for i in batch.ids if (e := by_id.get(i)) is not None))
    evaluate = batch.rows.measured.evaluate  # what judges score is only answered here
    return [row for index in range(job.n_blocks) for row in evaluate(candidate, job, index)]
