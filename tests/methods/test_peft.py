"""Adapters of PEFT and layers that spectrum chooses: trained, reopened, scored as by PEFT, removed again."""

import json
import re

import numpy as np
import pytest
import tiny_experiment
import tiny_methods
from tiny_experiment import runs_of
from tiny_methods import CPU, Interrupted, host_of, stop_at
from tiny_model import ASKED, logits, unchanged

from harness import report as reporting
from harness.errors import CandidateFailed
from harness.methods import spectrum
from harness.methods import spectrum as signal_to_noise
from harness.methods.spectrum import noise_bound, scan_model, sum_up_scan, top_share
from harness.methods.supervised import Peft
from harness.models.against_base import adapter_problems
from harness.models.deltas import WEIGHTS, apply_delta
from harness.models.devices import load_base
from harness.models.hf import HFCandidate
from harness.models.hub import resolve
from harness.models.weight_files import tensors_of
from harness.records import Limits
from harness.report.wording import figure_text
from harness.training import CHECKPOINTS
from harness.training.tokenized import tokenize

pytestmark = pytest.mark.usefixtures("own_cache")


FAMILIES = {
    "PREFIX_TUNING": {"num_virtual_tokens": 4}, "PROMPT_TUNING": {"num_virtual_tokens": 4},
    "P_TUNING": {"num_virtual_tokens": 4, "encoder_hidden_size": 8},
    "patterns of scales": {"peft_type": "LORA", "r": 2, "alpha_pattern": {".*_proj": 2, "q_proj": 64}},
    "prefix projection": {
        "peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "prefix_projection": True,
        "encoder_hidden_size": 8,
    },
    "IA3": {}, "ADALORA": {"init_r": 6, "target_r": 2}, "OFT": {"oft_block_size": 4}, "OSF": {},
    "DoRA": {"peft_type": "LORA", "r": 2, "use_dora": True},
    "PiSSA": {"peft_type": "LORA", "r": 2, "init_lora_weights": "pissa"},
    "OLoRA": {"peft_type": "LORA", "r": 2, "init_lora_weights": "olora"},
    "EVA": {"peft_type": "LORA", "r": 2, "init_lora_weights": "eva"},
    "biases": {"peft_type": "LORA", "r": 2, "lora_bias": True},
    "whole modules": {"peft_type": "LORA", "r": 2, "modules_to_save": ["lm_head", "norm"]},
    "repeated layers": {"peft_type": "LORA", "r": 2, "layer_replication": [[0, 2], [1, 2]]},
    "KaSA": {"peft_type": "LORA", "r": 2, "kasa_config": {}},
}  # fmt: skip
CLOSE = (
    1e-5  # of the largest logit: a pass in fp32 is some 5e-6 to 1.4e-5 off one in float64, at logits up to 8
)
SOFT = [name for name in FAMILIES if "num_virtual_tokens" in FAMILIES[name]]
QUICK = {"learning_rate": 0.02, "num_train_epochs": 2, "per_device_train_batch_size": 1, "warmup_steps": 0}


def train(tiny, folder, name, **changes):
    prepared = []
    params = {"peft_type": name, **FAMILIES.get(name, {}), **QUICK, **changes}
    context = tiny_methods.context(tiny, folder, prepare=prepared.append)
    return Peft.METHOD.fit(context, Peft.Params(**params)), prepared[0]


# One family of each kind runs in CI: a soft prompt, scales, rotations, a start from the base, whole modules.
USUAL = ("PREFIX_TUNING", "IA3", "OFT", "PiSSA", "whole modules")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.e2e if name in USUAL else pytest.mark.weekly) for name in FAMILIES],
)
def test_an_adapter_that_is_opened_again_gives_the_logits_that_it_had_in_memory(tiny, tmp_path, name):
    weights, trained = train(tiny, tmp_path, name)
    host = host_of(tiny)
    ids = host.base.encode(ASKED).context
    with (
        unchanged(host.model, ids) as plain,
        host.use_adapter(weights.folder / "adapter", weights.digest) as opened,
    ):
        pairs = [(ids[:3], ids[3:7]), (ids[:5], ids[5:12]), (ids[:3], ids[8:9])]
        together, alone = opened.loglikelihood(pairs), [opened.loglikelihood([pair])[0] for pair in pairs]
        if name not in SOFT:
            expected = logits(trained, ids)
            tolerance = CLOSE * expected.abs().max().item()
            assert logits(opened.model, ids).allclose(expected, rtol=0, atol=tolerance)
            assert not logits(opened.model, ids).allclose(plain, atol=1e-4)
    assert [s.logprob for s in together] == pytest.approx([s.logprob for s in alone], abs=1e-4)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["PREFIX_TUNING"])
