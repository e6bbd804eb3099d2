"""Direct preference optimisation on pairs of a chosen and a rejected answer.

Invariant: the reference is the policy before training: the base, or the adapter of `init_from`. On CPUs the
default loss computes logits only where an answer's token is predicted; all other losses are TRL's.
Source: Rafailov et al. 2023 (arXiv:2305.18290), equation 7; the default learning rate is that of Zephyr's
adapter (alignment-handbook), the highest that was published.
"""

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, model_validator

from harness.models.later import datasets, peft, torch, trl
from harness.models.loglikelihood import Executor
from harness.models.weight_files import adapter_digest
from harness.plugins import Situation
from harness.provenance import describe_environment, versions_of
from harness.records import TrainingRecord, digest
from harness.training import heldout, lora, parallel, policies
from harness.training import trainer as loop
from harness.training.context import FitContext
from harness.training.tokenized import cache_dataset
from harness.training.trainer import Row

AnswerLogprobs = Callable[[Any, dict[str, Any]], "torch.Tensor"]
_Paired = Literal["sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"]
_Others = Literal["aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"]
_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")  # losses that use `label_smoothing`
Inputs = dict[str, Any]
_MEASURED, _PUBLISHED = 0.5, 20  # billions of parameters of bases


class Params(heldout.HeldOutParams, lora.LoraParams):
    """TRL's names, and PEFT's for the new adapter (without `init_from`).

    `beta` is the weight of the divergence from the reference. `loss_type` is one of TRL's losses; `robust`,
    `exo_pair`, `aot` and `aot_unpaired` take `label_smoothing`, the probability that a pair's labels are
    swapped. The length of a pair is that of its prompt with the longer answer.
    """

    beta: float = Field(0.1, gt=0)
    loss_type: Literal[_Paired, _Others] = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    learning_rate: float = Field(5e-6, gt=0, le=1)

    @model_validator(mode="after")
    def _check_smoothing(self) -> "Params":
        if self.label_smoothing and self.loss_type not in _SMOOTHED:
            found = f"label_smoothing with the loss_type {self.loss_type}, which does not read it"
            raise ValueError(f"{found}; expected one of {', '.join(_SMOOTHED)}")
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss_type exo_pair without label_smoothing; the paper recommends 0.001")
        return self


def train(context: FitContext, params: Params, config: "peft.PeftConfig", save_to: Path) -> TrainingRecord:
    """Train an adapter on the context's pairs, from the base or from the adapter in `context.init`.

    With `context.init` the adapter keeps that shape, and `config` is not used. The reward margin of the
    record is in nats times beta.
    """
    policy = policies.load_policy(context, config, save_to)
    rows, heldout_rows, n_dropped = heldout.pairs_that_fit(context, params, policy.tokenizer, _row)
    if 0 <= (n_seen := heldout.n_seen(params)) < len(rows):  # only rows that will be seen
        rows = random.Random(context.seed).sample(rows, n_seen)
    params = parallel.rows_of_each(params, parallel.process_count())
    trainer = _trainer(policy, params, (rows, heldout_rows))
    longest = max(2 * row["length"] for row in rows + heldout_rows)  # both answers may be in one row
    loop.attend_plainly(policy.model, longest, params.per_device_train_batch_size)
    record = policies.train_policy(policy, trainer, n_dropped)
    sizes = len(rows), len(heldout_rows)
    return heldout.add_curves(record, trainer, sizes, accuracy="rewards/accuracies", margin="rewards/margins")


def _row(start: int, wholes: list[list[int]]) -> Row:
    chosen, rejected = wholes
    return {
        "prompt_ids": chosen[:start],
        "chosen_ids": chosen[start:],
        "rejected_ids": rejected[start:],
        "length": max(map(len, wholes)),
    }


