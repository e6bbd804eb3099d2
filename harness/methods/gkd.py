"""Generalised knowledge distillation: an adapter learns a teacher's probabilities, also on its own answers.

Invariant: the teacher has the base's vocabulary, and its weights are part of the adapter's digest. Loss and
token counts are over all answers that were read, sampled ones included.
Source: Agarwal et al. 2024 (arXiv:2306.13649); trained by TRL's GKDTrainer.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from harness.errors import CandidateFailed, Problem, UserError
from harness.models.devices import load_base
from harness.models.hub import ModelSource, is_packed, load_tokenizer, resolve, shape
from harness.models.later import datasets, peft, transformers
from harness.records import Example, TrainingRecord
from harness.spec import Recipe
from harness.training import heldout, lora, policies
from harness.training import trainer as loop
from harness.training.context import FitContext, curve
from harness.training.tokenized import tokenized_rows


class Params(loop.LoopParams, lora.LoraParams):
    """TRL's names, PEFT's for the new adapter (without `init_from`), and the `teacher`.

    The teacher is a folder, a hub id or the embedded model's name. `lmbda` is the share of batches whose
    answers the student samples, with at most `max_new_tokens` tokens at `temperature`; the others use the
    rows' answers, or with `seq_kd` answers sampled from the teacher. `beta` interpolates from KL(teacher ‖
    student) (0) to KL(student ‖ teacher) (1).
    """

    teacher: str
    learning_rate: float = Field(1e-4, gt=0, le=1)
    lmbda: float = Field(0.5, ge=0, le=1)
    beta: float = Field(0.5, ge=0, le=1)
    temperature: float = Field(0.9, gt=0)
    max_new_tokens: int = Field(128, ge=1)
    seq_kd: bool = False

    _check_dropout = model_validator(mode="after")(heldout.refuse_dropout)


def teacher_of(params: Params, where: str = "params.teacher") -> ModelSource:
    """Resolve the teacher; UserError if there is no such model."""
    return resolve(params.teacher, where=where)


def teacher_problem(teacher: ModelSource, base: ModelSource) -> str:
    """Explain why a base cannot learn from a teacher; empty if it can, or is not unpacked yet."""
    if is_packed(base):
        return ""
    if teacher.weights_digest == base.weights_digest:
        return "the base itself, which has nothing to teach"
    vocab, base_vocab = (load_tokenizer(source).get_vocab() for source in (teacher, base))
    if vocab != base_vocab:
        shared = sum(base_vocab.get(token) == index for token, index in vocab.items())
        return f"another vocabulary: {len(vocab):,} tokens, {shared:,} of them the base's {len(base_vocab):,}"
    widths = [s.vocabulary for source in (teacher, base) if (s := shape(source))]
    if widths and widths[0] < widths[-1]:
        return f"probabilities of {widths[0]:,} tokens, and the base has {widths[-1]:,}"
    return ""


def distill(context: FitContext, params: Params, config: "peft.PeftConfig", save_to: Path) -> TrainingRecord:
    """Train an adapter on a teacher's probabilities, from the base or from the adapter in `context.init`."""
    teacher = teacher_of(params)
    if problem := teacher_problem(teacher, context.source):
        raise CandidateFailed(f"params.teacher: {teacher.name}, {problem}", "another teacher")
    policy = policies.load_policy(context, config, save_to)
    rows, n_dropped = tokenized_rows(context, context.train, policy.tokenizer, params.max_length, _row)
    heldout_rows, _ = tokenized_rows(context, context.validation, policy.tokenizer, params.max_length, _row)
    with loop.explain_out_of_memory():
        teacher_model: Any = load_base(teacher, context.machine, loop.attention(context.machine))[0]
        width = policy.model.config.get_text_config().vocab_size
        if teacher_model.config.get_text_config().vocab_size > width:  # additional entries belong to no token
            teacher_model.resize_token_embeddings(width, mean_resizing=False)
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class DistillationTrainer(GKDTrainer):
        """TRL's trainer with the loss averaged over the tokens of the answers that were read."""

        def training_step(self, model: Any, inputs: loop.Row, num_items_in_batch: Any = None) -> Any:
            # TRL would divide by the tokens of the rows' answers, even if sampled answers replaced them.
            loss = super().training_step(model, inputs, None)
            self.state.num_input_tokens_seen += int(inputs["attention_mask"].sum())
            return loss

    arguments = loop.evaluations(params, best=False) | {"include_num_input_tokens_seen": "no"}
    train_set, heldout_set = map(datasets.Dataset.from_list, (rows, heldout_rows))
    options = {"teacher_model": teacher_model, "train_dataset": train_set, "eval_dataset": heldout_set}
    trainer: transformers.Trainer = policies.make_policy_trainer(
        policy, DistillationTrainer, GKDConfig, params, arguments, **options
    )
    record = policies.train_policy(policy, trainer, n_dropped)
    losses = curve(trainer.state.log_history, "eval_loss")
    return replace(record, validation_loss=losses).add(teacher=teacher.weights_digest)


def _row(_: Example, start: int, ids: list[int]) -> loop.Row:
    return {"prompt": "", "input_ids": ids, "completion_mask": [0] * start + [1] * (len(ids) - start)}


def problems(recipe: Recipe, source: ModelSource, where: str) -> Iterator[Problem]:
    """Yield the problems of the adapter and of the teacher."""
    yield from lora.low_rank_problems(recipe, source, where)
    at = f"{where}: params.teacher"
    try:
        teacher = teacher_of(Params(**recipe.params), at)
    except UserError as error:
        yield from error.problems
        return
    if cause := teacher_problem(teacher, source):
        step = "a model of the same family, or train on its answers: harness data distill"
        yield Problem(at, f"{teacher.name}, {cause}", f"a teacher with the vocabulary of {source.name}", step)


def extra_tokens(params: Params, base: ModelSource, rows: int, tokens: int) -> tuple[int, int]:
    """Count the tokens that the teacher reads and that both sample at most, as passes of the base."""
    ratio = teacher_of(params).n_parameters / base.n_parameters
    n_sampled = rows * params.max_new_tokens
    n_taught = (1 - params.lmbda) * n_sampled * ratio if params.seq_kd else 0.0
    return round(tokens * ratio), round(params.lmbda * n_sampled + n_taught)


METHOD = lora.low_rank_method(
    Params,
    distill,
    draws_from="train",
    init_from="adapter",
    hooks=("penalty",),
    published_as="distillation",
    loops=("training", "tokens", "distillation"),
    reads=lambda params: teacher_of(params).weights_digest,
    problems=problems,
    teacher=teacher_of,
    extra_tokens=extra_tokens,
)