def test_a_soft_prompt_scores_and_answers_in_packed_rows_as_by_peft_alone(tiny, tmp_path, name):
    import torch
    from peft import PeftModel

    weights, _ = train(tiny, tmp_path, name)
    host, theirs = host_of(tiny), host_of(tiny)
    alone = PeftModel.from_pretrained(theirs.model, weights.folder / "adapter").eval()
    ids = host.base.encode(ASKED).context
    pairs = [(ids[:3], ids[3:9]), (ids[:3], ids[5:7]), (ids[1:6], ids[6:8]), (ids[:1], ids[4:5])]
    with host.use_adapter(weights.folder / "adapter", weights.digest) as opened:
        packed = [s.logprob for s in opened.loglikelihood(pairs)]
        answered = opened.generate([ids, ids[:4], ids[2:9]], Limits(6, ()))
    expected = []
    for context, continuation in pairs:
        with torch.no_grad():
            logprobs = alone(torch.tensor([[*context, *continuation]])).logits[0].log_softmax(-1)
        logprobs = logprobs[-len(continuation) - 1 : -1]
        expected.append(sum(logprobs[i, token].item() for i, token in enumerate(continuation)))
    assert packed == pytest.approx(expected, abs=1e-4)
    assert packed != pytest.approx([s.logprob for s in host.base.loglikelihood(pairs)], abs=1e-3)
    new = alone.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=6, do_sample=False,
    )  # fmt: skip
    expected_text = host.tokenizer.decode(new[0][-6:], skip_special_tokens=True)
    assert answered[0].text == expected_text
    assert answered[0].n_prompt_tokens == len(ids) + 4


@pytest.mark.parametrize("name", ["PREFIX_TUNING", "P_TUNING"])
def test_a_soft_prompt_that_is_opened_again_has_the_validation_loss_that_was_measured(tiny, tmp_path, name):
    weights, _ = train(tiny, tmp_path, name, num_train_epochs=3, per_device_train_batch_size=4)
    host, validation = host_of(tiny), tiny_methods.context(tiny, tmp_path).validation
    answers = [e.references[:1] for e in validation]
    tokens = tokenize(validation, answers, True, host.tokenizer, host.source)
    rows = [(tuple(ids[:n]), tuple(ids[n:])) for n, (ids,) in tokens]
    with host.use_adapter(weights.folder / "adapter", weights.digest) as opened:
        total = -sum(s.logprob for s in opened.loglikelihood(rows))
    losses = [loss for _, loss in weights.training.validation_loss]
    expected = losses[-1] if name == "P_TUNING" else min(losses)
    assert total / sum(len(answer) for _, answer in rows) == pytest.approx(expected, rel=1e-4)


@pytest.mark.e2e
def test_the_ranks_of_adalora_fall_to_the_target(tiny, tmp_path):
    fit, _ = train(tiny, tmp_path, "ADALORA", num_train_epochs=10)
    flags_of = json.loads((fit.folder / "adapter" / "adapter_config.json").read_text())["rank_pattern"]
    ranks = [sum(flags) for flags in flags_of.values()]
    assert sum(ranks) / len(ranks) == pytest.approx(2, abs=0.01)
    assert max(ranks) > min(ranks)


