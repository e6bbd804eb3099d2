"""Penalties of regularisers and their gradients are what their definitions say, on whole models and on ΔW."""

from functools import partial

import pytest
import tiny_methods

from harness import regularizers
from harness.errors import CandidateFailed
from harness.regularizers import GeneralRow, Start, _displacement, l2_sp

ROWS = (GeneralRow([5, 9, 11, 40, 41, 42], 3), GeneralRow([7, 8, 60, 61], 2))


@pytest.fixture
def whole(tiny):
    """A model whose weights are all trained."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)


def adapted(model, peft_type="LORA", **params):
    """Put an adapter of a family on a model."""
    from peft import get_peft_model

    from harness.training.peft_families import peft_config

    return get_peft_model(model, peft_config(peft_type, params))


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def move(model, seed=0, by=0.05):
    """Move all that is trained by noise."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def measured(penalty, model, step=0):
    """Return the sum of a penalty's terms, its gradients left in the model."""
    model.zero_grad()
    total = 0.0
    for term in penalty(step):
        term.backward()
        total += term.item()
    return total


def test_l2_sp_is_half_the_squared_distance_and_its_gradient_the_distance(whole):
    before = {name: p.detach().clone() for name, p in trained(whole).items()}
    penalty = l2_sp.penalty(Start(whole, 0), l2_sp.Params(strength=3.0))
    assert measured(penalty, whole) == 0
    move(whole)
    found = measured(penalty, whole)
    moved = {name: p.detach() - before[name] for name, p in trained(whole).items()}
    assert found == pytest.approx(1.5 * sum(d.square().sum().item() for d in moved.values()), rel=1e-5)
    for name, parameter in trained(whole).items():
        assert parameter.grad.allclose(3.0 * moved[name], atol=1e-6)


def test_l2_sp_of_a_lora_is_that_of_its_product_and_not_of_its_factors(whole):
    model = adapted(whole, r=2, lora_alpha=6)
    penalty = l2_sp.penalty(Start(model, 0), l2_sp.Params(strength=3.0))
    assert measured(penalty, model) == 0
    move(model)
    found, expected = measured(penalty, model), 0.0
    for layer in _displacement.adapted_layers(model).values():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        delta = (3 * b @ a).detach()
        expected += 1.5 * delta.square().sum().item()
        assert a.grad.allclose(9 * b.T @ delta, atol=1e-5)
        assert b.grad.allclose(9 * delta @ a.T, atol=1e-5)
    assert found == pytest.approx(expected, rel=1e-5)


def test_factors_of_the_same_product_are_penalised_alike(whole):
    import torch

    model = adapted(whole, r=2)
    penalty = l2_sp.penalty(Start(model, 0), l2_sp.Params(strength=1.0))
    move(model)
    before = measured(penalty, model)
    with torch.no_grad():
        for layer in _displacement.adapted_layers(model).values():
            layer.lora_A["default"].weight.mul_(4)
            layer.lora_B["default"].weight.div_(4)
    assert measured(penalty, model) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("family", _displacement.ADDITIVE)
def test_what_a_family_adds_to_an_output_is_its_displacement(whole, family):
    import torch

    own = {"VBLORA": {"vector_length": 8, "num_vectors": 16, "topk": 2}, "FOURIERFT": {"n_frequency": 20}}
    own |= {"C3A": {"block_size": 8}, "GRALORA": {"r": 4, "gralora_k": 2}}
    own |= {"VERA": {"r": 4, "target_modules": ["o_proj"]}}
    model = adapted(whole, family, **own.get(family, {}))
    before = _displacement.displacements(model)
    assert all(displacement().abs().max() == 0 for displacement in before.values())
    move(model, by=0.3)
    model.eval()
    name, layer = next(iter(_displacement.adapted_layers(model).items()))
    seen = torch.randn(3, layer.get_base_layer().in_features)
    added = layer(seen) - layer.get_base_layer()(seen)
    delta = layer.get_delta_weight("default")
    assert added.abs().max() > 1e-4
    assert added.allclose(seen @ delta.float().T, atol=1e-4)
    assert before[name]().abs().max() > 0


def test_an_adapter_that_is_not_added_is_refused(whole):
    model = adapted(whole, "IA3")
    with pytest.raises(CandidateFailed, match="IA3"):
        l2_sp.penalty(Start(model, 0), l2_sp.Params(strength=1.0))


def test_a_penalty_counts_once_in_a_step_however_its_rows_are_read(tiny, tmp_path, own_cache):
    """A step of twelve rows read as one batch or as three changes the weights alike."""
    from harness.methods import lora

    def fitted(name, rows, steps):
        context = tiny_methods.context(tiny, tmp_path / name, regularize={"l2_sp": {"strength": 30.0}})
        params = {"r": 2, "max_steps": 4, "learning_rate": 0.01, "warmup_steps": 0, "weight_decay": 0}
        batch = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
        return lora.fit(context, lora.Params(**params, **batch)).training

    whole, parts = fitted("a", 12, 1), fitted("b", 4, 3)
    assert [loss for _, loss in parts.loss] == pytest.approx([loss for _, loss in whole.loss], abs=1e-4)


def test_l2_sp_holds_weights_back(tiny, tmp_path, own_cache):
    from safetensors.torch import load_file

    from harness.methods import full

    def distance(name, regularize):
        context = tiny_methods.context(tiny, tmp_path / name, regularize=regularize)
        made = full.fit(context, full.Params(num_train_epochs=3, learning_rate=0.01, weight_decay=0))
        before, after = (load_file(f / "model.safetensors") for f in (tiny, made.folder / "model"))
        return sum((after[key] - before[key]).square().sum().item() for key in before) ** 0.5

    assert distance("held", {"l2_sp": {"strength": 100.0}}) < 0.7 * distance("free", {})


def test_penalties_of_several_regularisers_are_given_the_rows_of_their_name(whole):
    found = regularizers.penalties({"l2_sp": {"strength": 1.0}}, whole, 0, {"l2_sp": ROWS})
    assert len(found) == 1
    assert partial(measured, found[0])(whole) == 0
