"""Policies: adapters that TRL trains against a reference model, for preferences and rewards."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.models.devices import load_base
from harness.models.later import Model, Tokenizer, peft, transformers
from harness.progress import quiet_libraries
from harness.records import TrainingRecord
from harness.training import parallel
from harness.training import trainer as loop
from harness.training.context import CHECKPOINTS, FitContext, track


class Policy(NamedTuple):
    """Model and settings of an adapter that TRL trains against a reference model and saves to `save_to`."""

    context: FitContext
    peft_config: "peft.PeftConfig"
    save_to: Path
    model: Model
    tokenizer: Tokenizer
    start: float


def load_policy(context: FitContext, peft_config: "peft.PeftConfig", save_to: Path) -> Policy:
    """Seed the training and load the base of an adapter that will be saved to `save_to`."""
    quiet_libraries()
    transformers.set_seed(context.seed)
    start = loop.start_time(save_to.parent / CHECKPOINTS)
    placement = parallel.place_base(context.machine.device)
    loaded = load_base(context.source, context.machine, loop.attention(context.machine), placement)
    return Policy(context, peft_config, save_to, *loaded, start)


def policy_options(policy: Policy) -> dict[str, Any]:
    """Return the trainer's model, tokenizer and adapter: new, or continued from `context.init`."""
    options: dict[str, Any] = {"processing_class": policy.tokenizer}
    if policy.context.init is None:
        return options | {"model": policy.model, "peft_config": policy.peft_config}
    init = str(policy.context.init)  # TRL copies the adapter named `default` as the reference
    model = peft.PeftModel.from_pretrained(policy.model, init, adapter_name="default", is_trainable=True)
    return options | {"model": model}


def make_policy_trainer(
    policy: Policy, kind: Any, config: Any, params: loop.LoopParams, arguments: dict[str, Any], **options: Any
) -> Any:
    """Return a trainer for a policy (see `trainer.make_trainer`)."""
    context, scratch = policy.context, policy.save_to.parent / CHECKPOINTS
    options |= policy_options(policy)
    return loop.make_trainer(kind, config, context, params, policy.tokenizer, scratch, arguments, **options)


def train_policy(policy: Policy, trainer: "transformers.Trainer", n_dropped: int) -> TrainingRecord:
    """Train and save the adapter of a policy."""
    track(trainer, policy.context, policy.save_to, save_policy)
    finish = partial(parallel.save_trained, save_policy, folder=policy.save_to)
    return loop.run(trainer, policy.start, n_dropped, finish)


def save_policy(model: Any, folder: Path) -> None:
    """Write the trained adapter without its copy that serves as the reference."""
    model.save_pretrained(folder, selected_adapters=["default"])
