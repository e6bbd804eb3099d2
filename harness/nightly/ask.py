"""Ask weights some items of a task anew, and find again what a killed night had already asked.

Invariant: rows lie in the night's folder and nowhere else; an answer is written before the next
task is asked.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from harness import store
from harness.evaluation.row_sets import RowSet
from harness.evaluation.session import Session
from harness.experiment import run_candidate
from harness.models.hf import Candidate
from harness.nightly.rotation import Cluster, items_of
from harness.records import SampleResult, digest
from harness.training import Weights

Rows = dict[tuple[str, str], SampleResult]  # by task and example id


class Part(NamedTuple):
    """Some items of one task: the anchors or the fresh ones, as somebody is asked them."""

    rows: RowSet
    kind: str
    ids: tuple[str, ...]


def parts_of(sets: Sequence[RowSet], anchors: Sequence[Cluster], fresh: Sequence[Cluster]) -> list[Part]:
    """Cut a night's items by task and kind; tasks that nobody is asked tonight are left out."""
    chosen = {"anchors": items_of(anchors), "fresh": items_of(fresh)}
    return [
        Part(rows, kind, tuple(ids))
        for rows in sets
        for kind, by_task in chosen.items()
        if (ids := by_task.get(rows.measured.task.name))
    ]


def ask(session: Session, folder: Path, who: str, weights: Weights, parts: Sequence[Part]) -> Rows:
    """Return who's answers to the parts, asked now or earlier in the same night.

    Raises:
        HarnessError: the weights cannot be opened, or the disk is full.
    """
    files = [file_of(folder, who, part) for part in parts]
    known = [store.read_measured(file) for file in files]
    missing = [at for at, part in enumerate(parts) if not _whole(known[at], part)]
    if missing:
        with (
            run_candidate.opened(session, weights) as candidate,
            session.progress.stage(f"{who}: {len(missing)} tasks") as advance,
        ):
            for done, at in enumerate(missing):
                rows = _answers(candidate, parts[at])
                store.write_measured(session.store, files[at], rows)
                known[at] = rows
                advance(done + 1, len(missing))
    return by_item(row for rows in known for row in rows or ())


def by_item(rows: Iterable[SampleResult]) -> Rows:
    """Index rows by task and example id."""
    return {(row.task, row.example_id): row for row in rows}


def file_of(folder: Path, who: str, part: Part) -> Path:
    """Name the file of a part, by everything that decides what it holds."""
    key = digest([who, part.rows.identity.digest, part.kind, list(part.ids)])
    return folder / "rows" / f"{key}.jsonl"


def _whole(rows: Sequence[SampleResult] | None, part: Part) -> bool:
    return rows is not None and tuple(row.example_id for row in rows) == part.ids


def _answers(candidate: Candidate, part: Part) -> list[SampleResult]:
    whole = part.rows.job()
    by_id = {e.id: e for e in whole.examples}
    job = replace(whole, examples=tuple(e for i in part.ids if (e := by_id.get(i)) is not None))
    evaluate = part.rows.measured.evaluate
    return [row for index in range(job.n_blocks) for row in evaluate(candidate, job, index)]
