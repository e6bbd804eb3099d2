"""Stored answers scored again with the metrics as they are now; needs no model.

Invariant: rows scored again equal those that asking again would give, because nothing but their
scoring differs from the rows they are made of.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from harness import store
from harness.evaluation import Job, scored
from harness.evaluation.row_sets import RowSet
from harness.evaluation.session import Bench
from harness.records import BLOCK, Example, Output, RowsIdentity, SampleResult


def missing(bench: Bench, sets: Iterable[RowSet]) -> list[RowSet]:
    """Score again what was answered before under other metrics; returns the sets that need a model."""
    absent = [rows for rows in sets if not store.has_rows(bench.store, rows.identity, rows.ids)]
    if not absent:
        return []
    known = store.identities(bench.store)
    return [rows for rows in absent if not _scored_again(bench, rows, known)]


def _scored_again(bench: Bench, rows: RowSet, known: Iterable[RowsIdentity]) -> bool:
    """Score again every stored block of the same answers; says whether the set is then complete."""
    wanted = rows.identity
    same = [one for one in known if one.scoring_digest and one != wanted and one.answers == wanted.answers]
    done = store.finished_blocks(bench.store, wanted, rows.ids)
    job = rows.job() if same and wanted.scoring_digest else None
    for other in same if job else ():
        came_from = store.origins(bench.store, other.digest)
        for index, block in store.read_blocks(bench.store, other, rows.ids).items():
            if job and index not in done:
                if index in came_from:
                    store.keep_origin(bench.store, wanted.digest, index, came_from[index])
                store.append_block(bench.store, wanted, index, _scored(job, index, block))
                done.add(index)
    if len(done) < rows.n_blocks:
        return False
    store.complete_rows(bench.store, wanted, len(rows.ids))
    return True


def _scored(job: Job, index: int, block: Sequence[SampleResult]) -> list[SampleResult]:
    examples = job.examples[index * BLOCK : index * BLOCK + len(block)]
    return [_row(job, example, row) for example, row in zip(examples, block, strict=True)]


def _row(job: Job, example: Example, row: SampleResult) -> SampleResult:
    ended: Any = row.finish_reason  # one of what an output holds, from where it was copied
    output = Output(
        row.text,
        ended,
        row.n_prompt_tokens,
        row.n_output_tokens,
        row.compute_s,
        gold_logprob=row.gold_logprob,
        gold_bytes=row.gold_bytes,
        error=row.error,
    )
    status, parts = scored(job, example, output)
    return replace(row, status=status, parts=parts)
