"""A GPU gives the results of a CPU: scores, answers, adapters and first losses of the tiny model.

Invariant: the reference is transformers' own forward pass over one sequence on the CPU in fp32. The same
tests run on the CPU in the fast tier, so that they are known to work.
"""

from dataclasses import replace

import pytest
import random_llama
import tiny_methods
from the_gpu import gpu
from tiny_model import CHOICES, QUESTIONS, adapter_on

from harness.methods import dpo
from harness.methods.supervised import Lora, Qlora
from harness.models.cpu_kernels import multiplies_bf16
from harness.models.hardware import Machine
from harness.models.hf import ModelHost
from harness.models.hub import quantize, resolve
from harness.records import Limits, PromptText

pytestmark = pytest.mark.usefixtures("own_cache")

CPU = Machine("cpu", "CPU", "fp32", 1.0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request):
    """Compute on the CPU, and under the mark `gpu` on a GPU; in fp32."""
    if request.param == "cuda":
        gpu()
    return Machine(request.param, request.param, "fp32", 1.0)


@pytest.fixture
def source(tiny, own_cache):
    return resolve(str(tiny))


@pytest.fixture(scope="module")
def adapters(tiny, tmp_path_factory):
    """Save two adapters that change the tiny model's answers."""
    settings = {"r": 4, "target_modules": "all-linear"}
    return [adapter_on(tiny, tmp_path_factory.mktemp("adapter"), seed=seed, **settings) for seed in (1, 2)]


def pairs(candidate):
    turns = [[{"role": "user", "content": text}] for text in QUESTIONS]
    return [candidate.encode(turn, choice)[:2] for turn in turns for choice in CHOICES]


def prompts(candidate):
    return [candidate.encode([{"role": "user", "content": text}]).context for text in QUESTIONS]


def scores(candidate):
    return [scored.logprob for scored in candidate.loglikelihood(pairs(candidate))]


def one_by_one(model, inputs):
    """Sum the log-probabilities of each continuation from one forward pass over its sequence."""
    import torch

    sums = []
    for context, continuation in inputs:
        ids = torch.tensor([[*context, *continuation]])
        with torch.no_grad():
            logprobs = model(ids).logits[0].float().log_softmax(-1)
        rows = logprobs[len(context) - 1 : -1]
        sums.append(float(rows[range(len(continuation)), list(continuation)].sum()))
    return sums


def test_scores_are_those_of_one_sequence_at_a_time_on_the_cpu(machine, source, model):
    candidate = ModelHost(source, machine).base
    assert candidate.engine == "transformers/packed"
    assert scores(candidate) == pytest.approx(one_by_one(model, pairs(candidate)), abs=1e-2)


def test_scores_in_bf16_are_near_those_in_fp32(machine, source, model):
    candidate = ModelHost(source, machine._replace(precision="bf16")).base
    inputs = pairs(candidate)
    gaps = [
        abs(a - b) / len(continuation)
        for a, b, (_, continuation) in zip(scores(candidate), one_by_one(model, inputs), inputs, strict=True)
    ]
    assert sum(gaps) / len(gaps) < 0.1


def test_answers_are_those_of_the_cpu(machine, source):
    tested, on_cpu = (ModelHost(source, m).base for m in (machine, CPU))
    answers = [[o.text for o in c.generate(prompts(c), Limits(8, ()))] for c in (tested, on_cpu)]
    assert answers[0] == answers[1]


@pytest.mark.e2e
def test_adapters_switched_on_one_base_say_what_each_says_alone(machine, source, adapters):
    shared = ModelHost(source, machine)
    base, switched = scores(shared.base), []
    for folder in (*adapters, adapters[0]):
        with shared.use_adapter(folder, str(folder)) as candidate:
            switched.append(scores(candidate))
    alone = []
    for folder in adapters:
        with ModelHost(source, machine).use_adapter(folder, str(folder)) as candidate:
            alone.append(scores(candidate))
    assert switched == [*(pytest.approx(s, abs=1e-3) for s in alone), pytest.approx(alone[0], abs=1e-3)]
    assert scores(shared.base) == pytest.approx(base, abs=1e-3)
    assert alone[0] != pytest.approx(base, abs=0.1)


