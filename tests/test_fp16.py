"""What a GPU without bf16 does, in fp16, as far as a CPU computes it: scores, answers, adapters and whole models.

accelerate has a gradient scaler on GPUs alone: here products are in fp16 without one, but where a test gives it torch's.
"""

import pytest
import tiny_experiment
import tiny_methods
from tiny_methods import CPU

from harness.errors import CandidateFailed
from harness.methods import dpo, full, lora
from harness.models.hf import ModelHost
from harness.models.hub import resolve
from harness.models.weight_files import tensors_of

pytestmark = pytest.mark.usefixtures("own_cache")
FP16 = CPU._replace(precision="fp16")
PAIRS = [((5, 6, 7, 8), (9, 10)), ((5, 6, 7, 8), (11, 12, 13)), ((5, 6), (7,))]


@pytest.fixture(scope="module")
def host(tiny):
    return ModelHost(resolve(str(tiny)), FP16)


def score_alone(model, context, continuation):
    """Score a continuation by transformers' forward pass over one sequence."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*context, *continuation]]), use_cache=False).logits[0].float()
    rows = torch.log_softmax(logits, -1)[len(context) - 1 : -1]
    return sum(row[token].item() for row, token in zip(rows, continuation, strict=True))


def test_packed_scores_are_those_of_transformers_alone_and_near_those_in_fp32(host, tiny):
    found = [one.logprob for one in host.base.loglikelihood(PAIRS)]
    assert host.model.dtype.itemsize == 2
    assert host.base.engine == "transformers/packed"
    assert found == pytest.approx([score_alone(host.model, *pair) for pair in PAIRS], abs=0.02)
    whole = ModelHost(resolve(str(tiny)), CPU)
    assert found == pytest.approx([one.logprob for one in whole.base.loglikelihood(PAIRS)], abs=0.02)


def train_steps(tiny, folder, method, machine):
    """Train three steps; return the losses, and the types of what is trained and of what is not."""
    rank = {} if method is full else {"r": 2}
    kinds = []

    def prepare(model):
        kinds.append({str(parameter.dtype) for parameter in model.parameters()})

    context = tiny_methods.context(tiny, folder, machine=machine, prepare=prepare)
    made = method.fit(context, method.Params(**rank, max_steps=3, warmup_steps=0, learning_rate=0.01))
    return [loss for _, loss in made.training.loss], kinds


@pytest.mark.e2e
@pytest.mark.parametrize("method", [lora, dpo])
def test_an_adapter_learns_on_a_base_in_fp16_about_as_on_one_in_fp32(tiny, tmp_path, method):
    losses, kinds = train_steps(tiny, tmp_path / "half", method, FP16)
    whole, _ = train_steps(tiny, tmp_path / "whole", method, CPU)
    assert kinds == [{"torch.float16"}] or method is dpo
    assert losses[-1] < losses[0]
    assert losses == pytest.approx(whole, abs=0.05)


def test_a_whole_model_is_held_in_fp32_served_in_fp16_and_never_bfloat16(tiny, tmp_path):
    losses, kinds = train_steps(tiny, tmp_path, full, FP16)
    assert kinds == [{"torch.float32"}]
    assert losses[-1] < losses[0]
    assert {tensor.dtype for tensor in tensors_of(tmp_path / "model" / "model.safetensors").values()} == {
        "F16"
    }
    with pytest.raises(CandidateFailed, match="dtype: bfloat16 with products in fp16"):
        full.fit(
            tiny_methods.context(tiny, tmp_path, machine=FP16), full.Params(dtype="bfloat16", max_steps=1)
        )


@pytest.mark.e2e
def test_a_comparison_in_fp16_runs_to_its_report(tiny, tmp_path):
    candidates = (
        "  prompt: {method: base}\n  lora: {method: lora, params: {r: 2, max_steps: 2, warmup_steps: 0}}\n"
    )
    path = tiny_experiment.write(tmp_path, tiny, candidates)
    path.write_text(path.read_text().replace("precision: fp32", "precision: fp16"))
    found = tiny_experiment.run(path)
    assert {fact.name: fact.state for fact in found.facts} == {"prompt": "done", "lora": "done"}


@pytest.fixture
def scaler(monkeypatch):
    """Give accelerate the gradient scaler on a CPU that it has on a GPU, which begins far too high."""
    import torch
    import transformers.trainer

    class ScalingAccelerator(transformers.trainer.Accelerator):
        def __init__(self, *args, **given):
            super().__init__(*args, **given)
            self.native_amp, self.scaler = True, torch.amp.GradScaler("cpu", init_scale=2.0**40)

    monkeypatch.setattr(transformers.trainer, "Accelerator", ScalingAccelerator)


@pytest.mark.e2e
@pytest.mark.parametrize("method", [lora, full])
def test_steps_whose_gradients_overflow_change_nothing_and_are_counted(tiny, tmp_path, scaler, method):
    rank = {"r": 2} if method is lora else {}
    context = tiny_methods.context(tiny, tmp_path, machine=FP16)
    knobs = {"warmup_steps": 0, "lr_scheduler_type": "constant", "early_stopping_patience": 99}
    made = method.fit(context, method.Params(**rank, **knobs, max_steps=36, learning_rate=0.01)).training
    skipped, losses = made.n_skipped_steps, [loss for _, loss in made.loss]
    assert 20 < skipped < 28 < made.n_steps == 36  # fp16 holds numbers below 2¹⁶
    assert made.loss_scale == tuple((step, 2.0 ** (40 - min(step, skipped))) for step in range(37))
    assert min(losses[:skipped]) > max(losses[-3:])
