"""NF4 on a CPU is what bitsandbytes computes, and is trained on and served under a digest of its own."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_experiment
import tiny_methods
from tiny_methods import CPU

from harness.methods import qlora
from harness.models.devices import load_base
from harness.models.hardware import dtype
from harness.models.hf import ModelHost
from harness.models.hub import quantize, resolve
from harness.records import PromptText

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def source(tiny):
    return quantize(resolve(str(tiny)), "nf4")


def load_by_bitsandbytes(source, precision):
    """Load the model with bitsandbytes' own layers, left in training mode, where it never repacks."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype(precision),
    )
    return AutoModelForCausalLM.from_pretrained(
        source.path, dtype=dtype(precision), quantization_config=config, device_map={"": "cpu"}
    ).train()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_quantised_base_computes_what_bitsandbytes_does(source, precision):
    import torch

    ids = torch.arange(5, 25)[None]
    theirs = load_by_bitsandbytes(source, precision)
    ours, _ = load_base(source, CPU._replace(precision=precision))
    plain, _ = load_base(source._replace(quantization=""), CPU._replace(precision=precision))
    with torch.no_grad():
        expected = theirs(ids).logits
        for _ in range(2):  # bitsandbytes' own layers change at the first evaluation
            assert torch.equal(ours.eval()(ids).logits, expected)
        assert not torch.allclose(plain(ids).logits, expected, atol=1e-2)


def test_gradients_pass_through_it_after_an_evaluation_as_before(source):
    import torch

    ids = torch.arange(5, 25)[None]
    grads = []
    for model in (load_by_bitsandbytes(source, "fp32"), load_base(source, CPU)[0]):
        embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
        if not grads:
            model.train()
        else:
            with torch.no_grad():
                model.eval()(inputs_embeds=embeddings)
        model(inputs_embeds=embeddings).logits.logsumexp(-1).sum().backward()
        grads.append(embeddings.grad)
    assert torch.allclose(*grads, atol=1e-5)


def test_quantisation_is_part_of_the_weights_digest_alone(tiny, source):
    plain = resolve(str(tiny))
    assert source.weights_digest != plain.weights_digest
    assert (source.template_digest, source.path) == (plain.template_digest, plain.path)
    assert quantize(plain, "") == plain


@pytest.mark.e2e
def test_qlora_is_trained_on_the_quantised_base(tiny, source, tmp_path):
    one = tiny_methods.examples(slice(0, 1))[:1]
    context = replace(tiny_methods.context(tiny, tmp_path, source=source), train=one)
    made = qlora.fit(context, qlora.Params(r=2, max_steps=1, warmup_steps=0))
    candidate = ModelHost(source, CPU).base
    written = PromptText(one[0].messages, f"{one[0].references[0]}<|im_end|>\n", is_written=True)
    (encoded,) = candidate.encode_all([written])
    expected = -candidate.loglikelihood([encoded[:2]])[0].logprob / len(encoded.continuation)
    assert made.training.loss[0][1] == pytest.approx(expected, abs=1e-3)


@pytest.mark.e2e
def test_without_bitsandbytes_a_qlora_is_refused_before_anything_runs(tiny, tmp_path):
    path = tiny_experiment.write(tmp_path, tiny, "  prompt: {method: base}\n  qlora: {method: qlora}\n")
    code = "import sys; sys.modules['bitsandbytes'] = None; from harness.cli import main; main()"
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, "compare", "-c", str(path)],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "candidate qlora" in done.stderr
    assert "pip install 'harness-evals[qlora]'" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.e2e
def test_penalties_are_on_what_an_adapter_adds_to_the_quantised_base(source, tmp_path):
    held = {"ewc": {"strength": 100.0}, "kl": {}, "l2_sp": {"strength": 1.0}}

    def digest(name, regularize):
        general = dict.fromkeys(regularize, tiny_methods.examples(slice(2, 4)))
        given = {"source": source, "regularize": regularize, "general": general}
        context = tiny_methods.context(None, tmp_path / name, **given)
        return qlora.fit(context, qlora.Params(r=2, max_steps=3, learning_rate=0.01, warmup_steps=0)).digest

    assert digest("held", held) != digest("free", {})
