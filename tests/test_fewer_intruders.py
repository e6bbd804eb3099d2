"""Directions that only an adapter brings are reduced as the paper defines it, and nothing else is changed."""

import json
import shutil

import pytest
import tiny_experiment
import tiny_methods
import tiny_model

from harness.errors import CandidateFailed, UserError
from harness.methods import fewer_intruders, lora
from harness.models.adapters import CONFIG, WEIGHTS

pytestmark = pytest.mark.usefixtures("own_cache")

MODULE = "model.layers.0.self_attn.q_proj"
PLACE = f"base_model.model.{MODULE}"


@pytest.fixture(scope="module")
def tuned_adapter(tiny, tmp_path_factory, own_cache):
    """Train an adapter for a few steps at a low rate, so that it has no intruders of its own."""
    context = tiny_methods.context(tiny, tmp_path_factory.mktemp("tuned"))
    params = lora.Params(r=2, lora_alpha=6, learning_rate=1e-4, max_steps=2, max_length=200)
    return lora.fit(context, params).folder / "adapter"


@pytest.fixture(scope="module")
def intruder_adapter(tuned_adapter, tmp_path_factory):
    """Put a large direction that the base does not have into one layer of the adapter."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tuned_adapter, tmp_path_factory.mktemp("intruding") / "adapter")
    tensors = load_file(folder / WEIGHTS)
    drawn = torch.Generator().manual_seed(0)
    for part in "AB":
        of = tensors[f"{PLACE}.lora_{part}.weight"]
        of[:] = torch.randn(of.shape, generator=drawn)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Make a model whose linear layers hold their weights transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder, tokenizer = tmp_path_factory.mktemp("gpt2"), tiny_model.tokenizer()
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=256)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reduce(tiny, folder, adapter, **params):
    context = tiny_methods.context(tiny, folder, init=adapter)
    return fewer_intruders.fit(context, fewer_intruders.Params(**params)).folder / "adapter"


def tensors_of(folder):
    from safetensors.torch import load_file

    return load_file(folder / WEIGHTS)


def compute_by_paper(tiny, adapter, top_k, threshold_epsilon, mitigation_lambda):
    """Return ΔW before and after, and how many intruders there are, in fp64 from the definition."""
    import torch
    from safetensors.torch import load_file

    base = load_file(tiny / "model.safetensors")[f"{MODULE}.weight"].double()
    tensors = tensors_of(adapter)
    a, b = (tensors[f"{PLACE}.lora_{part}.weight"].double() for part in "AB")
    delta = 3.0 * b @ a  # lora_alpha / r
    own = torch.linalg.svd(base)[0]
    u, s, v = torch.linalg.svd(base + delta)
    kept = base + delta
    intruders = [k for k in range(top_k) if (own.T @ u[:, k]).abs().max() < threshold_epsilon]
    for k in intruders:
        kept = kept - (1 - mitigation_lambda) * s[k] * torch.outer(u[:, k], v[k])
    u, s, v = torch.linalg.svd(kept - base)
    return delta, u[:, :2] @ torch.diag(s[:2]) @ v[:2], len(intruders)


@pytest.mark.parametrize("share", [0.75, 0.0])
def test_intruders_are_reduced_as_the_paper_defines_it(tiny, tmp_path, intruder_adapter, share):
    made = tensors_of(
        reduce(tiny, tmp_path, intruder_adapter, mitigation_lambda=share, top_k=5, threshold_epsilon=0.6)
    )
    a, b = (made[f"{PLACE}.lora_{part}.weight"].double() for part in "AB")
    before, expected, n = compute_by_paper(tiny, intruder_adapter, 5, 0.6, share)
    assert n >= 1
    assert (3.0 * b @ a).allclose(expected, atol=1e-4)
    assert not expected.allclose(before, atol=0.01)


def test_layers_without_intruders_keep_their_adapter(tiny, tmp_path, intruder_adapter):
    made, before = tensors_of(reduce(tiny, tmp_path, intruder_adapter)), tensors_of(intruder_adapter)
    assert made.keys() == before.keys()
    assert all(made[name].equal(before[name]) for name in made if not name.startswith(PLACE))
    assert not made[f"{PLACE}.lora_B.weight"].equal(before[f"{PLACE}.lora_B.weight"])


def test_an_adapter_without_intruders_stays_what_it_was(tiny, tmp_path, tuned_adapter):
    made, before = tensors_of(reduce(tiny, tmp_path, tuned_adapter)), tensors_of(tuned_adapter)
    assert all(made[name].equal(before[name]) for name in before)


@pytest.mark.parametrize(
    ("made_of", "modules"), [("gpt2", ["c_attn", "c_proj"]), ("tiny", ["embed_tokens", "o_proj"])]
)
def test_layers_that_hold_their_weights_transposed_are_reduced_alike(tiny, gpt2, tmp_path, made_of, modules):
    """Of each layer the directions of W + ΔW are those of its transpose, so one definition holds for all."""
    import torch

    base = {"gpt2": gpt2, "tiny": tiny}[made_of]
    adapter = tiny_model.adapter_on(
        base, tmp_path / "adapter", r=2, target_modules=modules, fan_in_fan_out=made_of == "gpt2"
    )
    intrude_everywhere(adapter)
    before = deltas(base, adapter)
    after = deltas(base, reduce(base, tmp_path / "to", adapter, top_k=5, mitigation_lambda=0.0))
    assert before.keys() == after.keys()
    for name, (weight, delta) in before.items():
        own = torch.linalg.svd(weight, full_matrices=False)[0]
        u, s, v = torch.linalg.svd(weight + delta, full_matrices=False)
        found = [k for k in range(5) if (own.T @ u[:, k]).abs().max() < 0.5]
        left = delta - sum(s[k] * torch.outer(u[:, k], v[k]) for k in found)
        u, s, v = torch.linalg.svd(left, full_matrices=False)
        assert found
        assert after[name][1].allclose(u[:, :2] @ torch.diag(s[:2]) @ v[:2], atol=1e-3)


def intrude_everywhere(adapter):
    """Put large directions that the base does not have into all layers of an adapter."""
    import torch
    from safetensors.torch import load_file, save_file

    drawn = torch.Generator().manual_seed(0)
    tensors = load_file(adapter / WEIGHTS)
    save_file(
        {n: 2 * torch.randn(of.shape, generator=drawn) for n, of in tensors.items()},
        adapter / WEIGHTS,
        {"format": "pt"},
    )


def deltas(base, adapter):
    """Return the weight of each adapted layer and what an adapter adds to it, in fp64."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(loaded, adapter)
    return {
        name: (
            layer.get_base_layer().weight.detach().double(),
            layer.get_delta_weight("default").detach().double(),
        )
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A")
    }


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind IA3"),
        ({"use_dora": True}, "an adapter with use_dora"),
        ({"lora_bias": True}, "an adapter with lora_bias"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "an adapter with target_parameters"),
        ({"init_lora_weights": "pissa"}, "pissa, which changed its base"),
    ],
)
def test_what_is_no_plain_lora_is_refused(tiny, tmp_path, tuned_adapter, written, said):
    folder = shutil.copytree(tuned_adapter, tmp_path / "other")
    (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **written}))
    with pytest.raises(CandidateFailed, match=said):
        reduce(tiny, tmp_path / "to", folder)


