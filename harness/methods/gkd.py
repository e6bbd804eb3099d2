"""Generalised knowledge distillation: an adapter learns a teacher's probabilities, on answers of its own too.

Invariant: the teacher has the base's vocabulary, and its weights are part of what the adapter depends on;
without `init_from` a new adapter starts at the base, with it the adapter of another candidate is trained on.
Source: Agarwal et al. 2024 (arXiv:2306.13649); trained by TRL's GKDTrainer.
"""

from collections.abc import Iterator

from harness import training
from harness.errors import Problem, UserError
from harness.models.hub import ModelSource
from harness.plugins import Teaching
from harness.spec import Recipe


class Params(training.DistilledParams, training.LoraParams):
    """TRL's names beside the teacher, and PEFT's for the new adapter that is made without `init_from`."""


def problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
    """Yield what forbids the adapter, or learning from the teacher that is named."""
    yield from training.low_rank_problems(recipe, source, where)
    at = f"{where}: params.teacher"
    try:
        teacher = training.teacher_of(Params(**recipe.params), at)
    except UserError as error:
        yield from error.problems
        return
    if found := training.teacher_problem(teacher, source):
        step = "a model of the same family, or train on its answers: harness data distill"
        yield Problem(at, f"{teacher.name}, {found}", f"a teacher with the vocabulary of {source.name}", step)


def extra_tokens(params: Params, base: ModelSource, rows: int, tokens: int) -> tuple[int, int]:
    """Count what the teacher reads, and what it and the student draw at most, as passes of the base."""
    ratio = training.teacher_of(params).n_parameters / base.n_parameters
    drawn = rows * params.max_new_tokens
    taught = (1 - params.lmbda) * drawn * ratio if params.seq_kd else 0.0
    return round(tokens * ratio), round(params.lmbda * drawn + taught)


METHOD = training.low_rank_method(
    Params,
    training.distill,
    draws_from="train",
    init_from="adapter",
    hooks=("penalty",),
    published_as="distillation",
    loops=("training", "tokens", "distillation"),
    reads=lambda params: training.teacher_of(params).weights_digest,
    checks={"problems": problems},
    teaching=Teaching(training.teacher_of, extra_tokens),
)
