"""Preference training starts at its reference, agrees with TRL, and each loss is that of its paper."""

import math

import pytest
import tiny_methods
from tiny_methods import CPU

from harness.errors import CandidateFailed
from harness.methods import dpo
from harness.methods.supervised import Lora
from harness.models.devices import load_base
from harness.models.hub import resolve
from harness.records import Example
from harness.training import CHECKPOINTS, LoraParams, heldout, lora_config
from harness.training import trainer as loop
from harness.training.heldout import pairs_that_fit
from harness.training.policies import Policy, load_policy, policy_options

pytestmark = pytest.mark.usefixtures("own_cache")


QUICK = {"learning_rate": 0.01, "warmup_steps": 0, "num_train_epochs": 2}


@pytest.fixture(scope="module")
def parent(tiny, tmp_path_factory, own_cache):
    """Train an adapter to continue from, clearly different from the base."""
    params = {"r": 2, "learning_rate": 0.05, "num_train_epochs": 3}
    return tiny_methods.fit(tiny, tmp_path_factory.mktemp("parent"), Lora, params).folder / "adapter"


def fit_pairs(tiny, folder, init=None, pairs=None, **params):
    options = {"pairs": pairs} if pairs else {}
    shape = {} if init else {"r": 2}
    return tiny_methods.fit(tiny, folder, dpo, {**shape, **QUICK, **params}, init=init, **options)


@pytest.mark.parametrize("starts", ["at the base", "at an adapter"])
def test_the_loss_at_the_first_step_is_ln_2(tiny, tmp_path, parent, starts):
    figures = fit_pairs(tiny, tmp_path, parent if starts == "at an adapter" else None).training
    assert figures.loss[0] == (1, pytest.approx(math.log(2), abs=1e-5))
    assert figures.reward_margin[0][1] == pytest.approx(0, abs=1e-4)


def test_training_raises_the_margin_and_its_figures_are_kept(tiny, tmp_path):
    figures = fit_pairs(tiny, tmp_path, num_train_epochs=4).training
    assert figures.reward_margin[-1][1] > 0.05
    assert figures.loss[-1][1] < math.log(2)
    assert all(0 <= share <= 1 for _, share in figures.reward_accuracy)
    assert (figures.n_pairs, figures.n_heldout) == (10, 2)
    assert figures.n_tokens > 0
    assert figures.tokens_per_s > 0


@pytest.mark.e2e
def test_one_adapter_is_left_and_the_one_it_started_from_is_untouched(tiny, tmp_path, parent):
    before = {p.name: p.read_bytes() for p in parent.iterdir()}
    trained = fit_pairs(tiny, tmp_path, parent)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter", CHECKPOINTS}
    assert not any(p.is_dir() for p in (trained.folder / "adapter").iterdir())
    assert {p.name: p.read_bytes() for p in parent.iterdir()} == before
    assert (trained.folder / "adapter" / "adapter_model.safetensors").read_bytes() != before[
        "adapter_model.safetensors"
    ]


def texts(pairs):
    def say(text):
        return [{"role": "assistant", "content": text}]

    answered = ((pair, {"chosen": say(pair.references[0]), "rejected": say(pair.rejected)}) for pair in pairs)
    return [{"prompt": list(pair.messages), **answers, "length": 1} for pair, answers in answered]


