"""Penalties, gradients and regularisers agree with their definitions and papers."""

from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest
import tiny_methods
import torch
from safetensors.torch import load_file

from harness import plugins
from harness.methods.supervised import Full, Lora
from harness.regularizers import GeneralRow, Start, distance, kl, parts, perturbed
from harness.training import Reward
from harness.training.peft_families import peft_config
from harness.training.sft import whole_loss_trainer

pytestmark = pytest.mark.usefixtures("own_cache")

ROWS = (GeneralRow([5, 9, 11, 40, 41, 42], 3), GeneralRow([7, 8, 60, 61], 2))


@pytest.fixture
def whole_model(tiny):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)


def add_adapter(model, peft_type="LORA", **params):
    from peft import get_peft_model

    return get_peft_model(model, peft_config(peft_type, params))


def list_trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def move(model, seed=0, by=0.05):
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
    penalty = distance.L2Sp.penalty(Start(whole_model, 0), distance.L2Sp.Params(strength=3.0))
    assert measure_penalty(penalty, whole_model) == 0
    move(whole_model)
    value = measure_penalty(penalty, whole_model)
    moved = {name: p.detach() - before[name] for name, p in list_trained(whole_model).items()}
    assert value == pytest.approx(1.5 * sum(d.square().sum().item() for d in moved.values()), rel=1e-5)
    for name, parameter in list_trained(whole_model).items():
        assert parameter.grad.allclose(3.0 * moved[name], atol=1e-6)


def test_l2_sp_of_a_lora_is_that_of_its_product(whole_model):
    model = add_adapter(whole_model, r=2, lora_alpha=6)
    penalty = distance.L2Sp.penalty(Start(model, 0), distance.L2Sp.Params(strength=3.0))
    assert measure_penalty(penalty, model) == 0
    move(model)
    value, expected = measure_penalty(penalty, model), 0.0
    for layer in distance.find_adapted_layers(model).values():
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        delta = (3 * b @ a).detach()
        expected += 1.5 * delta.square().sum().item()
        assert a.grad.allclose(9 * b.T @ delta, atol=1e-5)
        assert b.grad.allclose(9 * delta @ a.T, atol=1e-5)
    assert value == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", distance.ADDITIVE)
def test_what_a_family_adds_to_an_output_is_its_displacement(whole_model, family):
    params = {"VBLORA": {"vector_length": 8, "num_vectors": 16, "topk": 2}, "FOURIERFT": {"n_frequency": 20}}
    params |= {"C3A": {"block_size": 8}, "GRALORA": {"r": 4, "gralora_k": 2}}
    params |= {"VERA": {"r": 4, "target_modules": ["o_proj"]}}
    model = add_adapter(whole_model, family, **params.get(family, {}))
    before = distance.displacements(model)
    assert all(displacement().abs().max() == 0 for displacement in before.values())
    move(model, by=0.3)
    model.eval()
    name, layer = next(iter(distance.find_adapted_layers(model).items()))
    inputs = torch.randn(3, layer.get_base_layer().in_features)
    added = layer(inputs) - layer.get_base_layer()(inputs)
    delta = layer.get_delta_weight("default")
    assert added.abs().max() > 1e-4
    assert added.allclose(inputs @ delta.float().T, atol=1e-4)
    assert before[name]().abs().max() > 0


@pytest.mark.e2e
def test_a_penalty_counts_once_in_a_step_however_its_rows_are_read(tiny, tmp_path, own_cache):
    """A step of twelve rows read as one batch or as three changes the weights alike."""

    def fit_rows(name, rows, steps):
        params = {"r": 2, "max_steps": 4, "learning_rate": 0.01, "warmup_steps": 0, "weight_decay": 0}
        params |= {"per_device_train_batch_size": rows, "gradient_accumulation_steps": steps}
        penalty = {"l2_sp": {"strength": 30.0}}
        return tiny_methods.fit(tiny, tmp_path / name, Lora, params, regularize=penalty).training

    whole, parts = fit_rows("a", 12, 1), fit_rows("b", 4, 3)
    assert [loss for _, loss in parts.loss] == pytest.approx([loss for _, loss in whole.loss], abs=1e-4)