def _trainer(policy: policies.Policy, params: Params, rows: tuple[list[Row], list[Row]]) -> "trl.DPOTrainer":
    context = policy.context
    reference = [  # everything besides the rows that the reference's log-probabilities depend on
        context.source.weights_digest,
        adapter_digest(context.init, context.source.weights_digest) if context.init else "",
        params.per_device_train_batch_size,
        context.machine.precision,
        describe_environment(context.machine.name),
        versions_of("training", "dpo"),
    ]
    train_key, heldout_key = (digest([split, *reference]) for split in rows)
    kind = _make_caching_trainer({"train": train_key, "eval": heldout_key})
    if context.machine.device == "cpu" and params.loss_type == "sigmoid":
        executor = Executor(policy.model, 1)
        can_share = executor.engine == "packed" and not any(executor.prefixes.windows or ())
        kind = _cpu_trainer(kind, logprobs_sharing_prompts if can_share else logprobs_by_row)
    kind = heldout.make_weighting_trainer(kind)
    arguments, options = heldout.trainer_options(params, rows)
    # `length` is read by the sampler.
    arguments |= {"precompute_ref_log_probs": True, "remove_unused_columns": False}
    trainer = policies.make_policy_trainer(policy, kind, trl.DPOConfig, params, arguments, **options)
    return cast("trl.DPOTrainer", trainer)


def _make_caching_trainer(keys: Mapping[str, str]) -> "type[trl.DPOTrainer]":
    """Return TRL's trainer for tokenised rows, with remembered log-probabilities of the reference."""
    # `keys` are those of the training rows (`train`) and held-out rows (`eval`). If the values are cached
    # nothing is computed, but the random generator ends in the same state.
    from torch.utils.data import DataLoader

    class RememberingTrainer(trl.DPOTrainer):
        def __init__(self, *, args: Any, **options: Any) -> None:
            # TRL would hash all weights before it reads the reference; here the keys identify them.
            args.precompute_ref_log_probs = False
            super().__init__(args=args, **options)
            args.precompute_ref_log_probs = self.precompute_ref_logps = True
            size = args.precompute_ref_batch_size or args.per_device_train_batch_size
            self.train_dataset = self._precompute_ref_logps(self.train_dataset, "train", size)
            if self.eval_dataset is not None:
                size = args.precompute_ref_batch_size or args.per_device_eval_batch_size
                self.eval_dataset = self._precompute_ref_logps(self.eval_dataset, "eval", size)

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, rows: Any, name: str, batch_size: int) -> Any:
            def compute() -> Any:
                self._precompute_model_hash = keys[name]
                dataset = parallel.share_rows(rows, Path(str(self.args.output_dir)) / name)
                computed = super(RememberingTrainer, self)._precompute_ref_logps(dataset, name, batch_size)
                return computed.select_columns(["ref_chosen_logps", "ref_rejected_logps"])

            data: Any = [0]
            iter(DataLoader(data))  # draws the same random numbers as the loader that reads
            with torch.random.fork_rng():
                logprobs = cache_dataset(keys[name], compute)
            return datasets.concatenate_datasets([rows, logprobs], axis=1)

    return RememberingTrainer


