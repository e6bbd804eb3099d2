"""Adapters merged into weights of 16 bits are candidates of their own, and how far they are apart is printed."""

import pytest
import tiny_experiment
import tiny_methods

from harness.errors import CandidateFailed
from harness.methods import lora
from harness.models.hardware import Machine
from harness.models.hf import ModelHost
from harness.models.hub import resolve

pytestmark = pytest.mark.usefixtures("own_cache")

BF16 = Machine("cpu", "CPU", "bf16", 1.0)
PAIRS = [((5, 6, 7, 8), (9, 10)), ((5, 6, 7, 8), (11, 12, 13)), ((5, 6), (7,))]
CANDIDATES = """\
  lora: {method: lora, params: {r: 2, num_train_epochs: 4, learning_rate: 0.02, max_length: 200}}
  served: {weights_of: lora, serve_merged: true}
"""


@pytest.fixture(scope="module")
def adapter(tiny, tmp_path_factory, own_cache):
    """Train an adapter that moves the base; it is saved in fp32."""
    context = tiny_methods.context(tiny, tmp_path_factory.mktemp("made"))
    return lora.fit(context, lora.Params(r=4, max_steps=20, learning_rate=1e-2)).folder / "adapter"


def peft_merged(tiny, adapter):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    return PeftModel.from_pretrained(base, adapter).merge_and_unload().eval()


def test_merged_weights_in_16_bits_are_those_that_peft_exports(tiny, adapter):
    import torch

    host, theirs = ModelHost(resolve(str(tiny)), BF16), peft_merged(tiny, adapter)
    wanted = {name: layer.weight for name, layer in theirs.named_modules() if type(layer) is torch.nn.Linear}
    with host.use_adapter(adapter, "served", merged=True) as candidate:
        layers = candidate.model.get_base_model().named_modules()
        own = {name: layer.weight for name, layer in layers if type(layer) is torch.nn.Linear}
        assert own.keys() == wanted.keys()
        assert all(torch.equal(own[name], wanted[name]) for name in own)
        assert {weight.dtype for weight in own.values()} == {torch.bfloat16}


def test_merged_and_apart_differ_in_16_bits_alone_and_leave_the_base_as_it_was(tiny, adapter):
    gaps = {}
    for precision in ("fp32", "bf16"):
        host = ModelHost(resolve(str(tiny)), BF16._replace(precision=precision))
        before, found = host.base.loglikelihood(PAIRS), []
        for merged in (False, True):
            with host.use_adapter(adapter, f"{merged}", merged=merged) as candidate:
                found.append([one.logprob for one in candidate.loglikelihood(PAIRS)])
        assert host.base.loglikelihood(PAIRS) == before
        gaps[precision] = max(abs(a - b) for a, b in zip(*found, strict=True))
    assert gaps["fp32"] < 1e-4 < gaps["bf16"] < 0.5


@pytest.mark.e2e
def test_a_comparison_measures_both_and_prints_by_how_much_they_differ(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, CANDIDATES)
    path.write_text(path.read_text().replace("precision: fp32", "precision: bf16"))
    report = tiny_experiment.run(path)
    assert {fact.state for fact in report.facts} == {"done"}
    runs = tiny_experiment.runs_of(path)
    assert runs["served"].weights_digest != runs["lora"].weights_digest
    assert runs["served"].rows.keys() == runs["lora"].rows.keys()
    (note,) = [note for note in report.notes if note.startswith("served: merged in bf16, ")]
    assert " answers differ from lora's, log p of " in note
    assert float(note.split(" by up to ")[1].removesuffix(" nats")) > 0


@pytest.mark.e2e
def test_in_fp32_it_is_the_adapter_itself_and_says_so(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, CANDIDATES.replace("num_train_epochs: 4", "max_steps: 1"))
    report = tiny_experiment.run(path)
    runs = tiny_experiment.runs_of(path)
    assert runs["served"].rows == runs["lora"].rows
    assert "served: serve_merged changes nothing in fp32, where each adapter answers merged" in report.notes


def test_an_adapter_that_cannot_be_merged_is_refused_when_it_is_opened(tiny, tmp_path):
    made = lora.fit(tiny_methods.context(tiny, tmp_path), lora.Params(r=2, max_steps=1, use_dora=True))
    host = ModelHost(resolve(str(tiny)), BF16)
    before = host.base.loglikelihood(PAIRS)
    refused = pytest.raises(CandidateFailed, match="more than low-rank updates of unquantised linear layers")
    with refused, host.use_adapter(made.folder / "adapter", "served", merged=True):
        pass
    assert host.base.loglikelihood(PAIRS) == before