def fisher_by_hand(model, names, seed=0):
    """Return the Fisher diagonal of one token from plain gradients, the labels drawn like the estimate's."""
    generator = torch.Generator().manual_seed(seed)
    sums = dict.fromkeys(names, 0.0)
    for ids, start in ROWS:
        logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].float()
        labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        loss = -torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
        sums = {name: sums[name] + g.square() for name, g in zip(names, gradients, strict=True)}
    return {name: total / 5 for name, total in sums.items()}  # five tokens of answers


def test_the_fisher_diagonal_of_a_whole_model_is_the_mean_squared_gradient(whole_model):
    expected = fisher_by_hand(whole_model, list(list_trained(whole_model)))
    fisher = distance.fisher_diagonal(whole_model, ROWS, 0)
    assert fisher.keys() == expected.keys()
    assert all(fisher[name].allclose(expected[name], rtol=1e-3, atol=1e-7) for name in fisher)
    assert all(p.grad is None for p in whole_model.parameters())


def test_the_fisher_diagonal_of_an_adapter_is_that_of_the_matrices_it_is_added_to(whole_model):
    names = [name for name, p in whole_model.named_parameters() if p.ndim == 2 and "embed" not in name]
    expected = fisher_by_hand(whole_model, names)
    fisher = distance.fisher_diagonal(add_adapter(whole_model, r=2), ROWS, 0)
    assert len(fisher) == len(names)
    for name, square in fisher.items():
        matrix = name.removeprefix("base_model.model.") + ".weight"
        assert square.allclose(expected[matrix], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_ewc_is_half_the_weighted_squared_distance_and_its_gradient_the_weighted_one(whole_model, method):
    model = whole_model if method == "full" else add_adapter(whole_model, r=2, lora_alpha=4)
    fisher = distance.fisher_diagonal(model, ROWS, 0)
    before = {name: p.detach().clone() for name, p in list_trained(model).items()}
    penalty = distance.Ewc.penalty(Start(model, 0, ROWS), distance.Ewc.Params(strength=7.0))
    assert measure_penalty(penalty, model) == 0
    move(model)
    value, expected = measure_penalty(penalty, model), 0.0
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
    assert value > 0
    assert value == pytest.approx(expected, rel=1e-4)


def logprobs(model):
    """Return log p (t, v) of each row's answer tokens."""
    return [
        model(input_ids=torch.tensor([row.ids])).logits[0, row.start - 1 - len(row.ids) : -1].log_softmax(-1)
        for row in ROWS
    ]


HEADS = {
    "adapted head": {"target_modules": ["q_proj", "lm_head"], "lora_dropout": 0.5},
    "copied head": {"modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("kind", ["full", "LORA", "PREFIX_TUNING", *HEADS])
def test_kl_is_that_of_whole_distributions_and_so_is_its_gradient(whole_model, kind):
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
    value = measure_penalty(penalty, model)
    gradients = {name: p.grad.clone() for name, p in list_trained(model).items()}
    model.zero_grad()
    pairs = zip(first, logprobs(model), strict=True)
    expected = 3 * sum((p.exp() * (p - q)).sum(-1).mean() for p, q in pairs) / 2
    expected.backward()
    assert value > 1e-4
    assert value == pytest.approx(expected.item(), rel=1e-3)
    for name, parameter in list_trained(model).items():
        assert gradients[name].allclose(parameter.grad, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "finish"),
    [
        ("Gemma2Config", {"final_logit_softcapping": 2.0, "query_pre_attn_scalar": 8}),
        ("GraniteConfig", {"logits_scaling": 4.0}),
        ("CohereConfig", {"logit_scale": 0.25}),
    ],
)
def test_the_kl_of_a_model_that_caps_or_scales_its_logits_is_that_of_its_distributions(config, finish):
    import transformers

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 80, "initializer_range": 0.5}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(0)
    model_config = getattr(transformers, config)(**sizes, **ids, **finish)
    model = transformers.AutoModelForCausalLM.from_config(model_config).eval()
    with torch.no_grad():
        first = logprobs(model)
    penalty = kl.penalty(Start(model, 0, ROWS), kl.Params())
    assert measure_penalty(penalty, model) == pytest.approx(0, abs=1e-5)
    move(model)
    pairs = zip(first, logprobs(model), strict=True)
    expected = sum((p.exp() * (p - q)).sum(-1).mean() for p, q in pairs).item() / 2
    assert measure_penalty(penalty, model) == pytest.approx(expected, rel=1e-3) != 0


def test_the_kl_of_drawn_rows_and_of_chunks_is_that_of_all_tokens(whole_model):
    penalty = kl.penalty(Start(whole_model, 0, ROWS), kl.Params(rows_per_step=1))
    move(whole_model)
    by_step = [measure_penalty(penalty, whole_model, step) for step in range(6)]
    assert by_step == [measure_penalty(penalty, whole_model, step) for step in range(6)]
    assert len({round(value, 6) for value in by_step}) == 2

    generator = torch.Generator().manual_seed(0)
    base_states, states = (torch.randn(150, 8, generator=generator) for _ in range(2))
    matrices = tuple(torch.randn(20, 8, generator=generator) for _ in range(2))
    p, q = ((s @ m.T).log_softmax(-1) for s, m in zip((base_states, states), matrices, strict=True))
    heads = [partial(torch.nn.functional.linear, weight=matrix) for matrix in matrices]
    kl_value = kl.mean_kl((base_states, heads[0]), (states, heads[1]))
    assert kl_value.item() == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)