def make_both_trainers(tiny, folder, init, read_logprobs):
    """Make TRL's own trainer and ours on the same pairs, their adapters moved off the reference alike."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    context = tiny_methods.context(tiny, folder, init=init)
    trainers = []
    ours = dpo._cpu_trainer(dpo._make_caching_trainer({"train": folder.name}), read_logprobs)
    for kind in (DPOTrainer, ours):
        torch.manual_seed(0)
        model, tokenizer = load_base(resolve(str(tiny)), CPU)
        fitting = pairs_that_fit(context, dpo.Params(heldout=0), tokenizer, dpo._row)[0]
        rows = texts(context.pairs) if kind is DPOTrainer else fitting
        config = DPOConfig(
            output_dir=str(folder), precompute_ref_log_probs=True, remove_unused_columns=False,
            **loop.settings(context, dpo.Params()), beta=0.3,
        )  # fmt: skip
        trainer = kind(
            args=config,
            train_dataset=Dataset.from_list(rows),
            **policy_options(Policy(context, lora_config(LoraParams(r=2)), folder, model, tokenizer, 0.0)),
        )
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in trainer.model.named_parameters():
                if parameter.requires_grad and ".default." in name:
                    parameter += 0.1 * torch.randn_like(parameter)
        trainers.append(trainer)
    return trainers


@pytest.mark.parametrize("way", [dpo.logprobs_by_row, dpo.logprobs_sharing_prompts])
@pytest.mark.parametrize("starts", ["at the base", "at an adapter"])
def test_loss_gradient_and_reference_are_those_of_trl(tiny, tmp_path, parent, starts, way):
    theirs, ours = make_both_trainers(tiny, tmp_path, parent if starts == "at an adapter" else None, way)
    results = []
    for trainer in (theirs, ours):
        batch = trainer.data_collator([trainer.train_dataset[i] for i in (0, 3, 5, 7)])
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        gradients = {n: p.grad.norm().item() for n, p in trained.items() if p.grad is not None}
        reference = [trainer.train_dataset[i]["ref_chosen_logps"] for i in range(12)]
        margin = trainer._metrics["train"]["rewards/margins"][-1]
        results.append((loss.item(), margin, reference, gradients))
    (loss, margin, reference, gradients), (own_loss, own_margin, own_reference, own_gradients) = results
    assert abs(loss - math.log(2)) > 1e-3
    assert own_loss == pytest.approx(loss, rel=1e-4)
    assert own_margin == pytest.approx(margin, rel=1e-3)
    assert own_reference == pytest.approx(reference, abs=1e-3)
    assert own_gradients == {name: pytest.approx(g, rel=1e-3, abs=1e-6) for name, g in gradients.items()}


@pytest.mark.e2e
def test_pairs_that_are_too_long_are_left_out_and_counted(tiny, tmp_path):
    long = Example(
        "long", ({"role": "user", "content": "parcel " * 60},), ("late",), cluster="long", rejected="money"
    )
    pairs = (long, *tiny_methods.pairs(slice(0, 1)))
    assert fit_pairs(tiny, tmp_path, pairs=pairs, max_length=60).training.n_dropped_too_long == 1
    with pytest.raises(CandidateFailed, match=r"all 1 pairs to train on are longer than 60"):
        fit_pairs(tiny, tmp_path / "none", pairs=(long,), max_length=60)


BETA, EPSILON = 0.3, 0.1


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


# By pair: `c` and `r` are the log-ratios of the chosen and the rejected answer to the reference, in nats;
# `n` and `m` their tokens.
DEFINITIONS = {
    "sigmoid": lambda c, r, n, m: -log_sigmoid(BETA * (c - r)),
    "hinge": lambda c, r, n, m: max(0.0, 1 - BETA * (c - r)),
    "ipo": lambda c, r, n, m: (c / n - r / m - 1 / (2 * BETA)) ** 2,
    "robust": lambda c, r, n, m: (
        (-(1 - EPSILON) * log_sigmoid(BETA * (c - r)) + EPSILON * log_sigmoid(-BETA * (c - r)))
        / (1 - 2 * EPSILON)
    ),
    "bco_pair": lambda c, r, n, m: -log_sigmoid(BETA * c) - log_sigmoid(-BETA * r),
    "nca_pair": lambda c, r, n, m: (
        -log_sigmoid(BETA * c) - 0.5 * log_sigmoid(-BETA * c) - 0.5 * log_sigmoid(-BETA * r)
    ),
    "sppo_hard": lambda c, r, n, m: (c - 0.5 / BETA) ** 2 + (r + 0.5 / BETA) ** 2,
    "apo_zero": lambda c, r, n, m: 1 - sigmoid(BETA * c) + sigmoid(BETA * r),
    "apo_down": lambda c, r, n, m: sigmoid(BETA * c) + 1 - sigmoid(BETA * (c - r)),
}


def make_moved_trainer(context, params):
    policy = load_policy(context, lora_config(LoraParams(r=2)), context.folder / "adapter")
    train, apart, _ = pairs_that_fit(context, params, policy.tokenizer, dpo._row)
    trainer = dpo._trainer(policy, params, (train, apart))
    tiny_methods.move_adapter(trainer.model)
    return trainer


@pytest.fixture(scope="module")
def off_the_reference(tiny, tmp_path_factory, own_cache):
    """Return how to make a trainer of a loss, its adapter moved off the reference, and a batch of pairs."""

    def make(loss_type):
        context = tiny_methods.context(tiny, tmp_path_factory.mktemp(loss_type))
        smoothing = {"label_smoothing": EPSILON} if loss_type in dpo._SMOOTHED else {}
        params = dpo.Params(r=2, beta=BETA, loss_type=loss_type, **smoothing)
        trainer = make_moved_trainer(context, params)
        return trainer, trainer.data_collator([trainer.train_dataset[i] for i in range(4)])

    return make


@pytest.mark.parametrize("loss_type", DEFINITIONS)
def test_a_loss_is_that_of_its_definition(off_the_reference, loss_type):
    import torch

    trainer, batch = off_the_reference(loss_type)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, dict(batch)).item()
        logprobs = dpo.logprobs_by_row(trainer.model, batch)
    reference = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
    chosen, rejected = (logprobs - reference).chunk(2)
    lengths = batch["completion_mask"].sum(1)
    of_chosen, of_rejected = lengths.chunk(2)
    ratios = zip(*(x.tolist() for x in (chosen, rejected, of_chosen, of_rejected)), strict=True)
    expected = [DEFINITIONS[loss_type](*values) for values in ratios]
    assert max(map(abs, chosen.tolist())) > 0.01  # else every loss would be that of the reference
    assert loss == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_held_out_pairs_are_the_same_for_every_seed_and_none_asks_what_a_training_pair_asks():
    pairs = [
        Example(f"{q}-{i}", ({"role": "user", "content": f"Question {q}?"},), ("a",), cluster=f"{q}-{i}")
        for q in range(10)
        for i in range(2)
    ]
    train, apart = heldout.split(pairs, pairs, dpo.Params())
    assert len(apart) == 4
    assert {p.prompt for p in train} & {p.prompt for p in apart} == set()
    assert heldout.split(pairs, pairs, dpo.Params()) == (train, apart)
    assert heldout.split(pairs, pairs, dpo.Params(heldout=0)) == (pairs, [])
    assert heldout.split(pairs[:2], pairs[:2], dpo.Params()) == (pairs[:2], [])
    few = dpo.Params(max_steps=2, per_device_train_batch_size=4)  # half of the pairs that are trained on
    assert len(heldout.split(pairs, pairs, few)[1]) == 2


def test_held_out_pairs_are_measured_after_every_epoch(tiny, tmp_path):
    figures = fit_pairs(tiny, tmp_path, per_device_train_batch_size=5).training
    steps = [2, 4]
    assert [step for step, _ in figures.heldout_accuracy] == steps
    assert [step for step, _ in figures.validation_loss] == steps
    assert all(share in (0, 0.5, 1) for _, share in figures.heldout_accuracy)
    assert len(figures.heldout_margin) == 2
    assert figures.reward_margin[0][1] == pytest.approx(0, abs=1e-4)


def test_held_out_figures_are_means_over_pairs_whatever_the_batches(tiny, tmp_path):
    """Three held-out pairs in batches of two and one weigh alike."""

    figures = []
    for size in (2, 3):
        context = tiny_methods.context(tiny, tmp_path / str(size))
        params = dpo.Params(r=2, per_device_train_batch_size=size, heldout=0.25)
        trainer = make_moved_trainer(context, params)
        figures.append(trainer.evaluate())
        assert len(trainer.eval_dataset) == 3
    for name in ("eval_rewards/margins", "eval_rewards/accuracies", "eval_loss"):
        assert figures[0][name] == pytest.approx(figures[1][name], rel=1e-4)
    assert abs(figures[0]["eval_loss"] - math.log(2)) > 1e-3  # else every pair would weigh alike
