"""LLM.int8 is what bitsandbytes computes, and a base of its own for adapters that ask for it."""

from dataclasses import replace

import pytest
import tiny_experiment
import tiny_methods
from tiny_experiment import runs_of
from tiny_methods import CPU

from harness.methods import lora
from harness.models.devices import load_base
from harness.models.hf import ModelHost
from harness.models.hub import quantize, resolve
from harness.models.memory import BYTES, weights_gb
from harness.models.shapes import Shape
from harness.records import PromptText

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def source(tiny):
    return quantize(resolve(str(tiny)), "int8")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_layer_multiplies_integers_of_eight_bits(source, precision):
    """Rows of inputs and of weights are scaled to 127 and rounded, written out here (Dettmers et al. 2022)."""
    import torch

    model, _ = load_base(source, CPU._replace(precision=precision))
    plain, _ = load_base(source._replace(quantization=""), CPU._replace(precision=precision))
    layer, weight = model.model.layers[0].mlp.up_proj, plain.model.layers[0].mlp.up_proj.weight
    rows = torch.randn(7, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight.dtype)

    def round_rows(matrix):
        scale = matrix.abs().amax(1, keepdim=True) / 127
        return (matrix / scale).round(), scale

    (x, of_x), (w, of_w) = round_rows(rows.half().float()), round_rows(weight.half().float())
    expected = (x @ w.T) * of_x * of_w.T
    with torch.no_grad():
        found = model.eval() and layer(rows)
        assert found.float().allclose(expected, atol=0.02 if precision == "bf16" else 1e-2)
        assert not found.float().allclose((rows @ weight.T).float(), atol=1e-3)


def test_the_quantisation_is_part_of_the_weights_digest_and_a_byte_a_weight(tiny, source):
    plain = resolve(str(tiny))
    digests = {one.weights_digest for one in (plain, source, quantize(plain, "nf4"))}
    assert len(digests) == 3
    assert source.template_digest == plain.template_digest
    shape = Shape(1000.0, 2, 4, 8, 2, 2, 2, 50, tied=True)
    assert weights_gb(shape, "bf16", quantization="int8") == pytest.approx((800 + 200 * 2) / 1e9)
    assert weights_gb(shape, "bf16") == 1000 * BYTES["bf16"] / 1e9


def test_an_adapter_is_trained_on_it(tiny, source, tmp_path):
    one = tiny_methods.examples(slice(0, 1))[:1]
    context = replace(tiny_methods.context(tiny, tmp_path, source=source), train=one)
    made = lora.fit(context, lora.Params(r=2, max_steps=3, warmup_steps=0, learning_rate=0.02))
    host = ModelHost(source, CPU)
    written = PromptText(one[0].messages, f"{one[0].references[0]}<|im_end|>\n", is_written=True)
    (encoded,) = host.base.encode_all([written])
    before = host.base.loglikelihood([encoded[:2]])[0].logprob
    with host.use_adapter(made.folder / "adapter", made.digest) as candidate:
        assert candidate.loglikelihood([encoded[:2]])[0].logprob > before + 0.01
    assert host.base.loglikelihood([encoded[:2]])[0].logprob == before


@pytest.mark.e2e
def test_a_candidate_asks_for_it_by_a_key(tiny, tmp_path):
    params = "params: {r: 2, max_steps: 1, max_length: 200}"
    own = f"  own: {{method: lora, quantization: int8, {params}}}\n"
    plain = "  plain: {weights_of: own, serve_on: bf16}\n"
    path = tiny_experiment.write(tmp_path, tiny, f"  prompt: {{method: base}}\n{own}{plain}")
    report = tiny_experiment.run(path)
    assert {fact.state for fact in report.facts} == {"done"}
    runs = runs_of(path)
    assert runs["own"].served_digest == quantize(resolve(str(tiny)), "int8").weights_digest
    assert runs["plain"].weights_digest != runs["own"].weights_digest
    assert (report.steps["own"][0].what, report.steps["own"][0].new) == ("quantisation", "INT8 base")