KL_AND_L2 = {"kl": {"strength": 20.0}, "l2_sp": {"strength": 1e4}}
ANSWERS = {"max_completion_length": 4, "num_generations": 4}


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "regularize", "own"),
    [("dpo", {"ewc": {"strength": 1e4}}, {"max_steps": 6}), ("grpo", KL_AND_L2, ANSWERS)],
)
def test_penalties_hold_back_each_kind_of_training(tiny, tmp_path, own_cache, name, regularize, own):
    (tmp_path / "short.py").write_text(
        "def reward(prompts, completions, references):\n    return [-float(len(text)) for text in completions]\n"
    )
    method, quick = plugins.method(name), {"max_steps": 3, "learning_rate": 0.01, "warmup_steps": 0}
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
    files = [load_file(weights.folder / "adapter" / "adapter_model.safetensors") for weights in (held, free)]
    sizes = [sum(w.square().sum().item() for k, w in file.items() if "lora_B" in k) for file in files]
    assert sizes[0] < 0.9 * sizes[1]


@pytest.fixture
def bowl():
    """A module with the loss w A w / 2, and its backward pass with the points where it ran."""
    model, a = torch.nn.Linear(3, 1, bias=False), torch.tensor([[4.0, 1, 0], [1, 3, 0], [0, 0, 2]])
    points = []

    def backward():
        w = model.weight[0]
        points.append(w.detach().clone())
        loss = w @ a @ w / 2
        loss.backward()
        return loss.detach()

    return model, a, backward, points


def test_sam_takes_the_gradient_at_the_point_a_distance_of_rho_uphill(bowl):
    model, a, backward, points = bowl
    start = model.weight.detach()[0].clone()
    loss = perturbed.Sam.step(model, backward, perturbed.Sam.Params(rho=0.3))
    uphill = start + 0.3 * (a @ start) / (a @ start).norm()
    assert loss.item() == pytest.approx((start @ a @ start / 2).item())
    assert points[0].equal(start)
    assert points[1].allclose(uphill)
    assert (points[1] - start).norm().item() == pytest.approx(0.3, rel=1e-4)
    assert model.weight.grad[0].allclose(a @ uphill)
    assert model.weight.detach()[0].equal(start)


