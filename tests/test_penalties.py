"""Penalties of regularisers and their gradients are what their definitions say, on whole models and on ΔW."""

from functools import partial

import pytest
import tiny_methods

from harness.errors import CandidateFailed
from harness.regularizers import GeneralRow, Start, _weights, ewc, kl, l2_sp

ROWS = (GeneralRow([5, 9, 11, 40, 41, 42], 3), GeneralRow([7, 8, 60, 61], 2))


@pytest.fixture
def whole_model(tiny):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)


def add_adapter(model, peft_type="LORA", **params):
    from peft import get_peft_model

    from harness.training.peft_families import peft_config

    return get_peft_model(model, peft_config(peft_type, params))


def list_trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def move(model, seed=0, by=0.05):
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in list_trained(model).values():
            parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def measure_penalty(penalty, model, step=0):
    model.zero_grad()
    total = 0.0
    for term in penalty(step):
        term.backward()
        total += term.item()
    return total


def test_l2_sp_is_half_the_squared_distance_and_its_gradient_the_distance(whole_model):
    before = {name: p.detach().clone() for name, p in list_trained(whole_model).items()}
    penalty = l2_sp.penalty(Start(whole_model, 0), l2_sp.Params(strength=3.0))
    assert measure_penalty(penalty, whole_model) == 0
    move(whole_model)
    found = measure_penalty(penalty, whole_model)
    moved = {name: p.detach() - before[name] for name, p in list_trained(whole_model).items()}
    assert found == pytest.approx(1.5 * sum(d.square().sum().item() for d in moved.values()), rel=1e-5)
    for name, parameter in list_trained(whole_model).items():
        assert parameter.grad.allclose(3.0 * moved[name], atol=1e-6)


def test_l2_sp_of_a_lora_is_that_of_its_product_and_not_of_its_factors(whole_model):
    model = add_adapter(whole_model, r=2, lora_alpha=6)
    penalty = l2_sp.penalty(Start(model, 0), l2_sp.Params(strength=3.0))
    assert measure_penalty(penalty, model) == 0
    move(model)
    found, expected = measure_penalty(penalty, model), 0.0
    for layer in _weights.find_adapted_layers(model).values():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        delta = (3 * b @ a).detach()
        expected += 1.5 * delta.square().sum().item()
        assert a.grad.allclose(9 * b.T @ delta, atol=1e-5)
        assert b.grad.allclose(9 * delta @ a.T, atol=1e-5)
    assert found == pytest.approx(expected, rel=1e-5)


def test_factors_of_the_same_product_are_penalised_alike(whole_model):
    import torch

    model = add_adapter(whole_model, r=2)
    penalty = l2_sp.penalty(Start(model, 0), l2_sp.Params(strength=1.0))
    move(model)
    before = measure_penalty(penalty, model)
    with torch.no_grad():
        for layer in _weights.find_adapted_layers(model).values():
            layer.lora_A["default"].weight.mul_(4)
            layer.lora_B["default"].weight.div_(4)
    assert measure_penalty(penalty, model) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("family", _weights.ADDITIVE)
def test_what_a_family_adds_to_an_output_is_its_displacement(whole_model, family):
    import torch

    own = {"VBLORA": {"vector_length": 8, "num_vectors": 16, "topk": 2}, "FOURIERFT": {"n_frequency": 20}}
    own |= {"C3A": {"block_size": 8}, "GRALORA": {"r": 4, "gralora_k": 2}}
    own |= {"VERA": {"r": 4, "target_modules": ["o_proj"]}}
    model = add_adapter(whole_model, family, **own.get(family, {}))
    before = _weights.displacements(model)
    assert all(displacement().abs().max() == 0 for displacement in before.values())
    move(model, by=0.3)
    model.eval()
    name, layer = next(iter(_weights.find_adapted_layers(model).items()))
    seen = torch.randn(3, layer.get_base_layer().in_features)
    added = layer(seen) - layer.get_base_layer()(seen)
    delta = layer.get_delta_weight("default")
    assert added.abs().max() > 1e-4
    assert added.allclose(seen @ delta.float().T, atol=1e-4)
    assert before[name]().abs().max() > 0


@pytest.mark.e2e
def test_a_penalty_counts_once_in_a_step_however_its_rows_are_read(tiny, tmp_path, own_cache):
    """A step of twelve rows read as one batch or as three changes the weights alike."""
    from harness.methods import lora

    def fit_rows(name, rows, steps):
        context = tiny_methods.context(tiny, tmp_path / name, regularize={"l2_sp": {"strength": 30.0}})
        params = {"r": 2, "max_steps": 4, "learning_rate": 0.01, "warmup_steps": 0, "weight_decay": 0}
        batch = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
        return lora.fit(context, lora.Params(**params, **batch)).training

    whole, parts = fit_rows("a", 12, 1), fit_rows("b", 4, 3)
    assert [loss for _, loss in parts.loss] == pytest.approx([loss for _, loss in whole.loss], abs=1e-4)