def _cpu_trainer(kind: Any, answer_logprobs: "AnswerLogprobs") -> "type[trl.DPOTrainer]":
    # Without a GPU, TRL's loss multiplies every position of every row with the vocabulary matrix, converted
    # to fp32 in chunks. The value is the same.
    from trl.trainer.utils import use_adapter

    class AnswerPairTrainer(kind):  # type: ignore[misc]
        def compute_ref_log_probs(self, model: Any, inputs: Row) -> Any:
            policy = self.accelerator.unwrap_model(self.model)
            adapter_name = "ref" if "ref" in policy.peft_config else None  # None: the base without an adapter
            with torch.no_grad(), self.accelerator.autocast(), use_adapter(policy, adapter_name):
                return answer_logprobs(model, inputs).chunk(2)

        def compute_loss(
            self, model: Any, inputs: Row, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            logprobs = answer_logprobs(model, inputs)  # (2 b,): the chosen answers, then the rejected
            reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
            chosen, rejected = (self.beta * (logprobs - reference)).chunk(2)
            margins = chosen - rejected
            metrics = self._metrics["train" if self.model.training else "eval"]
            all_margins = self.accelerator.gather_for_metrics(margins.detach())
            metrics["rewards/margins"].append(all_margins.mean().item())
            metrics["rewards/accuracies"].append((all_margins > 0).float().mean().item())
            loss = -torch.nn.functional.logsigmoid(margins).mean()
            return (loss, {}) if return_outputs else loss

    return AnswerPairTrainer


def logprobs_by_row(model: Any, inputs: Inputs) -> "torch.Tensor":
    """Return the log-probabilities in nats of the answers (2 b,): the chosen, then the rejected."""
    answers = inputs["completion_mask"][:, 1:].bool()  # (2 b, t - 1)
    positions = answers.any(0).nonzero()[:, 0]
    model_inputs = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    logits = model(**model_inputs, logits_to_keep=positions, use_cache=False).logits.float()  # (2 b, w, v)
    targets = inputs["input_ids"][:, 1:][:, positions].masked_fill(~answers[:, positions], -100)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return -losses.view(targets.shape).sum(1)


def logprobs_sharing_prompts(model: Any, inputs: Inputs) -> "torch.Tensor":
    """Return the same (2 b,), each pair in one row under a mask that the model has to honour."""
    lengths, starts = inputs["attention_mask"].sum(1).tolist(), inputs["completion_mask"].argmax(1).tolist()
    rows = [ids[:n] for ids, n in zip(inputs["input_ids"].tolist(), lengths, strict=True)]
    b, (ids, positions, parts) = len(rows) // 2, ([], [], [])
    # For each answer token: the position that predicts it, its id, and its answer among the 2 b.
    sources, targets, slots = list[int](), list[int](), list[int]()
    for i in range(b):
        start, chosen, rejected = starts[i], rows[i][starts[i] :], rows[b + i][starts[i] :]
        ids.append(torch.tensor([*rows[i], *rejected]))
        positions.append(torch.tensor([*range(len(rows[i])), *range(start, start + len(rejected))]))
        parts.append(torch.tensor([0] * start + [1] * len(chosen) + [2] * len(rejected)))
        for slot, answer, first in ((i, chosen, start), (b + i, rejected, len(rows[i]))):
            sources += [start - 1, *range(first, first + len(answer) - 1)]
            targets += answer
            slots += [slot] * len(answer)
    pad = torch.nn.utils.rnn.pad_sequence
    part = pad(parts, batch_first=True, padding_value=3)  # (b, t)
    order = torch.arange(part.shape[1])
    mask = (part[:, None, :] == 0) | (part[:, :, None] == part[:, None, :])  # the prompt and its own answer
    mask &= order[:, None] >= order
    dtype = next(model.parameters()).dtype
    kept_positions, index = torch.tensor(sources).unique(return_inverse=True)
    logits = model(
        input_ids=pad(ids, batch_first=True),
        position_ids=pad(positions, batch_first=True),
        attention_mask=torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)[:, None],
        logits_to_keep=kept_positions,
        use_cache=False,
    ).logits  # (b, w, v)
    answer_of = torch.tensor(slots)
    losses = torch.nn.functional.cross_entropy(
        logits[answer_of % b, index].float(), torch.tensor(targets), reduction="none"
    )
    return -torch.zeros(2 * b).index_add(0, answer_of, losses)


def _propose(situation: Situation) -> dict[str, Any] | None:
    if not situation.pairs:
        return None
    # Start at a fine-tune on the chosen answers: pairs should be likely under the reference (§ 4).
    start = {"init_from": situation.adapter} if situation.adapter else {}
    # From 50 to 500 M parameters 3e-5 was measured on smollm2-135m (reports/LOG.md), and it is assumed for
    # smaller bases; for those larger than in any source (alignment-handbook's Zephyr) the default is assumed.
    if _MEASURED < situation.billions <= _PUBLISHED:
        return start
    return start | {"params": {"learning_rate": 3e-5 if situation.billions <= _MEASURED else 5e-6}}


METHOD = lora.low_rank_method(
    Params,
    train,
    draws_from="pairs",
    init_from="adapter",
    data_parallel=True,
    hooks=("penalty", "step", "arguments"),
    published_as="preference pairs",
    loops=("training", "tokens", "heldout", "dpo"),
    proposal=_propose,
)
