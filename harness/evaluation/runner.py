"""Evaluation of missing blocks, each on the disk before the next.

Invariant: a block that is stored is never evaluated again; a kill loses at most the one in flight. What a
block's token ids are does not depend on the thread that makes the next ones.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from harness import provenance, store
from harness.config import is_shipped
from harness.data import suite_contamination
from harness.evaluation import EvaluationJob
from harness.evaluation.candidates import refuse_damaged
from harness.evaluation.control_arm import measure_once, origin
from harness.evaluation.costs import Work
from harness.evaluation.openers import OPENERS
from harness.evaluation.rows.row_sets import RowSet, is_there, work_of
from harness.evaluation.session import MeasuredTask, Session
from harness.models import Candidate, common_length, openai_api
from harness.models.hardware import cpu_kernels, load
from harness.models.hub import ModelSource
from harness.records import PromptText
from harness.spec import DATA_FILES, Fields, Task
from harness.training import Weights


def fill(
    session: Session,
    candidate: Candidate,
    sets: Sequence[RowSet],
    name: str,
    *,
    control: str = "",
    shared: bool = False,
) -> None:
    """Compute the blocks that are not there yet, beside a measurement of the control arm.

    What a judge scores is only answered here (see `judges.judging_stage`). `name` is who answers, for the
    progress. What is `shared` is left to other experiments on this machine, set by set.
    """
    for one in sets:
        rows = one.answers
        with session.claim(rows.identity.digest):
            if not is_there(session, rows):
                _fill(session, candidate, rows, name, control)
        if shared:
            _keep_base_rows(session, one)


def _fill(session: Session, candidate: Candidate, rows: RowSet, name: str, control: str) -> None:
    """Compute the blocks of one set; what workers time beside others counts as disturbed."""
    job, came_from = rows.job(), origin(session, control)
    done = store.list_stored_blocks(session.store, job.identity, rows.ids)
    work, times = work_of(job), []
    missing = [index for index in range(job.n_blocks) if index not in done]
    encode = partial(rows.measured.encode, candidate, job)
    ahead = session.machine.device != "cpu" or openai_api.is_endpoint(candidate.engine)
    with session.progress.stage(f"{name}: {rows.name}", session.seconds(work)) as advance:
        start = began = load()
        for index, encoded in encode_blocks(encode, missing, ahead=ahead):
            block = rows.measured.evaluate(candidate, job, index, encoded)
            times.append(load().since(start))
            here = came_from._replace(contended=session.is_worker or times[-1].is_contended())
            store.keep_origin(session.store, job.identity.digest, index, here)
            store.append_block(session.store, job.identity, index, block)
            advance(index + 1, job.n_blocks)
            start = load()
    store.complete_rows(session.store, job.identity, len(rows.ids))
    if source := session.base_in_memory(job.identity.engine):
        alone = not (done or session.is_worker or any(time.is_contended() for time in times))
        session.learn_pace("answering", work, load().since(began).wall_s, source, teaches=alone)


def find_base_rows(session: Session, sets: Iterable[RowSet]) -> list[RowSet]:
    """Fetch a base's rows of suites that another experiment here left; returns the sets without."""
    environment = provenance.describe_environment(session.machine.name)

    def is_found(rows: RowSet) -> bool:
        return _is_shared(session, rows) and store.find_base_rows(
            session.store, rows.identity, rows.ids, environment, cpu_kernels()
        )

    return [rows for rows in sets if not is_found(rows)]


def _keep_base_rows(session: Session, rows: RowSet) -> None:
    """Leave a base's rows of a suite to other experiments on this machine."""
    if _is_shared(session, rows):
        environment = provenance.describe_environment(session.machine.name)
        store.keep_base_rows(session.store, rows.identity, environment, cpu_kernels())


def _is_shared(session: Session, rows: RowSet) -> bool:
    """Tell whether rows may leave their folder: those of public suites, never what the target holds."""
    m = rows.measured
    return (
        not m.judged
        and m.role in ("capability", "safety")
        and _is_public(m.task)
        and not _is_of_target(session, m)
    )


def _is_public(task: Task) -> bool:
    """Tell whether a task is lm-eval's, or rows that ship with the package in no words of the user's."""
    files = [Path(path) for part in DATA_FILES if (path := getattr(task.data, part))]
    shipped = bool(files) and all(map(is_shipped, files)) and task.system is None and task.fields == Fields()
    return bool(task.lm_eval) or shipped


def _is_of_target(session: Session, m: MeasuredTask) -> bool:
    """Tell whether an item of a task is one of the target's: by its id, or by what it asks."""
    held = [
        example
        for of in (session.target.items, *(m.items for m in session.training.values()))
        for example in (*of.train, *of.validation, *of.test, *of.pairs)
    ]
    items = [*m.items.train, *m.items.test]
    # lm-eval numbers the items of each task from 0.
    same_id = not m.task.lm_eval and not {e.id for e in items}.isdisjoint(e.id for e in held)
    return same_id or bool(suite_contamination(held, {m.task.name: items}))


@contextmanager
def open_weights(session: Session, weights: Weights) -> Iterator[Candidate]:
    """Open weights as something that generates and scores.

    Raises:
        CandidateFailed: their files are no longer those that were made.
    """
    refuse_damaged(weights)
    start = load()
    with OPENERS[weights.kind](session, weights) as candidate:
        passed = load().since(start)
        if source := session.base_in_memory(candidate.engine):
            alone = not (session.is_worker or passed.is_contended())
            session.learn_pace("opened", Work(opened=1), passed.wall_s, source, teaches=alone)
        yield candidate


@contextmanager
def open_and_fill(
    session: Session, weights: Weights, sets: Sequence[RowSet], name: str, base: ModelSource | None = None
) -> Iterator[Candidate]:
    """Open weights and let them answer sets, beside a measurement of the control arm of `base`.

    A classifier has no base that could have moved.
    """
    control = measure_once(session, base) if base and sets and weights.is_language_model else ""
    with open_weights(session, weights) as candidate:
        fill(session, candidate, sets, name, control=control)
        yield candidate


def answer(
    session: Session, weights: Weights, sets: Sequence[RowSet], name: str, base: ModelSource | None = None
) -> None:
    """Let weights answer sets (see `open_and_fill`)."""
    with open_and_fill(session, weights, sets, name, base):
        pass


def count_shared_tokens(candidate: Candidate, job: EvaluationJob) -> int:
    """Count the tokens that all prompts of a job begin with: what a provider's cache would hold.

    0 of an endpoint that is sent messages: what it makes of them is not seen here.
    """
    if candidate.engine == openai_api.identity("chat")[0]:
        return 0
    chat = job.task.chat_template
    prompts = [PromptText(e.messages, chat_template=chat) for e in job.examples]
    return common_length([one.context for one in candidate.encode_all(prompts)])


_Ids = TypeVar("_Ids")


def encode_blocks(
    encode: Callable[[int], _Ids], blocks: Sequence[int], *, ahead: bool
) -> Iterator[tuple[int, _Ids]]:
    """Yield each block's number with its token ids; `ahead` is for blocks that another device computes.

    On a processor that computes them itself a second thread would only take time from it.
    """
    if not ahead:
        yield from ((block, encode(block)) for block in blocks)
        return
    with ThreadPoolExecutor(1, "tokens") as pool:
        ids = [encode(block) for block in blocks[:1]]
        for block, following in zip_longest(blocks, blocks[1:]):
            waiting = None if following is None else pool.submit(encode, following)
            yield block, ids.pop()
            if waiting is not None:
                ids.append(waiting.result())