def fisher_by_hand(model, names, seed=0):
    """Return the Fisher diagonal of one token from plain gradients, the labels drawn like the estimate's."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    sums = dict.fromkeys(names, 0.0)
    for ids, start in ROWS:
        logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].float()
        drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        loss = -torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
        gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
        sums = {name: sums[name] + g.square() for name, g in zip(names, gradients, strict=True)}
    return {name: total / 5 for name, total in sums.items()}  # five tokens of answers


def test_the_fisher_diagonal_of_a_whole_model_is_the_mean_squared_gradient(whole_model):
    expected = fisher_by_hand(whole_model, list(list_trained(whole_model)))
    found = ewc.fisher_diagonal(whole_model, ROWS, 0)
    assert found.keys() == expected.keys()
    assert all(found[name].allclose(expected[name], rtol=1e-3, atol=1e-7) for name in found)
    assert all(p.grad is None for p in whole_model.parameters())


def test_the_fisher_diagonal_of_an_adapted_embedding_is_refused_by_its_name(whole_model):
    model = add_adapter(whole_model, r=2, target_modules=["embed_tokens"])
    with pytest.raises(CandidateFailed, match=r"embed_tokens, an embedding"):
        ewc.fisher_diagonal(model, ROWS, 0)


def test_the_fisher_diagonal_of_an_adapter_is_that_of_the_matrices_it_is_added_to(whole_model):
    names = [name for name, p in whole_model.named_parameters() if p.ndim == 2 and "embed" not in name]
    expected = fisher_by_hand(whole_model, names)
    found = ewc.fisher_diagonal(add_adapter(whole_model, r=2), ROWS, 0)
    assert len(found) == len(names)
    for name, square in found.items():
        own = name.removeprefix("base_model.model.") + ".weight"
        assert square.allclose(expected[own], rtol=1e-3, atol=1e-7)


@pytest.mark.e2e
def test_the_fisher_diagonal_is_the_curvature_of_the_kl(whole_model):
    """Over many draws, half of F times a small step's square is the KL a token that this step makes."""
    import torch

    name, by = "model.norm.weight", 0.01
    weights = whole_model.get_parameter(name)
    for parameter in whole_model.parameters():
        parameter.requires_grad_(parameter is weights)
    found = torch.stack([ewc.fisher_diagonal(whole_model, ROWS, seed)[name] for seed in range(300)]).mean(0)
    worth = int(found.argmax())

    def read():
        return [
            whole_model(input_ids=torch.tensor([r.ids])).logits[0, r.start - 1 : -1].log_softmax(-1)
            for r in ROWS
        ]

    with torch.no_grad():
        before = read()
        weights[worth] += by
        pairs = zip(before, read(), strict=True)
        kl = sum((p.exp() * (p - q)).sum().item() for p, q in pairs) / 5
    assert found[worth].item() * by**2 / 2 == pytest.approx(kl, rel=0.15)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_ewc_is_half_the_weighted_squared_distance_and_its_gradient_the_weighted_one(whole_model, method):
    model = whole_model if method == "full" else add_adapter(whole_model, r=2, lora_alpha=4)
    fisher = ewc.fisher_diagonal(model, ROWS, 0)
    before = {name: p.detach().clone() for name, p in list_trained(model).items()}
    penalty = ewc.penalty(Start(model, 0, ROWS), ewc.Params(strength=7.0))
    assert measure_penalty(penalty, model) == 0
    move(model)
    found, expected = measure_penalty(penalty, model), 0.0
    for name, weights in fisher.items():
        if method == "full":
            parameter = list_trained(model)[name]
            moved = (parameter - before[name]).detach()
            assert parameter.grad.allclose(7 * weights * moved, rtol=1e-4, atol=1e-6)
        else:
            layer = model.get_submodule(name)
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            moved = (2 * b @ a).detach()
            assert b.grad.allclose(14 * (weights * moved) @ a.T, rtol=1e-4, atol=1e-6)
        expected += 3.5 * (weights * moved.square()).sum().item()
    assert found > 0
    assert found == pytest.approx(expected, rel=1e-4)


def logprobs(model):
    """Return log p (t, v) of each row's answer tokens."""
    import torch

    return [
        model(input_ids=torch.tensor([row.ids])).logits[0, row.start - 1 - len(row.ids) : -1].log_softmax(-1)
        for row in ROWS
    ]


