"""Pre-packed, quantised, chunked and 16-bit layers compute as before, as transformers or bitsandbytes."""

import copy
from contextlib import nullcontext

import pytest
import tiny_experiment
import tiny_methods
from tiny_experiment import runs_of
from tiny_methods import CPU
from tiny_model import score_alone

from harness.errors import CandidateFailed
from harness.methods.supervised import Full, Lora
from harness.models.cpu_kernels import chunk_attention, multiplies_bf16, prepack
from harness.models.devices import load_base
from harness.models.hf import ModelHost
from harness.models.hub import quantize, resolve
from harness.models.memory import BYTES, weights_gb
from harness.models.shapes import Shape
from harness.models.weight_files import tensors_of
from harness.records import PromptText

pytestmark = pytest.mark.usefixtures("own_cache")

N = 300  # two whole chunks and a remainder


def layers(bias, dtype):
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(96, 130, bias=bias), torch.nn.Linear(130, 50)).to(dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n_rows", "precision"), [(1, "bf16"), (160, "bf16"), (160, "fp32")])
def test_a_product_is_the_same_to_the_last_bit_or_in_full_precision_but_for_rounding(bias, n_rows, precision):
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    plain = layers(bias, dtype)
    packed = copy.deepcopy(plain)
    prepack(packed)
    x = torch.randn(2, n_rows, 96).to(dtype)
    with torch.inference_mode():
        product, expected = packed(x), plain(x)
    if precision == "fp32":
        assert torch.allclose(product, expected, rtol=1e-5, atol=1e-6)
        return
    assert torch.equal(product, expected)
    assert ("forward" in vars(packed[0])) == multiplies_bf16()


@pytest.fixture
def small_llama():
    """A model of two layers whose six heads share two groups of keys."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 90}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, **heads, max_position_embeddings=512, attn_implementation="sdpa")
    return LlamaForCausalLM(config).eval()


def ids(n_rows, n=N):
    import torch

    return torch.arange(n_rows * n).reshape(n_rows, n) % 83 + 5


def logits(model, in_parts, **inputs):
    import torch

    with torch.inference_mode(), chunk_attention(model) if in_parts else nullcontext():
        return model(**inputs).logits


def assert_same(model, **inputs):
    import torch

    chunked, whole = (logits(model, in_parts, **inputs) for in_parts in (True, False))
    torch.testing.assert_close(chunked, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 129, N])
def test_causal_rows_of_any_length_get_the_logits_of_fused_attention(small_llama, n):
    assert_same(small_llama, input_ids=ids(2, n))


def test_rows_that_go_on_after_others_see_what_was_read(small_llama):
    import torch
    from transformers import DynamicCache

    whole = logits(small_llama, False, input_ids=ids(1))
    cache = DynamicCache(config=small_llama.config)
    logits(small_llama, True, input_ids=ids(1)[:, :130], past_key_values=cache, use_cache=True)
    rest = logits(small_llama, True, input_ids=ids(1)[:, 130:], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(rest, whole[:, 130:], rtol=1e-4, atol=1e-5)


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
        product = model.eval() and layer(rows)
        assert product.float().allclose(expected, atol=0.02 if precision == "bf16" else 1e-2)
        assert not product.float().allclose((rows @ weight.T).float(), atol=1e-3)


def test_the_quantisation_is_part_of_the_weights_digest_and_a_byte_a_weight(tiny, source):
    plain = resolve(str(tiny))
    digests = {origin.weights_digest for origin in (plain, source, quantize(plain, "nf4"))}
    assert len(digests) == 3
    assert (source.template_digest, source.path) == (plain.template_digest, plain.path)
    assert quantize(plain, "") == plain
    shape = Shape(1000.0, 2, 4, 8, 2, 2, 2, 50, tied=True)
    assert weights_gb(shape, "bf16", quantization="int8") == pytest.approx((800 + 200 * 2) / 1e9)
    assert weights_gb(shape, "bf16") == 1000 * BYTES["bf16"] / 1e9


def test_an_adapter_is_trained_on_it(tiny, source, tmp_path):
    examples = tiny_methods.examples(slice(0, 1))[:1]
    params = {"r": 2, "max_steps": 3, "warmup_steps": 0, "learning_rate": 0.02}
    weights = tiny_methods.fit(tiny, tmp_path, Lora, params, source=source, train=examples)
    host = ModelHost(source, CPU)
    written = PromptText(examples[0].messages, f"{examples[0].references[0]}<|im_end|>\n", is_written=True)
    (encoded,) = host.base.encode_all([written])
    before = host.base.loglikelihood([encoded[:2]])[0].logprob
    with host.use_adapter(weights.folder / "adapter", weights.digest) as candidate:
        assert candidate.loglikelihood([encoded[:2]])[0].logprob > before + 0.01
    assert host.base.loglikelihood([encoded[:2]])[0].logprob == before


@pytest.mark.e2e
def test_a_candidate_asks_for_it_by_a_key(tiny, tmp_path):
    params = "params: {r: 2, max_steps: 1, max_length: 200}"
    quantized = f"  own: {{method: lora, quantization: int8, {params}}}\n"
    plain = "  plain: {weights_of: own, serve_on: bf16}\n"
    path = tiny_experiment.write(tmp_path, tiny, f"  prompt: {{method: base}}\n{quantized}{plain}")
    report = tiny_experiment.run(path)
    assert {fact.state for fact in report.facts} == {"done"}
    runs = runs_of(path)
    assert runs["own"].served_digest == quantize(resolve(str(tiny)), "int8").weights_digest
    assert runs["plain"].weights_digest != runs["own"].weights_digest
    assert (report.steps["own"][0].what, report.steps["own"][0].new) == ("quantisation", "INT8 base")


FP16 = CPU._replace(precision="fp16")
PAIRS = [((5, 6, 7, 8), (9, 10)), ((5, 6, 7, 8), (11, 12, 13)), ((5, 6), (7,))]


@pytest.fixture(scope="module")
def host(tiny):
    return ModelHost(resolve(str(tiny)), FP16)


def test_packed_scores_are_those_of_transformers_alone_and_near_those_in_fp32(host, tiny):
    scores = [score.logprob for score in host.base.loglikelihood(PAIRS)]
    assert host.model.dtype.itemsize == 2
    assert host.base.engine == "transformers/packed"
    assert scores == pytest.approx([score_alone(host.model, *pair) for pair in PAIRS], abs=0.02)
    whole = ModelHost(resolve(str(tiny)), CPU)
    assert scores == pytest.approx([score.logprob for score in whole.base.loglikelihood(PAIRS)], abs=0.02)


def train_steps(tiny, folder, method, machine):
    """Train three steps; returns the losses and, for each model, the dtypes of its parameters."""
    params = {"max_steps": 3, "warmup_steps": 0, "learning_rate": 0.01} | ({} if method is Full else {"r": 2})
    kinds = []

    def prepare(model):
        kinds.append({str(parameter.dtype) for parameter in model.parameters()})

    weights = tiny_methods.fit(tiny, folder, method, params, machine=machine, prepare=prepare)
    return [loss for _, loss in weights.training.loss], kinds


def test_a_whole_model_is_held_in_fp32_served_in_fp16_and_never_bfloat16(tiny, tmp_path):
    losses, kinds = train_steps(tiny, tmp_path, Full, FP16)
    assert kinds == [{"torch.float32"}]
    assert losses[-1] < losses[0]
    saved = tensors_of(tmp_path / "model" / "model.safetensors").values()
    assert {tensor.dtype for tensor in saved} == {"F16"}
    with pytest.raises(CandidateFailed, match="dtype: bfloat16 with products in fp16"):
        tiny_methods.fit(tiny, tmp_path, Full, {"dtype": "bfloat16", "max_steps": 1}, machine=FP16)


@pytest.fixture
def scaler(monkeypatch):
    """Give accelerate on a CPU the gradient scaler that it has on a GPU; it starts much too high."""
    import torch
    import transformers.trainer

    class ScalingAccelerator(transformers.trainer.Accelerator):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**40)

    monkeypatch.setattr(transformers.trainer, "Accelerator", ScalingAccelerator)


@pytest.mark.weekly
def test_steps_whose_gradients_overflow_change_nothing_and_are_counted(tiny, tmp_path, scaler):
    params = {"warmup_steps": 0, "lr_scheduler_type": "constant", "early_stopping_patience": 99}
    params |= {"max_steps": 36, "learning_rate": 0.01}
    record = tiny_methods.fit(tiny, tmp_path, Full, params, machine=FP16).training
    skipped, losses = record.others["n_skipped_steps"], [loss for _, loss in record.loss]
    assert 20 < skipped < 28 < record.n_steps == 36  # fp16 holds numbers below 2¹⁶
    assert record.loss_scale == tuple((step, 2.0 ** (40 - min(step, skipped))) for step in range(37))
    assert min(losses[:skipped]) > max(losses[-3:])
