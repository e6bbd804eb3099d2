"""The scan finds known spikes above the noise, and what it chooses is all that is trained and saved."""

import json

import numpy as np
import pytest
import tiny_experiment
import tiny_methods
from tiny_experiment import runs_of
from tiny_methods import CPU
from tiny_model import logits

from harness import report as reporting
from harness.methods import spectrum
from harness.methods import spectrum as signal_to_noise
from harness.methods.spectrum import noise_bound, scan_model, sum_up_scan, top_share
from harness.models.deltas import WEIGHTS, apply_delta
from harness.models.devices import load_base
from harness.models.hf import HFCandidate, ModelHost
from harness.models.hub import resolve
from harness.models.weight_files import tensors_of
from harness.report.wording import figure_text

pytestmark = pytest.mark.usefixtures("own_cache")

ASKED = [{"role": "user", "content": "Where is my parcel?"}]
QUICK = {"learning_rate": 0.02, "num_train_epochs": 2, "per_device_train_batch_size": 1, "warmup_steps": 0}


def values_of(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


def make_noisy_matrix(shape, scale, spikes, seed=0):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(shape[0], len(spikes))))[0]
    right = np.linalg.qr(rng.normal(size=(shape[1], len(spikes))))[0]
    return rng.normal(scale=scale, size=shape) + left * np.array(spikes) @ right.T


@pytest.mark.parametrize("shape", [(400, 400), (200, 600), (600, 200), (120, 130)])
@pytest.mark.parametrize("scale", [0.02, 3.0])
def test_what_is_above_the_bound_are_the_spikes_that_were_put_in(shape, scale):
    edge = scale * (np.sqrt(shape[0]) + np.sqrt(shape[1]))  # where noise of this scale ends
    values = values_of(make_noisy_matrix(shape, scale, [2 * edge, 3 * edge, 5 * edge]))
    bound = noise_bound(values, shape)
    assert bound == pytest.approx(edge, rel=0.06)
    assert (values > 1.06 * bound).sum() == 3


def test_the_interquartile_range_is_that_of_the_law():
    """Of a square matrix it is that of a quarter circle of radius 2, whose distribution is known in closed form."""
    from scipy.optimize import brentq

    def integrate_density(x):
        return (x * np.sqrt(4 - x * x) / 2 + 2 * np.arcsin(x / 2)) / np.pi

    quartiles = [brentq(lambda x, q=q: integrate_density(x) - q, 0, 2) for q in (0.25, 0.75)]
    assert signal_to_noise._interquartile_range(1.0) == pytest.approx(quartiles[1] - quartiles[0], abs=1e-3)
    drawn = values_of(np.random.default_rng(1).normal(size=(300, 1200)) / np.sqrt(1200))
    low, high = np.quantile(drawn, (0.25, 0.75))
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