HEADS = {
    "adapted head": {"target_modules": ["q_proj", "lm_head"], "lora_dropout": 0.5},
    "adapted tied head": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "trained tokens": {"trainable_token_indices": [5, 40]},
    "copied head": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("kind", ["full", "LORA", "PROMPT_TUNING", "PREFIX_TUNING", "IA3", *HEADS])
def test_kl_is_that_of_whole_distributions_and_so_is_its_gradient(whole_model, kind):
    import torch

    soft = {"num_virtual_tokens": 3} if kind.endswith("TUNING") else {}
    with torch.no_grad():
        base = logprobs(whole_model)
    family = "LORA" if kind in HEADS else kind
    model = (
        whole_model
        if kind == "full"
        else add_adapter(whole_model, family, **soft, **HEADS.get(kind, {})).eval()
    )
    with torch.no_grad():
        first = logprobs(model) if soft else base  # a soft prompt's start is not the base
    penalty = kl.penalty(Start(model, 0, ROWS), kl.Params(strength=3.0, rows_per_step=2))
    assert measure_penalty(penalty, model) == pytest.approx(0, abs=1e-5)
    move(model)
    found = measure_penalty(penalty, model)
    gradients = {name: p.grad.clone() for name, p in list_trained(model).items()}
    model.zero_grad()
    pairs = zip(first, logprobs(model), strict=True)
    expected = 3 * sum((p.exp() * (p - q)).sum(-1).mean() for p, q in pairs) / 2
    expected.backward()
    assert found > 1e-4
    assert found == pytest.approx(expected.item(), rel=1e-3)
    for name, parameter in list_trained(model).items():
        assert gradients[name].allclose(parameter.grad, rtol=1e-2, atol=1e-4)


def test_the_rows_of_a_step_are_drawn_by_the_seed_and_the_step(whole_model):
    penalty = kl.penalty(Start(whole_model, 0, ROWS), kl.Params(rows_per_step=1))
    move(whole_model)
    by_step = [measure_penalty(penalty, whole_model, step) for step in range(6)]
    assert by_step == [measure_penalty(penalty, whole_model, step) for step in range(6)]
    assert len({round(value, 6) for value in by_step}) == 2


def test_chunks_give_the_kl_of_all_tokens(whole_model):
    import torch

    generator = torch.Generator().manual_seed(0)
    known, states = (torch.randn(150, 8, generator=generator) for _ in range(2))
    matrices = tuple(torch.randn(20, 8, generator=generator) for _ in range(2))
    p, q = ((s @ m.T).log_softmax(-1) for s, m in zip((known, states), matrices, strict=True))
    heads = [partial(torch.nn.functional.linear, weight=matrix) for matrix in matrices]
    found = kl.mean_kl((known, heads[0]), (states, heads[1]))
    assert found.item() == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)


KL_AND_L2 = {"kl": {"strength": 20.0}, "l2_sp": {"strength": 1e4}}
ANSWERS = {"max_completion_length": 4, "num_generations": 4}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "regularize", "own"),
    [
        ("dpo", {"ewc": {"strength": 1e4}}, {"max_steps": 6}),
        ("dpo", {"kl": {"strength": 20.0}}, {"max_steps": 6}),
        ("kto", KL_AND_L2, {}),
        ("gkd", KL_AND_L2, {"teacher": "teacher", "lmbda": 0.0}),
        ("grpo", KL_AND_L2, ANSWERS),
        ("rloo", KL_AND_L2, ANSWERS),
        ("spectrum", {"ewc": {"strength": 100.0}, "kl": {}, "l2_sp": {"strength": 1.0}}, {}),
        ("bottleneck", {"ewc": {"strength": 100.0}, "kl": {}, "l2_sp": {"strength": 1.0}}, {}),
    ],
)
def test_penalties_hold_back_each_kind_of_training(tiny, tmp_path, own_cache, name, regularize, own):
    import tiny_model
    from safetensors.torch import load_file

    from harness import plugins
    from harness.training import Reward

    (tmp_path / "short.py").write_text(
        "def reward(prompts, completions, references):\n    return [-float(len(text)) for text in completions]\n"
    )
    if "teacher" in own:
        own = {**own, "teacher": str(tiny_model.build(tmp_path / "teacher", seed=7))}
    method, quick = plugins.method(name), {"max_steps": 3, "learning_rate": 0.01, "warmup_steps": 0}
    if name not in ("spectrum", "bottleneck"):
        quick |= {"r": 2, "per_device_train_batch_size": 4}

    def fit(folder, regularize):
        context = tiny_methods.context(
            tiny,
            tmp_path / folder,
            regularize=regularize,
            general=dict.fromkeys(regularize, tiny_methods.examples(slice(2, 4))),
            reward=Reward(written=str(tmp_path / "short.py")),
        )
        return method.fit(context, method.params(**(quick | own)))

    held, free = fit("held", regularize), fit("free", {})
    assert held.digest != free.digest
    if held.kind == "adapter":
        files = [load_file(made.folder / "adapter" / "adapter_model.safetensors") for made in (held, free)]
        sizes = [sum(w.square().sum().item() for k, w in file.items() if "lora_B" in k) for file in files]
        assert sizes[0] < 0.9 * sizes[1]