def test_a_base_in_nf4_says_what_it_says_on_the_cpu(machine, source):
    tested, on_cpu = (ModelHost(quantize(source, "nf4"), m).base for m in (machine, CPU))
    assert scores(tested) == pytest.approx(scores(on_cpu), abs=0.2)
    assert scores(tested) != pytest.approx(scores(ModelHost(source, CPU).base), abs=0.5)


@pytest.mark.parametrize("method", [Lora, Qlora])
def test_the_first_loss_of_a_training_is_what_scoring_says(machine, method, tiny, source, tmp_path):
    base = quantize(source, method.METHOD.quantization)
    rows = tiny_methods.examples(slice(0, 1))[:1]
    context = tiny_methods.context(tiny, tmp_path, source=base, machine=machine)
    weights = method.METHOD.fit(replace(context, train=rows), method.Params(r=2, max_steps=1, warmup_steps=0))
    candidate = ModelHost(base, CPU).base
    written = PromptText(rows[0].messages, f"{rows[0].references[0]}<|im_end|>\n", is_written=True)
    (encoded,) = candidate.encode_all([written])
    expected = -candidate.loglikelihood([encoded[:2]])[0].logprob / len(encoded.continuation)
    assert weights.training.loss[0][1] == pytest.approx(expected, abs=0.02)
    assert weights.training.peak_memory_gib > 0


@pytest.mark.e2e
def test_preference_training_raises_the_margin_from_nothing(machine, tiny, source, tmp_path):
    context = tiny_methods.context(tiny, tmp_path, source=source, machine=machine)
    params = dpo.Params(r=2, learning_rate=0.01, warmup_steps=0, num_train_epochs=4)
    figures = dpo.METHOD.fit(context, params).training
    assert figures.reward_margin[0][1] == pytest.approx(0, abs=1e-3)
    assert figures.reward_margin[-1][1] > 0.05


def test_each_device_attends_and_multiplies_in_its_own_way(machine, source):
    host = ModelHost(source, machine._replace(precision="bf16"))
    ways = set()
    hook = host.model.register_forward_pre_hook(lambda model, _: ways.add(model.config._attn_implementation))
    scores(host.base)
    host.base.generate(prompts(host.base), Limits(2, ()))
    hook.remove()
    laid_out = any("forward" in vars(module) for module in host.model.modules())
    assert (ways, laid_out) == {"cpu": ({"parts"}, multiplies_bf16()), "cuda": ({"sdpa"}, False)}[
        machine.device
    ]


# Memory


@pytest.fixture
def crowded_base(tiny, tmp_path):
    """Load a small model with a long context on the GPU, with long questions."""
    machine = gpu("fp32")
    llama = random_llama.build(tmp_path / "model", "tiny", tiny, machine, spread=0.3)
    base = ModelHost(llama.source, machine).base
    texts = [f"{number} parcels. " * 400 for number in range(64)]
    return base, [base.encode([{"role": "user", "content": text}]).context for text in texts]


def ask_with_less_memory(ask):
    """Ask twice, the second time with a third of the memory used the first time; return both answers."""
    import torch

    ask()  # libraries allocate their workspaces
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    whole = ask()
    taken_bytes = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + taken_bytes / 3
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(0).total_memory)
    try:
        return whole, ask()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def count_passes(model, ask):
    """Return the result of `ask` and its number of forward passes."""
    passes = []
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        return ask(), len(passes)
    finally:
        hook.remove()


@pytest.mark.gpu
def test_scores_are_the_same_where_a_batch_does_not_fit(crowded_base):
    base, contexts = crowded_base
    inputs = [(context, (5, 6, 7)) for context in contexts]
    (whole, few), (halves, more) = ask_with_less_memory(
        lambda: count_passes(base.model, lambda: [s.logprob for s in base.loglikelihood(inputs)])
    )
    assert halves == pytest.approx(whole, abs=1e-3)
    assert more > few


@pytest.mark.gpu
def test_answers_are_the_same_where_a_batch_does_not_fit(crowded_base):
    base, contexts = crowded_base
    (whole, few), (halves, more) = ask_with_less_memory(
        lambda: count_passes(base.model, lambda: [o.text for o in base.generate(contexts, Limits(4, ()))])
    )
    assert halves == whole
    assert more > few
