"""Regularisers that change how gradients are made and what is seen or trained do what their papers define."""

from collections import defaultdict
from functools import partial
from types import SimpleNamespace

import pytest
import tiny_methods
from safetensors.torch import load_file

from harness import regularizers
from harness.methods import dpo, full, lora
from harness.regularizers import dropout, half, sam
from harness.training.sft import whole_loss_trainer
from harness.training.trainer import add_regularizers

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def bowl():
    """A module whose loss is half of w A w, and the backward pass of it with the points it was taken at."""
    import torch

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
    loss = sam.step(model, backward, sam.Params(rho=0.3))
    uphill = start + 0.3 * (a @ start) / (a @ start).norm()
    assert loss.item() == pytest.approx((start @ a @ start / 2).item())
    assert points[0].equal(start)
    assert points[1].allclose(uphill)
    assert (points[1] - start).norm().item() == pytest.approx(0.3, rel=1e-4)
    assert model.weight.grad[0].allclose(a @ uphill)
    assert model.weight.detach()[0].equal(start)


def test_sam_adds_to_the_gradients_of_earlier_batches_of_a_step(bowl):
    import torch

    model, _, backward, _ = bowl
    sam.step(model, backward, sam.Params())
    once = model.weight.grad.clone()
    sam.step(model, backward, sam.Params())
    assert model.weight.grad.allclose(2 * once)
    assert torch.isfinite(once).all()


def test_sam_leaves_what_is_not_trained_alone(tiny, tmp_path):
    from safetensors.torch import load_file

    prepare = partial(regularizers.prepare, {"freeze": {"first": 1}})
    context = tiny_methods.context(tiny, tmp_path, regularize={"sam": {"rho": 1.0}}, prepare=prepare)
    made = full.fit(context, full.Params(max_steps=2, learning_rate=0.01))
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny, made.folder / "model"))
    still = [name for name in before if "layers.0." in name or "embed" in name]
    assert all(before[name].equal(after[name]) for name in still)
    assert not before["model.norm.weight"].equal(after["model.norm.weight"])


def compute_smoothed_loss(tiny, factor, training):
    import torch
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM
    from transformers.trainer_pt_utils import LabelSmoother

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).train(training)
    labels = torch.tensor([[-100, -100, 11, 40, 41], [-100, 8, 60, 61, -100]])
    inputs = {"input_ids": labels.clamp(min=5), "attention_mask": torch.ones_like(labels), "labels": labels}
    logged = {"train": defaultdict(list), "eval": defaultdict(list)}
    args = SimpleNamespace(label_smoothing_factor=factor)
    trainer = SimpleNamespace(args=args, _metrics=logged, accelerator=Accelerator(cpu=True))
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


@pytest.fixture
def noise_of():
    """Watch every model; gives the largest noise of each pass as a share of its bound, by whether it is of a step.

    That is what the first layer gets, less what the embedding gave, which is made before the noise.
    """
    import torch
    from torch.nn.modules import module as torch_modules

    made, seen = [], []

    def record_output(module, given, output):
        if isinstance(module, torch.nn.Embedding):
            made.append(output.detach().clone())

    def record_input(module, given):
        if getattr(getattr(module, "self_attn", None), "layer_idx", None) == 0:
            seen.append((torch.is_grad_enabled(), given[0].detach().clone()))

    handles = [
        torch_modules.register_module_forward_hook(record_output),
        torch_modules.register_module_forward_pre_hook(record_input),
    ]

    def noise(alpha):
        shares = {True: [], False: []}
        for clean, (of_a_step, noisy) in zip(made, seen, strict=True):
            bound = alpha / (clean.shape[1] * clean.shape[2]) ** 0.5
            shares[of_a_step].append((noisy - clean).abs().max().item() / bound)
        return shares

    yield noise
    for handle in handles:
        handle.remove()


