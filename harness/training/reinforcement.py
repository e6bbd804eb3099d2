"""Reinforcement learning: an adapter learns from rewards of its own answers to the training prompts.

Invariant: the reference is the policy before training. A higher reward is better, whatever a metric's
direction; an answer that cannot be scored has no reward and no effect.
Source: Ahmadian et al. 2024 (arXiv:2402.14740) and Shao et al. 2024 (arXiv:2402.03300), by TRL's trainers.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from math import isfinite
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from harness.errors import CandidateFailed, Problem, Unscored, UserError, one_line
from harness.metrics import item_scores, load_metrics
from harness.models import encode_all, join_to_plain_text
from harness.models.later import Tokenizer, datasets, peft, torch, transformers, trl
from harness.plugins import load_file
from harness.records import Example, Output, PromptText, TrainingRecord, ValidationReward
from harness.spec import Task, is_path, metric_name
from harness.training.context import FitContext, Reward, curve
from harness.training.heads import open_scorer
from harness.training.policies import Policy, load_policy, make_policy_trainer, train_policy
from harness.training.tokenized import rows_that_fit
from harness.training.trainer import LoopParams, Row

Algorithm = Literal["RLOO", "GRPO"]  # prefixes of TRL's trainers
Rewards = Callable[[Sequence[Example], Sequence[str]], Sequence[float | None]]

_VALIDATED = 128  # most validation prompts whose answers are rewarded
_TOGETHER = 16  # validation prompts answered at once


# Fields of `Method` for methods that train by `train_on_rewards`. The reference, a reward model and answering
# also read tokens.
REWARDED: dict[str, Any] = {
    "draws_from": "train",
    "init_from": "adapter",
    "rewarded": True,
    "published_as": "reinforcement",
    "hooks": ("penalty",),
    "loops": ("training", "tokens", "heads", "reinforcement"),
    "extra_tokens": lambda params, _, rows, tokens: (3 * tokens, rows * params.max_completion_length),
}


class ReinforcedParams(LoopParams):
    """Parameters of reinforcement learning, under TRL's names; batches count answers.

    `beta` is the weight of the divergence from the reference.
    """

    learning_rate: float = Field(1e-5, gt=0, le=1)
    beta: float = Field(0.05, gt=0)
    num_generations: int = Field(4, ge=2)
    max_completion_length: int = Field(32, ge=1)
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    num_iterations: int = Field(1, ge=1)
    epsilon: float = Field(0.2, gt=0)

    @model_validator(mode="after")
    def _check_groups(self) -> "ReinforcedParams":
        n = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if n % self.num_generations:
            answers = f"{n} answers a step (per_device_train_batch_size × gradient_accumulation_steps)"
            groups = f"not whole groups of num_generations: {self.num_generations}"
            raise ValueError(f"{answers}, which are {groups}")
        return self


def train_on_rewards(
    algorithm: Algorithm,
    context: FitContext,
    params: ReinforcedParams,
    peft_config: "peft.PeftConfig",
    save_to: Path,
) -> TrainingRecord:
    """Train an adapter on rewards of its answers, from the base or from the adapter in `context.init`."""
    assert context.reward is not None, "a recipe without a reward is refused"
    policy = load_policy(context, peft_config, save_to)
    prompts = _prompts(context, context.train)
    numbered: list[Row] = [{"prompt": prompt, "index": i} for i, prompt in enumerate(prompts)]
    lengths = list(map(len, _encode(prompts, policy.tokenizer)))
    rows, n_dropped = rows_that_fit(numbered, lengths, params.max_length, "prompts to train on")
    n_answers = params.per_device_train_batch_size * params.gradient_accumulation_steps
    n_prompts = n_answers // params.num_generations
    if len(rows) < n_prompts:  # TRL drops an incomplete step, here all rows
        found = f"steps of {n_prompts} prompts, and {len(rows)} prompts to train on"
        step = "a smaller params.per_device_train_batch_size or gradient_accumulation_steps"
        raise CandidateFailed(found, step)
    reward = context.reward
    score: Rewards
    if reward.model and reward.source:
        score = open_scorer(reward.model, reward.source, context.machine, context.chat_template)
    else:
        score = rewards_of(reward)
    trainer_class, config = (getattr(trl, f"{algorithm}{suffix}") for suffix in ("Trainer", "Config"))

    def score_rows(completions: Sequence[Any], index: Sequence[int], **_: Any) -> list[float | None]:
        # TRL passes an answer as a text or as a list of one turn; `index` are indices of examples.
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        return [*score([context.train[i] for i in index], [str(text).strip() for text in texts])]

    def begin_epoch(sampler: Any, epoch: int) -> None:
        sampler.generator.manual_seed(sampler.seed)
        for _ in range(epoch):
            torch.randperm(sampler.num_samples, generator=sampler.generator)

    class ResumableTrainer(trainer_class):  # type: ignore[misc, valid-type]
        """TRL's trainer for our prompts, which continues its sampling order when resumed."""

        _step: int

        def _tokenize_prompts(self, prompts: Sequence[Any]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return _encode(prompts, self.processing_class), None, {}

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            sampler = super()._get_train_sampler(dataset)
            sampler.set_epoch = partial(begin_epoch, sampler)
            return sampler

        def training_step(self, *args: Any, **options: Any) -> Any:
            if not self._step:
                # Answers that are reused for several steps are in no checkpoint, so none is saved in between.
                n = self.num_iterations
                self.state.save_steps = -(-self.state.save_steps // n) * n
                self._step = self.state.global_step * self.args.gradient_accumulation_steps
            return super().training_step(*args, **options)

    score_rows.__name__ = metric_name(reward.written)  # the name under which TRL logs
    trainer: transformers.Trainer = make_policy_trainer(
        policy,
        ResumableTrainer,
        config,
        params,
        {"include_num_input_tokens_seen": "no"},  # TRL counts them itself
        own_params=["max_length"],
        reward_funcs=[score_rows],
        train_dataset=datasets.Dataset.from_list(rows),
    )
    record = train_policy(policy, trainer, n_dropped)
    start, history = time.perf_counter(), trainer.state.log_history
    validation_rewards = _validate(policy, params, trainer, score)
    return replace(
        record,
        wall_s=round((record.wall_s or 0.0) + time.perf_counter() - start, 3),
        reward=curve(history, "reward"),
        equal_rewards=curve(history, "frac_reward_zero_std"),
        kl=curve(history, "kl"),
        validation_rewards=validation_rewards,
    )


def _validate(
    policy: Policy, params: ReinforcedParams, trainer: Any, score: Rewards
) -> tuple[ValidationReward, ...]:
    """Reward the greedy answers of the reference and of the trained policy to validation prompts."""
    from trl.models.utils import unwrap_model_for_generation
    from trl.trainer.utils import use_adapter

    examples, tokenizer = policy.context.validation[:_VALIDATED], policy.tokenizer
    prompts = _encode(_prompts(policy.context, examples), tokenizer)
    greedy = copy(trainer.generation_config)
    greedy.update(do_sample=False, temperature=None, top_p=None, top_k=None)

    def rewards(model: Any) -> Sequence[float | None]:
        texts: list[str] = []
        for start in range(0, len(prompts), _TOGETHER):
            batch = {"input_ids": prompts[start : start + _TOGETHER]}
            padded = tokenizer.pad(batch, return_tensors="pt", padding_side="left").to(model.device)
            answer_ids = model.generate(**padded, generation_config=greedy)[:, padded["input_ids"].shape[1] :]
            texts += tokenizer.batch_decode(answer_ids, skip_special_tokens=True)
        return score(examples, [text.strip() for text in texts])

    trainer.model_wrapped.eval()  # dropout would change answers
    unwrapped = unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator)
    with unwrapped as model, torch.inference_mode():
        after = rewards(model)
        with use_adapter(model, "ref" if "ref" in model.peft_config else None):
            before = rewards(model)
    rows = zip(examples, before, after, strict=True)
    return tuple(ValidationReward(example.cluster or example.id, *values) for example, *values in rows)


def _prompts(context: FitContext, examples: Sequence[Example]) -> list[Any]:
    """Return prompts in TRL's form: turns, or texts without a chat template."""
    turns: Any = list if context.chat_template else join_to_plain_text
    return [turns(example.messages) for example in examples]


def _encode(prompts: Sequence[Any], tokenizer: Tokenizer) -> list[list[int]]:
    texts = [
        PromptText(({"role": "user", "content": prompt},), chat_template=False)
        if isinstance(prompt, str)
        else PromptText(prompt)
        for prompt in prompts
    ]
    return [list(prompt.context) for prompt in encode_all(tokenizer, texts)]


_FUNCTION = "def reward(prompts, completions, references), which returns a number or None for each completion"
_FIX = "fix the function"


def rewards_of(reward: Reward) -> Rewards:
    """Return a function that rewards answers by a metric or a file; UserError if neither can be used."""
    if is_path(reward.written) and not is_metric_file(Path(reward.written)):
        path = Path(reward.written)
        function = getattr(_module(path), "reward", None)
        if not callable(function):
            expected = f"{_FUNCTION}, or def metric(task)"
            raise UserError(str(path), "no function 'reward'", expected, "define it")

        def score_all(examples: Sequence[Example], answers: Sequence[str]) -> list[float | None]:
            prompts, references = [e.prompt for e in examples], [list(e.references) for e in examples]
            try:
                raw = function(completions=list(answers), prompts=prompts, references=references)
            except Exception as error:
                raise CandidateFailed(f"{path}: reward raised {one_line(error)}", _FIX) from error
            values = [v.item() if hasattr(v, "item") else v for v in raw] if isinstance(raw, Iterable) else []
            if not isinstance(raw, Iterable) or len(values) != len(answers):
                text = f"{len(values)} rewards" if isinstance(raw, Iterable) else f"a {type(raw).__name__}"
                reason = f"{path}: reward returned {text} for {len(answers)} answers; expected {_FUNCTION}"
                raise CandidateFailed(reason, _FIX)
            invalid = [v for v in values if v is not None and not (isinstance(v, Real) and isfinite(v))]
            if invalid:
                raise CandidateFailed(f"{path}: reward returned {invalid[0]!r}; expected {_FUNCTION}", _FIX)
            return [None if value is None else float(value) for value in values]

        return score_all
    assert reward.task is not None
    metric_task = reward.task.model_copy(update={"metrics": (reward.written,), "primary": "", "bounds": {}})
    metric = load_metrics(metric_task)[metric_name(reward.written)]

    def score(text: str, example: Example) -> float | None:
        try:
            parts = metric.score(Output(text), example)
        except Unscored:
            return None
        return None if parts is None else metric.unit.sign * float(item_scores(metric, np.array([parts]))[0])

    return lambda examples, answers: [score(text, e) for e, text in zip(examples, answers, strict=True)]


def is_metric_file(path: Path) -> bool:
    """Tell whether a file defines a metric instead of a function `reward`; UserError if it cannot be read."""
    module = _module(path)
    return callable(getattr(module, "metric", None)) and not hasattr(module, "reward")


def reward_problems(written: str, task: Task, examples: Sequence[Example], where: str) -> Iterator[Problem]:
    """Yield the problems of rewarding answers to these examples by a metric or a file."""
    try:
        score = rewards_of(Reward(written=written, task=task))
    except UserError as error:
        yield from error.problems
        return
    example = next((e for e in examples if e.references), None)
    is_function = is_path(written) and not is_metric_file(Path(written))
    if is_function or example is None or score([example], [example.references[0]])[0] is not None:
        return
    found = f"{written}, which needs more than the text of an answer"
    yield Problem(where, found, "a metric of answers", "name another, such as exact_match or token_f1")


def _module(path: Path) -> ModuleType:
    return load_file(path, f"a Python file with {_FUNCTION}, or with def metric(task)", str(path))
