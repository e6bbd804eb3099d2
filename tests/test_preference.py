"""Preference training starts at its reference, says the same as TRL, and leaves one adapter behind."""

import math
from dataclasses import replace

import pytest
import tiny_methods
from tiny_methods import CPU

from harness.errors import CandidateFailed
from harness.methods import dpo, lora
from harness.models.devices import load_base
from harness.models.hub import resolve
from harness.records import Example
from harness.training import CHECKPOINTS
from harness.training import preference_optimization as preferences
from harness.training import trainer as loop
from harness.training.heldout import pairs_that_fit
from harness.training.preference_optimization import logprobs_by_row, logprobs_sharing_prompts

pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = {"learning_rate": 0.01, "warmup_steps": 0, "num_train_epochs": 2}


@pytest.fixture(scope="module")
def parent(tiny, tmp_path_factory, own_cache):
    """Train an adapter to go on from, far enough that it is not the base."""
    folder = tmp_path_factory.mktemp("parent")
    params = lora.Params(r=2, learning_rate=0.05, num_train_epochs=3)
    return lora.fit(tiny_methods.context(tiny, folder), params).folder / "adapter"


def fit_pairs(tiny, folder, init=None, pairs=None, **params):
    given = {"pairs": pairs} if pairs else {}
    shape = {} if init else {"r": 2}
    context = tiny_methods.context(tiny, folder, init=init, **given)
    return dpo.fit(context, dpo.Params(**shape, **{**QUICK, **params}))


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
    made = fit_pairs(tiny, tmp_path, parent)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter", CHECKPOINTS}
    assert not any(p.is_dir() for p in (made.folder / "adapter").iterdir())
    assert {p.name: p.read_bytes() for p in parent.iterdir()} == before
    assert (made.folder / "adapter" / "adapter_model.safetensors").read_bytes() != before[
        "adapter_model.safetensors"
    ]


def texts(pairs):
    return [
        {
            "prompt": list(pair.messages),
            "chosen": [{"role": "assistant", "content": pair.references[0]}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
            "length": 1,
        }
        for pair in pairs
    ]


def tokens_of(context, tokenizer):
    return pairs_that_fit(context, dpo.Params(heldout=0), tokenizer, preferences._row)[0]


def make_both_trainers(tiny, folder, init, way):
    """Make TRL's own trainer and ours on the same pairs, their adapters moved off the reference alike."""
    import torch
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from harness.training import LoraParams, lora_config
    from harness.training.low_rank_adapters import Policy, policy_options

    context = replace(tiny_methods.context(tiny, folder), init=init)
    made = []
    ours = preferences._cpu_trainer(preferences._make_caching_trainer({"train": folder.name}), way)
    for kind in (DPOTrainer, ours):
        torch.manual_seed(0)
        model, tokenizer = load_base(resolve(str(tiny)), CPU)
        rows = texts(context.pairs) if kind is DPOTrainer else tokens_of(context, tokenizer)
        config = DPOConfig(
            output_dir=str(folder),
            precompute_ref_log_probs=True,
            remove_unused_columns=False,
            **loop.settings(context, dpo.Params()),
            beta=0.3,
        )
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
        made.append(trainer)
    return made


@pytest.mark.parametrize("way", [logprobs_by_row, logprobs_sharing_prompts])
@pytest.mark.parametrize("starts", ["at the base", "at an adapter"])
def test_loss_gradient_and_reference_are_those_of_trl(tiny, tmp_path, parent, starts, way):
    theirs, ours = make_both_trainers(tiny, tmp_path, parent if starts == "at an adapter" else None, way)
    seen = []
    for trainer in (theirs, ours):
        batch = trainer.data_collator([trainer.train_dataset[i] for i in (0, 3, 5, 7)])
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        trained = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
        gradients = {n: p.grad.norm().item() for n, p in trained.items() if p.grad is not None}
        reference = [trainer.train_dataset[i]["ref_chosen_logps"] for i in range(12)]
        margin = trainer._metrics["train"]["rewards/margins"][-1]
        seen.append((loss.item(), margin, reference, gradients))
    (loss, margin, reference, gradients), (own_loss, own_margin, own_reference, own_gradients) = seen
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


def test_pairs_without_a_chat_template_end_with_the_end_of_sequence(tiny, tmp_path):
    _, tokenizer = load_base(resolve(str(tiny)), CPU)
    pairs = tiny_methods.pairs(slice(0, 1))
    context = replace(tiny_methods.context(tiny, tmp_path, pairs=pairs), chat_template=False)
    row = tokens_of(context, tokenizer)[0]
    assert tokenizer.decode(row["chosen_ids"]) == " late<|im_end|>"
    assert tokenizer.decode(row["rejected_ids"]) == " money<|im_end|>"
    assert tokenizer.decode(row["prompt_ids"]) == pairs[0].prompt