def test_neftune_adds_bounded_noise_to_the_embeddings_in_training_alone(tiny, tmp_path, noise_of):
    context = tiny_methods.context(tiny, tmp_path, regularize={"neftune": {"noise_alpha": 7.0}})
    lora.fit(context, lora.Params(r=2, num_train_epochs=1, per_device_train_batch_size=4))
    noise = noise_of(7.0)
    assert len(noise[True]) == 3
    assert all(0.9 < share <= 1.001 for share in noise[True])
    assert noise[False]
    assert max(noise[False]) == 0


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_neftune_of_preferences_is_in_the_steps_and_neither_in_reference_nor_held_out_pairs(
    tiny, tmp_path, monkeypatch, noise_of, loss_type
):
    """The one loss is ours on a CPU, the other TRL's own; both read the reference before the first step."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))  # which knows no reference yet
    context = tiny_methods.context(tiny, tmp_path / "fit", regularize={"neftune": {"noise_alpha": 7.0}})
    params = dpo.Params(r=2, max_steps=3, per_device_train_batch_size=2, loss_type=loss_type, heldout=0.25)
    made = dpo.fit(context, params)
    noise = noise_of(7.0)
    assert len(noise[True]) == 3
    assert all(0.9 < share <= 1.001 for share in noise[True])
    assert made.training.validation_loss
    assert len(noise[False]) > len(made.training.validation_loss)  # and those of the reference
    assert max(noise[False]) == 0


def test_dropout_zeroes_its_share_of_attention_and_mlp_outputs_in_training_alone(tiny):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    ids = torch.arange(5, 105)[None]
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        names = set(model.state_dict())
        dropout.prepare(model, dropout.Params(rate=0.25))
        seen = []
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                part.register_forward_hook(
                    lambda module, given, output: seen.append(
                        output[0] if isinstance(output, tuple) else output
                    )
                )
        assert model(input_ids=ids).logits.equal(plain)
        evaluated, seen[:] = list(seen), []
        torch.manual_seed(0)
        model.train()(input_ids=ids)
    assert len(seen) == 4
    shares = [(output == 0).float().mean().item() for output in seen]
    assert shares == pytest.approx([0.25] * 4, abs=0.03)
    assert all((output != 0).all() for output in evaluated)
    kept = seen[0] != 0  # of the first part, whose input is the same in training
    assert seen[0][kept].allclose(evaluated[0][kept] / 0.75, atol=1e-5)
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


def select_names(names, part):
    return {name for name in names if part in name}


@pytest.mark.parametrize("seed", range(3))
def test_half_chooses_half_of_each_kind_in_each_layer_and_all_that_is_outside(seed):
    outside = ["model.embed_tokens.weight", "model.norm.weight"]
    chosen = set(half.select([*outside, *NAMES], 0.0, half.Params(), seed))
    assert set(outside) <= chosen
    for layer in range(30):
        own = select_names(chosen, f".{layer}.")
        assert len(select_names(own, "self_attn")) == 2
        assert len(select_names(own, "mlp")) == 1 + layer % 2
        assert len(select_names(own, "layernorm")) == 1
    assert len(chosen) - 2 == len(NAMES) / 2


def train_in_rounds(tiny, folder, rounds):
    context = tiny_methods.context(tiny, folder, regularize={"half": {"rounds": rounds}})
    made = full.fit(
        context, full.Params(num_train_epochs=4, learning_rate=0.01, per_device_train_batch_size=2)
    )
    before, after = (load_file(path / "model.safetensors") for path in (tiny, made.folder / "model"))
    return {name for name in before if not before[name].equal(after[name])}, before


@pytest.mark.e2e
def test_half_of_the_matrices_of_the_layers_move_and_the_others_stay_bit_for_bit(tiny, tmp_path):
    names, weights = train_in_rounds(tiny, tmp_path, 1)
    layers = select_names(weights, ".layers.")
    assert len(select_names(names, ".layers.")) == len(layers) / 2
    assert names >= set(weights) - layers


@pytest.mark.e2e
def test_a_penalty_beside_half_is_on_what_a_round_trains(tiny, tmp_path):
    given = {"half": {}, "l2_sp": {"strength": 1e4}}
    context = tiny_methods.context(tiny, tmp_path / "held", regularize=given)
    made = full.fit(context, full.Params(num_train_epochs=4, learning_rate=0.01))
    free, before = train_in_rounds(tiny, tmp_path / "free", 1)
    held = load_file(made.folder / "model" / "model.safetensors")
    loose = load_file(tmp_path / "free" / "model" / "model.safetensors")

    def distance(after):
        return sum(float((after[name].float() - before[name].float()).norm()) for name in free)

    assert distance(held) < 0.8 * distance(loose)


def test_each_batch_of_a_step_has_noise_of_its_own(tiny, tmp_path):
    import torch

    drawn = []

    class Trainer:
        state, args = SimpleNamespace(global_step=0), SimpleNamespace(process_index=0)

        def training_step(self, model):
            drawn.append(torch.rand(3).tolist())

    context = tiny_methods.context(tiny, tmp_path, regularize={"neftune": {}})
    trainer = add_regularizers(Trainer, context, None, 64)()
    before = torch.get_rng_state()
    for trainer.state.global_step in (0, 0, 1):
        trainer.training_step(None)
    assert len({tuple(numbers) for numbers in drawn}) == 3
    assert torch.get_rng_state().equal(before)