LORA = "{method: lora, params: {r: 2, num_train_epochs: 1, learning_rate: 0.01, max_length: 200}}"


def test_it_is_a_candidate_that_is_compared_with_the_adapter_it_comes_from(tiny, tmp_path):
    own = "{method: fewer_intruders, init_from: lora}"
    candidates = f"  prompt: {{method: base}}\n  lora: {LORA}\n  own: {own}\n"
    report = tiny_experiment.run(tiny_experiment.write(tmp_path, tiny, candidates))
    assert {fact.state for fact in report.facts} == {"done"}
    assert [step.what for step in report.steps["own"]] == ["a change of the adapter"]


def test_a_comparison_says_that_an_adapter_without_intruders_is_unchanged(tiny, tmp_path):
    gentle = LORA.replace("num_train_epochs: 1, learning_rate: 0.01", "max_steps: 1, learning_rate: 1.0e-4")
    candidates = f"  lora: {gentle}\n  own: {{method: fewer_intruders, init_from: lora}}\n"
    report = tiny_experiment.run(tiny_experiment.write(tmp_path, tiny, candidates))
    said = "own: fewer_intruders found nothing to change, so its weights are those of lora"
    assert said in report.notes


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("{method: fewer_intruders}", "fewer_intruders without init_from"),
        ("{method: fewer_intruders, init_from: lora, params: {mitigation_lambda: 1}}", "mitigation_lambda"),
        ("{method: fewer_intruders, init_from: lora, params: {top_k: 0}}", "top_k"),
        ("{method: fewer_intruders, init_from: full}", "full, which makes a whole model"),
    ],
)
def test_what_reduces_nothing_is_refused(tiny, tmp_path, own, said):
    candidates = f"  prompt: {{method: base}}\n  lora: {LORA}\n  full: {{method: full}}\n  own: {own}\n"
    with pytest.raises(UserError, match=said):
        tiny_experiment.run(tiny_experiment.write(tmp_path, tiny, candidates))
