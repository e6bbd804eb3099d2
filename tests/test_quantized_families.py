"""NF4 on a CPU is what bitsandbytes computes; families of PEFT that cannot be on it are refused beforehand."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_experiment
import tiny_methods
from tiny_methods import CPU
from tiny_model import logits

from harness.methods import qlora
from harness.models.devices import load_base
from harness.models.hardware import dtype
from harness.models.hf import ModelHost
from harness.models.hub import quantize, resolve
from harness.records import PromptText
from harness.spec import Recipe
from harness.training.peft_families import families, peft_config
from harness.training.refused_families import NOT_ON_NF4, UNQUANTIZED, quantization_problems

pytestmark = pytest.mark.usefixtures("own_cache")


# What a family needs on a model of 32 units; the others take `r: 2`.
PARAMS = {
    "ADALORA": {"init_r": 6, "target_r": 2},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "BEFT": {"target_modules": ["v_proj"]},
    "BOFT": {},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "FROD": {"progressbar": False},
    "GRALORA": {"r": 4},
    "IA3": {},
    "LN_TUNING": {},
    "OFT": {"oft_block_size": 4},
    "OSF": {},
    "ROAD": {"group_size": 4},
    "SUPERTUNING": {"sparsity": 0.9},
    "TINYLORA": {"u": 4},
    "UNILORA": {"r": 2, "theta_d_length": 32},
    "VBLORA": {"r": 2, "vector_length": 4, "num_vectors": 8},
    "WAVEFT": {"n_frequency": 20},
}
# No adapters of linear layers: soft prompts, an adapter of attention, and embeddings.
ELSEWHERE = ("ADAPTION_PROMPT", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "TRAINABLE_TOKENS")
# New ones that change what the base computes.
NOT_ZERO = ("C3A", "FOURIERFT", "VBLORA")
# They compute with dequantised weights, where the base multiplies in 8 bits.
DEQUANTIZED = ("SHIRA",)
# It computes with the integers, and a new one changes nothing yet.
SILENT = (("PEANUT", "int8"),)


@pytest.mark.parametrize("family", [*UNQUANTIZED, *NOT_ON_NF4])
def test_what_needs_unquantised_weights_is_refused_on_nf4_on_a_gpu_alone(family):
    recipe = Recipe(method="peft", quantization="nf4")

    def list_problems(device):
        return [*quantization_problems(recipe, {"peft_type": family}, device, "own")]

    assert list_problems("cuda")
    assert not list_problems("cpu")


@pytest.mark.weekly
@pytest.mark.parametrize("quantization", ["int8", "nf4"])
@pytest.mark.parametrize("family", sorted(families().keys() - {*ELSEWHERE}))
def test_the_families_that_are_refused_are_those_that_peft_cannot_compute(tiny, family, quantization):
    refused = UNQUANTIZED if quantization == "int8" else (*UNQUANTIZED, *NOT_ON_NF4)
    is_silent = (family, quantization) in SILENT
    assert _computes(tiny, family, quantization) == (family not in refused or is_silent)


def _computes(tiny, family, quantization):
    """Tell whether an adapter of a family trains on quantised layers, and begins where it has to."""
    import torch
    from bitsandbytes.nn import Linear4bit
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if quantization == "int8":
        base, _ = load_base(quantize(resolve(str(tiny)), quantization), CPU)
    else:  # packed, as on a GPU
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        loading = {"dtype": torch.float32, "device_map": {"": "cpu"}, "quantization_config": config}
        base = AutoModelForCausalLM.from_pretrained(tiny, **loading)
        for module in base.modules():  # a kernel that no GPU has, and that takes no rows shorter than a block
            if isinstance(module, Linear4bit):
                module.support_avx512bf16_for_cpu = False
    ids = list(range(5, 20))
    plain = logits(base, ids)
    try:
        model = get_peft_model(base, peft_config(family, PARAMS.get(family, {"r": 2})))
        moved = (logits(model, ids) - plain).abs().max()
        row = torch.tensor([ids])
        model.train()(input_ids=row, labels=row).loss.backward()
    except (RuntimeError, TypeError, ValueError):
        return False
    return family in (*NOT_ZERO, *DEQUANTIZED) or moved.item() < 0.01


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
    made = qlora.METHOD.fit(context, qlora.Params(r=2, max_steps=1, warmup_steps=0))
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
        return qlora.METHOD.fit(
            context, qlora.Params(r=2, max_steps=3, learning_rate=0.01, warmup_steps=0)
        ).digest

    assert digest("held", held) != digest("free", {})
