"""Regularisers of a recipe in an experiment: their digest, problems, cost and what they sample from.

Invariant: nothing here evaluates a model.
"""

from collections.abc import Sequence

from harness.errors import Problem, UserError
from harness.evaluation import costs
from harness.evaluation.candidate_rows import training_data
from harness.evaluation.session import Session
from harness.models.hub import ModelSource
from harness.records import digest
from harness.regularizers import Answered, MixContext, Mixture, find_shipped_answers, mixtures, work_factor
from harness.spec import Recipe


def mix_context(session: Session, source: Recipe, seed: int) -> MixContext:
    """Return what rows are sampled from: nothing that a target or a suite evaluates may be among them."""
    own = training_data(session, source).items
    evaluated = {session.target.task.name: (*own.test, *own.validation)}
    evaluated |= {m.task.name: (*m.items.test, *m.items.validation) for m in session.more_targets}
    evaluated |= {m.task.name: m.items.test for m in session.suites}
    return MixContext(len(own.train), seed, evaluated)


def regularization_problems(session: Session, recipe: Recipe) -> Sequence[Problem]:
    """List what is wrong with the general rows of a recipe's regularisers."""
    try:
        mixtures(recipe.regularize, mix_context(session, recipe, session.first_seed))
    except UserError as error:
        return error.problems
    return ()


def find_shipped(session: Session, base: ModelSource, mixture: Mixture) -> Sequence[Answered]:
    """Return the base's answers to a mixture's prompts that come with the package, if it has them all."""
    if not session.target.task.chat_template:
        return ()
    return find_shipped_answers(digest([base.weights_digest, base.template_digest]), mixture)


def regularization_work(
    session: Session, source: Recipe, seed: int, plain: costs.Work, n_rows: tuple[int, int]
) -> costs.Work:
    """Estimate what regularisers add to a training of so many rows, in all and in a step.

    That is rows beside the training rows or read by penalties, further passes, and the base's answers.
    """
    of_all, of_a_step = n_rows
    base = session.sources.get(source.base_model or "", session.source)
    total = costs.Work(trained=round(plain.trained * (work_factor(source.regularize, of_a_step) - 1)))
    for mixture in mixtures(source.regularize, mix_context(session, source, seed)).values():
        total += costs.Work(trained=round(plain.trained * mixture.n / max(1, of_all)))
        if mixture.max_new_tokens and not find_shipped(session, base, mixture):
            total += costs.estimate_answering(
                mixture.rows, ranked=False, max_new_tokens=mixture.max_new_tokens
            )
    return total
