"""Regularisers of a recipe in an experiment: their digest, problems, cost and what they sample from.

Invariant: nothing here evaluates a model.
"""

from collections.abc import Sequence

from harness.errors import Problem, UserError
from harness.evaluation import costs
from harness.evaluation.session import Session
from harness.regularizers import MixContext, mixtures
from harness.spec import Recipe


def mix_context(session: Session, seed: int) -> MixContext:
    """Return what rows are sampled from: nothing that the target or a suite evaluates may be among them."""
    own = session.target.items
    evaluated = {session.target.task.name: (*own.test, *own.validation)}
    evaluated |= {m.task.name: m.items.test for m in session.suites}
    return MixContext(len(own.train), seed, evaluated)


def regularization_problems(session: Session, recipe: Recipe) -> Sequence[Problem]:
    """List what is wrong with the rows that a recipe mixes into training."""
    try:
        mixtures(recipe.regularize, mix_context(session, session.experiment.seeds[0]))
    except UserError as error:
        return error.problems
    return ()


def mixing_work(session: Session, source: Recipe, seed: int, plain: costs.Work) -> costs.Work:
    """Estimate what mixed rows add to a training, and what the base's answers to prompts take."""
    context, total = mix_context(session, seed), costs.Work()
    for mixture in mixtures(source.regularize, context).values():
        total += costs.Work(trained=round(plain.trained * mixture.n / max(1, context.n_train)))
        if mixture.max_new_tokens:
            total += costs.reading(mixture.rows, ranked=False, max_new_tokens=mixture.max_new_tokens)
    return total