def compute_smoothed_loss(tiny, factor, training):
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM
    from transformers.trainer_pt_utils import LabelSmoother

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).train(training)
    labels = torch.tensor([[-100, -100, 11, 40, 41], [-100, 8, 60, 61, -100]])
    inputs = {"input_ids": labels.clamp(min=5), "attention_mask": torch.ones_like(labels), "labels": labels}
    logged = {"train": defaultdict(list), "eval": defaultdict(list)}
    args = SimpleNamespace(label_smoothing_factor=factor)
    accelerator = Accelerator(cpu=True)
    trainer = SimpleNamespace(
        args=args, _metrics=logged, accelerator=accelerator, model=model, joins_rows=False
    )
    with torch.no_grad():
        loss = whole_loss_trainer().compute_loss(trainer, model, dict(inputs))
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return loss.item(), LabelSmoother(epsilon=factor)(output, labels, shift_labels=True).item()


def test_label_smoothing_is_that_of_transformers_in_training_and_none_in_evaluation(tiny):
    loss, expected = compute_smoothed_loss(tiny, 0.3, training=True)
    plain, _ = compute_smoothed_loss(tiny, 0.0, training=True)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert loss != pytest.approx(plain, rel=1e-3)
    assert compute_smoothed_loss(tiny, 0.3, training=False)[0] == pytest.approx(plain, rel=1e-6)


def test_dropout_zeroes_its_share_of_attention_and_mlp_outputs_in_training_alone(tiny):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = torch.arange(5, 105)[None]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        names = set(model.state_dict())
        parts.Dropout.prepare(model, parts.Dropout.Params(rate=0.25))
        outputs = []
        for layer in model.model.layers:
            for sublayer in (layer.self_attn, layer.mlp):
                sublayer.register_forward_hook(
                    lambda module, inputs, output: outputs.append(
                        output[0] if isinstance(output, tuple) else output
                    )
                )
        assert model(input_ids=ids).logits.equal(plain)
        evaluated, outputs[:] = list(outputs), []
        torch.manual_seed(0)
        model.train()(input_ids=ids)
    assert len(outputs) == 4
    shares = [(output == 0).float().mean().item() for output in outputs]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)
    assert all((output != 0).all() for output in evaluated)
    is_kept = outputs[0] != 0  # of the first sublayer, whose input is the same in training
    assert outputs[0][is_kept].allclose(evaluated[0][is_kept] / 0.75, atol=1e-5)
    assert set(model.state_dict()) == names


NAMES = [
    f"model.layers.{layer}.{module}.weight"
    for layer in range(30)
    for module in (
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        *("input_layernorm", "post_attention_layernorm"),
    )
]


def select_names(names, substring):
    return {name for name in names if substring in name}


def test_half_chooses_half_of_each_kind_in_each_layer_and_all_that_is_outside():
    outside = ["model.embed_tokens.weight", "model.norm.weight"]
    chosen = set(parts.Half.select([*outside, *NAMES], 0.0, parts.Half.Params(), 1))
    assert set(outside) <= chosen
    for layer in range(30):
        layer_names = select_names(chosen, f".{layer}.")
        assert len(select_names(layer_names, "self_attn")) == 2
        assert len(select_names(layer_names, "mlp")) == 1 + layer % 2
        assert len(select_names(layer_names, "layernorm")) == 1
    assert len(chosen) - 2 == len(NAMES) / 2


def train_in_rounds(tiny, folder, rounds):
    params = {"num_train_epochs": 4, "learning_rate": 0.01, "per_device_train_batch_size": 2}
    trained = tiny_methods.fit(tiny, folder, Full, params, regularize={"half": {"rounds": rounds}})
    before, after = (load_file(path / "model.safetensors") for path in (tiny, trained.folder / "model"))
    return {name for name in before if not before[name].equal(after[name])}, before


@pytest.mark.e2e
def test_half_of_the_matrices_of_the_layers_move_and_the_others_stay_bit_for_bit(tiny, tmp_path):
    names, weights = train_in_rounds(tiny, tmp_path, 1)
    layers = select_names(weights, ".layers.")
    assert len(select_names(names, ".layers.")) == len(layers) / 2
    assert names >= set(weights) - layers