@pytest.mark.e2e
def test_an_adalora_training_that_was_stopped_gives_the_weights_of_one_that_was_not(tiny, tmp_path):
    params = {"peft_type": "ADALORA", **FAMILIES["ADALORA"], **QUICK, "max_steps": 9}
    whole = tiny_methods.fit(tiny, tmp_path / "whole", Peft, params)
    with pytest.raises(Interrupted):
        tiny_methods.fit(tiny, tmp_path / "cut", Peft, params, advance=stop_at(7))
    assert any((tmp_path / "cut" / CHECKPOINTS).glob("checkpoint-*"))
    assert tiny_methods.fit(tiny, tmp_path / "cut", Peft, params).digest == whole.digest


def test_the_penalty_of_adalora_is_the_distance_of_p_and_q_from_orthogonal():
    import torch

    from harness.training import peft_families

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_A = torch.nn.Parameter(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
            self.lora_B = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
            self.lora_E = torch.nn.Parameter(torch.ones(2, 1))
            self.peft_config = {"default": type("Config", (), {"orth_reg_weight": 0.5})}

    assert peft_families._orthogonality(Model()).item() == pytest.approx(0.5 * (3 + 0) / 2)


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["PiSSA"])
def test_what_is_converted_are_the_weights_that_were_trained_but_for_the_rounding_of_their_split(
    tiny, tmp_path, name
):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    weights, trained = train(tiny, tmp_path, name)
    ids = host_of(tiny).base.encode(ASKED).context
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    opened = PeftModel.from_pretrained(base, weights.folder / "adapter").double().eval()
    assert logits(opened, ids).allclose(logits(trained.double(), ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("start", "precision"), [("olora", "fp32")])
def test_an_adapter_from_elsewhere_that_moved_the_base_is_served_so_and_the_base_is_itself_again(
    tiny, tmp_path, start, precision
):
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=start)
    theirs = get_peft_model(host_of(tiny).model, config)
    for name, parameter in theirs.named_parameters():
        if "lora_" in name:
            parameter.data += 0.05
    theirs.save_pretrained(tmp_path)
    host = host_of(tiny, precision)
    ids = host.base.encode(ASKED).context
    with unchanged(host.model, ids), host.use_adapter(tmp_path, "theirs") as opened:
        served, theirs_logits = logits(opened.model, ids).float(), logits(theirs, ids)
        # bf16 gives nearly the same direction; without the moved base the direction is another.
        assert torch.cosine_similarity(served, theirs_logits).min() > 0.98
        if precision == "fp32":
            assert served.allclose(theirs_logits, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("whole modules", r"q_proj.lora_A.weight of size \(2, 32\), where the base and \S+ make \(3, 32\)"),
        ("SHIRA", r"cannot be put on the base \(RuntimeError: Error.* size mismatch for .*shape"),
    ],
)
def test_an_adapter_that_cannot_be_put_on_fails_with_its_whole_reason_and_leaves_the_base_as_it_was(
    tiny, tmp_path, name, said
):
    weights, _ = train(tiny, tmp_path, name, max_steps=1, r=2)
    config = weights.folder / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"r": 2', '"r": 3'))
    host = host_of(tiny)
    ids = host.base.encode(ASKED).context
    before = [sorted(vars(module)) for module in host.model.modules()]
    refused = pytest.raises(CandidateFailed, match=said)
    with unchanged(host.model, ids), refused, host.use_adapter(config.parent, weights.digest):
        pass
    assert [sorted(vars(module)) for module in host.model.modules()] == before


def add_lora(tiny, folder, **changes):
    from peft import get_peft_model

    from harness.training import peft_families

    model = get_peft_model(host_of(tiny).model, peft_families.peft_config("LORA", {"r": 2, **changes}))
    return model, peft_families.family_of(model.peft_config["default"], folder)


