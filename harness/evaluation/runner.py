"""Weights opened, and what they have not answered yet: block by block, each on the disk before the next.

Invariant: a block that is there is never asked again; a kill loses at most the one in flight.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from harness import store
from harness.evaluation.candidates import base_of, refuse_damaged
from harness.evaluation.control_arm import beside, origin
from harness.evaluation.finished import is_there
from harness.evaluation.row_sets import RowSet, work_of
from harness.evaluation.session import Bench
from harness.models import openai_api
from harness.models.hf import Candidate, classifier
from harness.spec import Recipe
from harness.training import Weights


def fill(bench: Bench, candidate: Candidate, sets: Sequence[RowSet], name: str, *, control: str = "") -> None:
    """Compute the blocks that are not there yet, beside a measurement of the control arm.

    `name` is who answers, for the progress.
    """
    for rows in sets:
        if is_there(bench, rows):
            continue
        job, came_from = rows.job(), origin(bench, control)
        done = store.finished_blocks(bench.store, job.identity, rows.ids)
        with bench.progress.stage(f"{name}: {rows.name}", bench.seconds(work_of(job))) as advance:
            for index in range(job.n_blocks):
                if index not in done:
                    block = rows.measured.evaluate(candidate, job, index)
                    store.keep_origin(bench.store, job.identity.digest, index, came_from)
                    store.append_block(bench.store, job.identity, index, block)
                advance(index + 1, job.n_blocks)
        store.complete_rows(bench.store, job.identity, len(rows.ids))


def control_beside(bench: Bench, recipe: Recipe, weights: Weights) -> str:
    """Measure the control arm of what answers; a classifier has no base that could have moved."""
    return "" if weights.kind == "classifier" else beside(bench, base_of(bench, recipe))


@contextmanager
def opened(bench: Bench, weights: Weights) -> Iterator[Candidate]:
    """Open weights as something that generates and scores.

    Raises:
        CandidateFailed: their files are no longer those that were made.
    """
    source = weights.source or bench.source
    refuse_damaged(weights)
    if weights.kind == "base":
        yield bench.host(source).base
        return
    assert weights.folder is not None
    if weights.kind == "classifier":
        yield classifier(weights.folder, weights.digest)
    elif weights.kind in openai_api.PROTOCOLS:
        with openai_api.opened(weights.folder, weights.digest, source) as candidate:
            yield candidate
    elif weights.kind == "model":
        whole = source._replace(path=weights.folder / "model", weights_digest=weights.digest)
        yield bench.host(whole).base
    else:
        with bench.host(source).adapted(weights.folder / "adapter", weights.digest) as candidate:
            yield candidate
