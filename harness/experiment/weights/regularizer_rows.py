"""Rows of a candidate's regularisers: mixed into its training, or read by a penalty."""

from collections.abc import Iterable, Sequence
from functools import partial

from harness import store
from harness.data import TaskItems
from harness.evaluation import runner
from harness.evaluation.candidates import ResolvedCandidate, base_weights
from harness.evaluation.regularization import mix_context
from harness.evaluation.rows.row_sets import suite_set
from harness.evaluation.runner import fill, open_weights
from harness.evaluation.session import Session, join_items
from harness.models.hub import ModelSource
from harness.records import Example, SampleResult
from harness.regularizers import Mixture, general_rows, mixed_rows
from harness.spec import Task, TaskData


def find_mixed_rows(session: Session, candidate: ResolvedCandidate, seed: int) -> Sequence[Example]:
    """Return the rows that a candidate's regularisers mix into training."""
    evaluate = partial(_base_answers, session, candidate.base)
    return mixed_rows(candidate.source.regularize, mix_context(session, candidate.source, seed), evaluate)


def find_penalty_rows(
    session: Session, candidate: ResolvedCandidate, seed: int
) -> dict[str, tuple[Example, ...]]:
    """Return the general rows that the penalties of a candidate's regularisers read."""
    evaluate = partial(_base_answers, session, candidate.base)
    return general_rows(candidate.source.regularize, mix_context(session, candidate.source, seed), evaluate)


def _base_answers(session: Session, base: ModelSource, name: str, mixture: Mixture) -> Iterable[SampleResult]:
    """Evaluate the base on the prompts of a regulariser, now or before; its answers are stored rows."""
    task = Task(
        name=name,
        data=TaskData(),
        metrics=("no_refusal",),
        max_new_tokens=mixture.max_new_tokens,
        chat_template=session.target.task.chat_template,
    )
    items = TaskItems((), (), mixture.rows, (), (), ())
    weights = base_weights(base)
    wanted = suite_set(session, weights, join_items(task, "capability", name, items))
    if lacking := runner.rescore_stored(session, [wanted]):
        with open_weights(session, weights) as model:
            fill(session, model, lacking, "base")
    return store.read_rows(session.store, wanted.identity.digest, len(wanted.ids))
