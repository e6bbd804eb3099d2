"""Families of PEFT on quantised layers: refused beforehand where PEFT cannot compute them there."""

import pytest
from tiny_methods import CPU
from tiny_model import logits

from harness.models.devices import load_base
from harness.models.hub import quantize, resolve
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
