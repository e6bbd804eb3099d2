"""Bottleneck adapters begin as the identity, have the size of the papers, and open as what was trained."""

import pytest
import tiny_experiment
import tiny_methods
from tiny_experiment import runs_of
from tiny_methods import CPU
from tiny_model import logits

from harness.errors import CandidateFailed
from harness.evaluation.runner import OPENERS
from harness.methods import bottleneck
from harness.models import deltas
from harness.models.deltas import CONFIG, apply_delta
from harness.models.devices import load_base
from harness.models.hf import HFCandidate, ModelHost
from harness.models.hub import resolve, shape

pytestmark = pytest.mark.usefixtures("own_cache")

ASKED = [{"role": "user", "content": "Where is my parcel?"}]
QUICK = {"learning_rate": 0.02, "num_train_epochs": 2, "per_device_train_batch_size": 1, "warmup_steps": 0}
STYLES = ["houlsby", "pfeiffer"]


def train(tiny, folder, **given):
    """Train for some steps; returns the weights, and the model in memory that they were trained in."""
    kept = []
    context = tiny_methods.context(tiny, folder, prepare=kept.append)
    return bottleneck.fit(context, bottleneck.Params(**{**QUICK, **given})), kept[0]


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_new_adapter_changes_no_bit_of_what_the_base_computes(tiny, style, precision):
    model, _ = load_base(resolve(str(tiny)), CPU._replace(precision=precision))
    ids = list(range(5, 25))
    plain, form = logits(model, ids), deltas.Bottleneck(style, 4, "gelu")
    bottlenecks = deltas.new_bottlenecks(model, form)
    handles = deltas.hook(model, form, bottlenecks)
    assert logits(model, ids).equal(plain)
    bottlenecks["1_mlp"].up.bias.data += 0.5
    assert not logits(model, ids).equal(plain)
    for handle in handles:
        handle.remove()
    assert logits(model, ids).equal(plain)


@pytest.mark.e2e
@pytest.mark.parametrize("style", STYLES)
def test_an_adapter_that_is_opened_again_gives_the_logits_that_it_had_in_memory(tiny, tmp_path, style):
    made, trained = train(tiny, tmp_path, style=style, reduction_factor=4)
    host = ModelHost(resolve(str(tiny)), CPU)
    ids = host.base.encode(ASKED).context
    before, plain = state(host.model), logits(host.model, ids)
    with apply_delta(host.model, made.folder / "delta"):
        assert logits(host.model, ids).allclose(logits(trained, ids), atol=1e-5)
        assert not logits(host.model, ids).allclose(plain, atol=1e-3)
    assert logits(host.model, ids).equal(plain)
    after = host.model.state_dict()
    assert before.keys() == after.keys()
    assert all(before[key].equal(after[key]) for key in before)


@pytest.mark.e2e
@pytest.mark.parametrize("style", STYLES)
def test_packed_rows_are_scored_as_each_alone(tiny, tmp_path, style):
    made, _ = train(tiny, tmp_path, style=style)
    host = ModelHost(resolve(str(tiny)), CPU)
    ids = host.base.encode(ASKED).context
    pairs = [(ids[:3], ids[3:9]), (ids[:3], ids[5:7]), (ids[1:6], ids[6:8]), (ids[:1], ids[4:5])]
    with apply_delta(host.model, made.folder / "delta"):
        packed = HFCandidate(host.model, host.tokenizer, made.digest, "packed").loglikelihood(pairs)
        alone = HFCandidate(host.model, host.tokenizer, made.digest, "plain").loglikelihood(pairs)
    assert [one.logprob for one in packed] == pytest.approx([one.logprob for one in alone], abs=1e-4)
    base = [one.logprob for one in host.base.loglikelihood(pairs)]
    assert [one.logprob for one in packed] != pytest.approx(base, abs=1e-3)


@pytest.mark.parametrize(("style", "adapters_a_layer"), [("houlsby", 2), ("pfeiffer", 1)])
def test_the_parameters_are_those_of_the_papers(tiny, tmp_path, style, adapters_a_layer):
    made, trained = train(tiny, tmp_path, style=style, bottleneck_size=3, max_steps=1)
    d, m, n_layers = trained.config.hidden_size, 3, trained.config.num_hidden_layers
    expected = n_layers * adapters_a_layer * (2 * m * d + d + m)
    assert made.training.n_trainable == expected
    params = bottleneck.Params(style=style, bottleneck_size=3)
    assert bottleneck.adapter_parameters(shape(resolve(str(tiny))), params) == expected


@pytest.mark.parametrize(
    ("written", "size"), [({}, 36), ({"reduction_factor": 2}, 288), ({"bottleneck_size": 64}, 64)]
)
def test_the_size_is_written_or_a_share_of_the_hidden_size(written, size):
    assert bottleneck.Params(**written).size_for(576) == size


@pytest.mark.e2e
def test_only_the_adapters_are_trained_and_seed_and_form_are_part_of_the_digest(tiny, tmp_path):
    _, trained = train(tiny, tmp_path)
    plain, _ = load_base(resolve(str(tiny)), CPU)
    theirs = trained.state_dict()
    assert all(tensor.equal(theirs[name]) for name, tensor in plain.state_dict().items())
    one, again = (train(tiny, tmp_path / name, max_steps=1)[0].digest for name in "ab")
    other = train(tiny, tmp_path / "c", max_steps=1, non_linearity="tanh")[0].digest
    assert one == again != other


def test_a_delta_of_another_base_or_form_is_refused(tiny, tmp_path):
    made, trained = train(tiny, tmp_path, max_steps=1)
    config = made.folder / "delta" / CONFIG
    config.write_text(config.read_text().replace('"size": 2', '"size": 3'))
    with pytest.raises(CandidateFailed, match="of another base"), apply_delta(trained, made.folder / "delta"):
        pass
    config.write_text('{"form": "wings"}')
    with (
        pytest.raises(CandidateFailed, match="of the form 'wings'"),
        apply_delta(trained, made.folder / "delta"),
    ):
        pass


def test_a_base_without_such_layers_is_refused():
    import torch

    class OddLayer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            text = type("Text", (), {"hidden_size": 4, "num_hidden_layers": 1})
            self.config = type("Config", (), {"get_text_config": staticmethod(lambda: text)})
            self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4)])

    with pytest.raises(CandidateFailed, match="no attention or feed-forward part"):
        deltas.new_bottlenecks(OddLayer(), deltas.Bottleneck("pfeiffer", 2, "relu"))


@pytest.mark.e2e
def test_it_is_a_candidate_like_any_other(tiny, tmp_path):
    own = "{method: bottleneck, params: {style: houlsby, max_steps: 2}, sweep: {bottleneck_size: [2, 4]}}"
    path = tiny_experiment.write(tmp_path, tiny, f"  prompt: {{method: base}}\n  own: {own}\n")
    report = tiny_experiment.run(path)
    assert {fact.name: fact.state for fact in report.facts} == dict.fromkeys(("prompt", "own"), "done")
    run = runs_of(path)["own"]
    assert run.weights_digest != run.base_digest
    assert {trial.params["bottleneck_size"] for trial in run.training.sweep} == {2, 4}
    assert "delta" in OPENERS
