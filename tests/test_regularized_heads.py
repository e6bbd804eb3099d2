"""Heads and reward models take the regularisers that mean something without a vocabulary, and no others."""

from dataclasses import replace
from functools import partial

import pytest
import tiny_experiment
import tiny_methods
from safetensors.torch import load_file

from harness import plugins, regularizers
from harness.methods import head
from harness.regularizers import Start, _weights, l2_sp
from harness.training.heads import load_with_head

pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = {"max_steps": 3, "learning_rate": 0.01, "warmup_steps": 0, "per_device_train_batch_size": 4}
ANY = [("l2_sp", {"strength": 100.0}), ("sam", {"rho": 0.5}), ("neftune", {"noise_alpha": 50.0})]
OF_LABELS = ("label_smoothing", {"factor": 0.3})
OF_ALL = [("freeze", {"first": 1}), ("half", {"rounds": 1}), ("dropout", {"rate": 0.5})]


def fit_head(module, tiny, folder, regularize, **params):
    prepare = partial(regularizers.prepare, regularize)
    context = tiny_methods.context(tiny, folder, regularize=regularize, prepare=prepare)
    return module.fit(context, module.Params(**QUICK, **params))


def tensors(made):
    return load_file(next((made.folder / made.kind).glob("*.safetensors")))


@pytest.mark.parametrize(
    ("train", "name", "written"),
    [
        *((train, *one) for train in ("adapter", "all") for one in (*ANY, OF_LABELS)),
        *(("all", *one) for one in OF_ALL),
    ],
)
def test_a_head_with_a_regularizer_is_another_one(tiny, tmp_path, train, name, written):
    plain = fit_head(head, tiny, tmp_path / "plain", {}, train=train, r=2)
    held = fit_head(head, tiny, tmp_path / "held", {name: written}, train=train, r=2)
    assert tensors(held)["score.weight" if train == "all" else "base_model.model.score.weight"].any()
    assert held.digest != plain.digest


@pytest.mark.parametrize("adapted", [True, False])
def test_a_new_head_has_no_start_to_be_held_to(tiny, adapted):
    import torch
    from peft import get_peft_model

    from harness.models.hub import resolve
    from harness.training import LoraParams, lora_config

    model, _ = load_with_head(resolve(str(tiny)), tiny_methods.CPU, 3)
    if adapted:
        model = get_peft_model(model, lora_config(LoraParams(r=2), "SEQ_CLS"))
    penalty = l2_sp.penalty(Start(model, 0), l2_sp.Params(strength=1.0))
    new = {name: p for name, p in model.named_parameters() if "score" in name and p.requires_grad}
    assert len(new) == 1
    assert not set(new) & set(_weights.displacements(model))
    with torch.no_grad():
        for parameter in new.values():
            parameter.add_(1)
    assert sum(term.item() for term in penalty(0)) == 0


@pytest.mark.e2e
def test_what_is_frozen_or_not_of_the_half_is_not_trained_and_the_head_is(tiny, tmp_path):
    first = tensors(fit_head(head, tiny, tmp_path / "first", {"freeze": {"first": 1}}, train="all"))
    last = tensors(fit_head(head, tiny, tmp_path / "last", {"freeze": {"all_but_last": 1}}, train="all"))
    half = tensors(fit_head(head, tiny, tmp_path / "half", {"half": {}}, train="all"))
    whole = tensors(fit_head(head, tiny, tmp_path / "whole", {}, train="all"))
    layers = {name for name in whole if ".layers." in name}
    assert set(whole) - set(first) == {n for n in whole if ".layers.0." in n or "embed_tokens" in n}
    assert set(last) == {n for n in whole if ".layers.1." in n} | {"score.weight"}
    assert len(layers & set(half)) == len(layers) / 2
    assert set(whole) - layers <= set(half)


def test_labels_are_smoothed_in_training_and_not_in_validation(tiny, tmp_path):
    """A rate of next to nothing leaves the model as it was, so both losses are of the same model."""

    def losses(folder, regularize):
        context = tiny_methods.context(tiny, tmp_path / folder, regularize=regularize)
        rows = replace(context, validation=context.train[4:8], train=context.train[4:8])
        still = QUICK | {"learning_rate": 1e-12, "max_steps": 1}
        made = head.fit(rows, head.Params(train="head", **still)).training
        return made.loss[0][1], made.validation_loss[0][1]

    plain, validation = losses("plain", {})
    smoothed, beside = losses("smoothed", {"label_smoothing": {"factor": 0.5}})
    assert plain == pytest.approx(validation, abs=1e-4)
    assert beside == pytest.approx(validation, rel=1e-6)
    assert smoothed != pytest.approx(plain, abs=1e-3)
    # Of two labels the mean over both differs from the loss of the right one by half the margin.
    assert smoothed - plain == pytest.approx(
        (mean_over_labels(tiny, tmp_path / "mean") - plain) / 2, abs=1e-3
    )


def mean_over_labels(tiny, folder):
    """Return the mean over rows and both labels of −log p, as a new head with the seed gives it."""
    import torch
    from transformers import set_seed

    context = tiny_methods.context(tiny, folder)
    set_seed(context.seed)
    model, tokenizer = load_with_head(context.source, context.machine, 2)
    with torch.no_grad():
        logprobs = [
            model(**tokenizer(e.prompt, return_tensors="pt")).logits.log_softmax(-1)
            for e in context.train[4:8]  # two of each label
        ]
    return -torch.cat(logprobs).mean().item()


@pytest.mark.e2e
def test_a_regularized_head_is_a_candidate_beside_the_plain_one(tiny, tmp_path):
    quick = "train: all, num_train_epochs: 1, learning_rate: 0.01"
    candidates = (
        "  prompt: {method: base}\n"
        f"  plain: {{method: head, params: {{{quick}}}}}\n"
        f"  held: {{method: head, params: {{{quick}}}, regularize: {{freeze: {{first: 1}}, sam: {{}}}}}}\n"
    )
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    tiny_experiment.run(path)
    runs = tiny_experiment.runs_of(path)
    assert runs["plain"].training.n_trainable > runs["held"].training.n_trainable
    assert runs["plain"].weights_digest != runs["held"].weights_digest


def test_every_method_that_makes_gradient_steps_takes_a_regularizer():
    assert [name for name in plugins.methods(trains=True) if not plugins.method(name).hooks] == []