def test_kasa_is_penalised_for_its_singular_values_and_for_factors_that_are_not_orthogonal(tiny, tmp_path):
    import torch

    weights = {"beta": 0.5, "gamma": 0.25}
    model, family = add_lora(tiny, tmp_path, target_modules=["q_proj"], kasa_config=weights)
    expected = 0.0
    for layer in (block.self_attn.q_proj for block in model.get_base_model().model.layers):
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        far = sum(torch.linalg.matrix_norm(gram - torch.eye(2)) for gram in (a @ a.T, b.T @ b))
        expected += 0.5 * layer.lora_diag["default"].square().sum() + 0.25 * far
    assert family.penalty(model).item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_adapter_with_embeddings_of_its_own_leaves_those_of_the_base_alone(tiny, tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(host_of(tiny).model, LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        theirs.get_input_embeddings().weight += 0.5
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    host = host_of(tiny)
    ids = host.base.encode(ASKED).context
    with unchanged(host.model, ids), host.use_adapter(tmp_path, "theirs") as opened:
        assert logits(opened.model, ids).allclose(logits(theirs, ids), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("PROMPT_TUNING", {"num_virtual_tokens": 9}, r"of size \(4, 32\), where the base and \S+ make \(9, 32\)"),
        ("P_TUNING", {"token_dim": 64}, "token_dim 64, which is 32 on the base"),
    ],
)  # fmt: skip
def test_a_soft_prompt_of_another_size_is_refused(tiny, tmp_path, name, change, said):
    weights, _ = train(tiny, tmp_path, name, max_steps=1)
    config = weights.folder / "adapter" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    (problem,) = adapter_problems(config.parent, resolve(str(tiny)), "theirs")
    assert re.search(said, problem.found), problem


def values_of(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


@pytest.mark.parametrize(("shape", "scale"), [((200, 600), 0.02), ((120, 130), 3.0)])
def test_what_is_above_the_bound_are_the_spikes_that_were_put_in(shape, scale):
    edge = scale * (np.sqrt(shape[0]) + np.sqrt(shape[1]))  # where noise of this scale ends
    spikes = [2 * edge, 3 * edge, 5 * edge]
    rng = np.random.default_rng(0)
    u = np.linalg.qr(rng.normal(size=(shape[0], len(spikes))))[0]
    v = np.linalg.qr(rng.normal(size=(shape[1], len(spikes))))[0]
    values = values_of(rng.normal(scale=scale, size=shape) + u * np.array(spikes) @ v.T)
    bound = noise_bound(values, shape)
    assert bound == pytest.approx(edge, rel=0.06)
    assert (values > 1.06 * bound).sum() == 3


def test_the_interquartile_range_is_that_of_the_law():
    """For a square matrix it is that of a quarter circle of radius 2, which has a closed form."""
    from scipy.optimize import brentq

    def integrate_density(x):
        return (x * np.sqrt(4 - x * x) / 2 + 2 * np.arcsin(x / 2)) / np.pi

    quartiles = [brentq(lambda x, q=q: integrate_density(x) - q, 0, 2) for q in (0.25, 0.75)]
    assert signal_to_noise._interquartile_range(1.0) == pytest.approx(quartiles[1] - quartiles[0], abs=1e-3)
    singular_values = values_of(np.random.default_rng(1).normal(size=(300, 1200)) / np.sqrt(1200))
    low, high = np.quantile(singular_values, (0.25, 0.75))
    assert signal_to_noise._interquartile_range(0.25) == pytest.approx(high - low, rel=0.02)


def test_the_ratio_is_that_of_the_sums_over_the_largest_value_and_always_finite():
    values = np.array([8.0, 4.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    bound = noise_bound(values, (10, 10))
    assert 1.0 < bound < 4.0
    assert signal_to_noise.signal_to_noise(values, (10, 10)) == pytest.approx(12 / 5.2 / 8)
    assert signal_to_noise.signal_to_noise(np.zeros(4), (4, 4)) == 0
    only = signal_to_noise.signal_to_noise(np.ones(4), (4, 4))
    assert np.isfinite(only)
    assert only > 1e6


@pytest.mark.parametrize(("share", "n"), [(0.01, 1), (0.25, 1), (0.26, 2), (1.0, 4)])
def test_of_each_type_the_share_with_the_largest_ratios_is_chosen(share, n):
    ratios = {
        f"layers.{i}.{kind}": ratio * (1 + i) for kind, ratio in (("q", 1.0), ("k", 9.0)) for i in range(4)
    }
    chosen = top_share(ratios, share)
    assert chosen == sorted(f"layers.{i}.{kind}" for kind in "qk" for i in range(4 - n, 4))
    summary = {kind_summary.type: kind_summary for kind_summary in sum_up_scan(ratios, chosen)}["q"]
    assert (summary.n, summary.n_trained, summary.least_trained) == (4, n, 5.0 - n)
    assert summary.most_frozen == (4.0 - n or None)


def train_layers(tiny, folder, precision="fp32", **changes):
    prepared = []
    machine = CPU._replace(precision=precision)
    context = tiny_methods.context(tiny, folder, machine=machine, prepare=prepared.append)
    return spectrum.fit(context, spectrum.Params(**{**QUICK, "share": 0.5, **changes})), prepared[0]


@pytest.mark.e2e
def test_what_was_chosen_alone_is_trained_and_opened_again_gives_the_same_logits(tiny, tmp_path):
    weights, trained = train_layers(tiny, tmp_path)
    plain, _ = load_base(resolve(str(tiny)), CPU)
    chosen = top_share(scan_model(plain, resolve(str(tiny)).weights_digest), 0.5)
    theirs = trained.state_dict()
    moved = {name for name, tensor in plain.state_dict().items() if not tensor.equal(theirs[name])}
    assert moved == {f"{name}.weight" for name in chosen}
    assert set(tensors_of(weights.folder / "delta" / WEIGHTS)) == set(chosen)
    assert len(chosen) == 7  # of two layers, one matrix of each type
    assert weights.training.n_trainable == sum(theirs[name].numel() for name in moved)
    assert sum(s.n_trained for s in weights.training.scan) == 7

    host = host_of(tiny)
    ids = host.base.encode(ASKED).context
    pairs = [(ids[:3], ids[3:9]), (ids[:3], ids[5:7]), (ids[1:6], ids[6:8])]
    with unchanged(host.model, ids) as plain, apply_delta(host.model, weights.folder / "delta"):
        assert logits(host.model, ids).allclose(logits(trained, ids), atol=1e-5)
        packed = HFCandidate(host.model, host.tokenizer, weights.digest, "packed").loglikelihood(pairs)
        alone = HFCandidate(host.model, host.tokenizer, weights.digest, "plain").loglikelihood(pairs)
    assert [s.logprob for s in packed] == pytest.approx([s.logprob for s in alone], abs=1e-4)
    assert not logits(trained, ids).allclose(plain, atol=1e-3)


def test_the_scan_is_kept_and_not_made_again(tiny, tmp_path):
    weights, _ = train_layers(tiny, tmp_path, max_steps=1)
    stored_scan = json.loads((weights.folder / spectrum.SCAN).read_text())
    model, _ = load_base(resolve(str(tiny)), CPU)
    model.model.layers[0].mlp.up_proj.weight.data *= 2
    model.model.layers[0].mlp.up_proj.weight.data[0] += 100
    assert scan_model(model, resolve(str(tiny)).weights_digest) == stored_scan
    assert scan_model(model, "of another base") != stored_scan


@pytest.mark.e2e
def test_it_is_a_candidate_whose_scan_the_report_prints_with_share_and_size(tiny, tmp_path):
    recipe = "{method: spectrum, params: {share: 0.5, max_steps: 2, learning_rate: 0.01}}"
    full = "{method: full, params: {max_steps: 1}}"
    candidates = f"  prompt: {{method: base}}\n  own: {recipe}\n  full: {full}\n"
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    page = reporting.markdown(reporting.experiment_document(tiny_experiment.run(path)))
    training = runs_of(path)["own"].training
    assert "Signal-to-noise of the base's matrices: own" in page
    assert "self_attn.q_proj" in page
    assert training.scan[0].n == 2
    assert runs_of(path)["full"].training.others["trainable_share"] == 1.0
    assert (
        training.others["trainable_share"]
        == training.n_trainable / runs_of(path)["full"].training.n_trainable
    )
    assert training.others["base_size_bytes"] == (tiny / "model.safetensors").stat().st_size
    assert 0.9 * 4 * training.n_trainable < training.others["size_bytes"] < training.others["base_size_bytes"]
    for name in ("trainable_share", "size_bytes", "base_size_bytes"):
        assert figure_text(name, training.others[name]) in page