@pytest.mark.parametrize(("share", "n"), [(0.01, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_of_each_type_the_share_with_the_largest_ratios_is_chosen(share, n):
    ratios = {
        f"layers.{i}.{kind}": ratio * (1 + i) for kind, ratio in (("q", 1.0), ("k", 9.0)) for i in range(4)
    }
    chosen = top_share(ratios, share)
    assert chosen == sorted(f"layers.{i}.{kind}" for kind in "qk" for i in range(4 - n, 4))
    of = {one.type: one for one in sum_up_scan(ratios, chosen)}["q"]
    assert (of.n, of.n_trained, of.least_trained) == (4, n, 5.0 - n)
    assert of.most_frozen == (4.0 - n or None)


def train(tiny, folder, precision="fp32", **given):
    kept = []
    machine = CPU._replace(precision=precision)
    context = tiny_methods.context(tiny, folder, machine=machine, prepare=kept.append)
    return spectrum.fit(context, spectrum.Params(**{**QUICK, "share": 0.5, **given})), kept[0]


def test_what_was_chosen_is_all_that_is_trained_and_saved(tiny, tmp_path):
    made, trained = train(tiny, tmp_path)
    plain, _ = load_base(resolve(str(tiny)), CPU)
    chosen = top_share(scan_model(plain, resolve(str(tiny)).weights_digest), 0.5)
    theirs = trained.state_dict()
    moved = {name for name, tensor in plain.state_dict().items() if not tensor.equal(theirs[name])}
    assert moved == {f"{name}.weight" for name in chosen}
    assert set(tensors_of(made.folder / "delta" / WEIGHTS)) == set(chosen)
    assert len(chosen) == 7  # of two layers one of each type
    assert made.training.n_trainable == sum(theirs[name].numel() for name in moved)
    assert sum(one.n_trained for one in made.training.scan) == 7


@pytest.mark.e2e
def test_it_gives_the_logits_that_it_had_in_memory_and_leaves_the_base_as_it_was(tiny, tmp_path):
    made, trained = train(tiny, tmp_path)
    host = ModelHost(resolve(str(tiny)), CPU)
    ids = host.base.encode(ASKED).context
    plain, before = logits(host.model, ids), {n: t.clone() for n, t in host.model.state_dict().items()}
    pairs = [(ids[:3], ids[3:9]), (ids[:3], ids[5:7]), (ids[1:6], ids[6:8])]
    with apply_delta(host.model, made.folder / "delta"):
        assert logits(host.model, ids).allclose(logits(trained, ids), atol=1e-5)
        packed = HFCandidate(host.model, host.tokenizer, made.digest, "packed").loglikelihood(pairs)
        alone = HFCandidate(host.model, host.tokenizer, made.digest, "plain").loglikelihood(pairs)
    assert [one.logprob for one in packed] == pytest.approx([one.logprob for one in alone], abs=1e-4)
    assert logits(host.model, ids).equal(plain)
    assert not logits(trained, ids).allclose(plain, atol=1e-3)
    assert all(before[name].equal(tensor) for name, tensor in host.model.state_dict().items())


@pytest.mark.e2e
def test_in_bf16_packed_layers_are_replaced_and_put_back(tiny, tmp_path):
    made, _ = train(tiny, tmp_path, "bf16")
    host = ModelHost(resolve(str(tiny)), CPU._replace(precision="bf16"))
    ids = host.base.encode(ASKED).context
    plain = logits(host.model, ids)
    with apply_delta(host.model, made.folder / "delta"):
        assert not logits(host.model, ids).equal(plain)
    assert logits(host.model, ids).equal(plain)


def test_the_scan_is_kept_and_not_made_again(tiny, tmp_path):
    made, _ = train(tiny, tmp_path, max_steps=1)
    kept = json.loads((made.folder / spectrum.SCAN).read_text())
    model, _ = load_base(resolve(str(tiny)), CPU)
    model.model.layers[0].mlp.up_proj.weight.data *= 2
    model.model.layers[0].mlp.up_proj.weight.data[0] += 100
    assert scan_model(model, resolve(str(tiny)).weights_digest) == kept
    assert scan_model(model, "of another base") != kept


@pytest.mark.e2e
def test_it_is_a_candidate_whose_scan_the_report_prints_with_share_and_size(tiny, tmp_path):
    own = "{method: spectrum, params: {share: 0.5, max_steps: 2, learning_rate: 0.01}}"
    full = "{method: full, params: {max_steps: 1}}"
    candidates = f"  prompt: {{method: base}}\n  own: {own}\n  full: {full}\n"
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    told = reporting.markdown(reporting.experiment_document(tiny_experiment.run(path)))
    training = runs_of(path)["own"].training
    assert "Signal-to-noise of the base's matrices: own" in told
    assert "self_attn.q_proj" in told
    assert training.scan[0].n == 2
    assert runs_of(path)["full"].training.trainable_share == 1.0
    assert training.trainable_share == training.n_trainable / runs_of(path)["full"].training.n_trainable
    assert training.base_size_bytes == (tiny / "model.safetensors").stat().st_size
    assert 0.9 * 4 * training.n_trainable < training.size_bytes < training.base_size_bytes
    for name in ("trainable_share", "size_bytes", "base_size_bytes"):
        assert figure_text(name, getattr(training, name)) in told
