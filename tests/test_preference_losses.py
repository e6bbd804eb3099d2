"""Each loss of preference training is the one of its paper, and held-out pairs are measured, not trained on."""

import math

import pytest
import tiny_methods

from harness.methods import dpo
from harness.records import Example
from harness.training import CHECKPOINTS, LoraParams, heldout, lora_config
from harness.training import preference_optimization as preferences
from harness.training.heldout import pairs_that_fit
from harness.training.low_rank_adapters import load_policy
from harness.training.preference_optimization import logprobs_by_row

pytestmark = pytest.mark.usefixtures("own_cache")

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
    train, apart, _ = pairs_that_fit(context, params, policy.tokenizer, preferences._row)
    trainer = preferences._trainer(policy, params, (train, apart))
    tiny_methods.move_adapter(trainer.model)
    return trainer


@pytest.fixture(scope="module")
def off_the_reference(tiny, tmp_path_factory, own_cache):
    """Return how to make a trainer of a loss, its adapter moved off the reference, and a batch of pairs."""

    def make(loss_type):
        context = tiny_methods.context(tiny, tmp_path_factory.mktemp(loss_type))
        smoothing = {"label_smoothing": EPSILON} if loss_type in preferences._SMOOTHED else {}
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
        own = logprobs_by_row(trainer.model, batch)
    reference = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
    chosen, rejected = (own - reference).chunk(2)
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


def fit_pairs(tiny, folder, **params):
    context = tiny_methods.context(tiny, folder)
    quick = {"learning_rate": 0.01, "warmup_steps": 0, "num_train_epochs": 2, "r": 2}
    return dpo.fit(context, dpo.Params(**{**quick, **params}))


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

    made = []
    for size in (2, 3):
        context = tiny_methods.context(tiny, tmp_path / str(size))
        params = dpo.Params(r=2, per_device_train_batch_size=size, heldout=0.25)
        trainer = make_moved_trainer(context, params)
        made.append(trainer.evaluate())
        assert len(trainer.eval_dataset) == 3
    for name in ("eval_rewards/margins", "eval_rewards/accuracies", "eval_loss"):
        assert made[0][name] == pytest.approx(made[1][name], rel=1e-4)
    assert abs(made[0]["eval_loss"] - math.log(2)) > 1e-3  # else every pair would weigh alike


@pytest.mark.e2e
def test_early_stopping_ends_a_training_and_keeps_the_best_checkpoint(tiny, tmp_path):
    """At a rate at which it diverges from the reference, the held-out loss soon rises."""
    made = fit_pairs(tiny, tmp_path, num_train_epochs=30, early_stopping_patience=1, learning_rate=0.5)
    losses = [loss for _, loss in made.training.validation_loss]
    assert len(losses) < 30
    assert losses[-1] >= min(losses)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter", CHECKPOINTS}
