"""Claims that are computed exactly: shares of parameters, sizes of checkpoints, bits of quantised weights."""

import tempfile
from pathlib import Path

from harness.formatting import size
from harness.models.hub import resolve, shape
from harness.models.memory import lora_parameters
from harness.models.shapes import Shape
from harness.models.weight_files import weights_bytes
from reports.studies.claims.claim import ClaimResult

EMBEDDED = "smollm2-135m"
GPT3 = Shape(175e9, 96, 12_288, 49_152, 96, 96, 128, 50_257)
LLAMA_65B = Shape(65.3e9, 80, 8192, 22_016, 64, 64, 128, 32_000)
_NEAR = 0.1  # relative deviation from a claim's figure that still supports it
_ADAM = 2 + 2 + 8  # bytes per trained parameter in 16 bits: itself, its gradient, Adam's two moments in fp32


def share_of_parameters() -> ClaimResult:
    """Count LoRA's parameters: of GPT-3 as in the paper, and of the embedded model by PEFT."""
    on_gpt3 = GPT3.n_parameters / lora_parameters(GPT3, 4, ("q_proj", "v_proj"))
    embedded = shape(resolve(EMBEDDED))
    assert embedded is not None
    narrow, wide = (
        embedded.n_parameters / lora_parameters(embedded, r, modules)
        for r, modules in ((4, ("q_proj", "v_proj")), (16, "all-linear"))
    )
    return ClaimResult(
        f"{on_gpt3:,.0f} times fewer on GPT-3's shape; on {EMBEDDED} {narrow:,.0f} times, and {wide:.0f} times "
        "at rank 16 on all linear layers",
        "holds" if abs(on_gpt3 / 10_000 - 1) <= _NEAR else "does not hold here",
        {"gpt3": on_gpt3, "embedded_r4_qv": narrow, "embedded_r16_all_linear": wide},
        "exact: the share falls with the width of the model, so small models are spared less",
    )


def size_of_checkpoint() -> ClaimResult:
    """Compare the sizes of an adapter and of the embedded model; compute the paper's."""
    from peft import get_peft_model

    from harness.methods.supervised import Lora
    from harness.models.devices import load_base
    from harness.models.hardware import Machine
    from harness.training import lora_config

    source = resolve(EMBEDDED)
    base, _ = load_base(source, Machine("cpu", "CPU", "bf16", 1.0))
    model = get_peft_model(base, lora_config(Lora.Params(r=4, target_modules=["q_proj", "v_proj"])))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        n_bytes = (Path(folder) / "adapter_model.safetensors").stat().st_size
    paper = 2 * lora_parameters(GPT3, 4, ("q_proj", "v_proj"))
    whole = weights_bytes(source.path)
    return ClaimResult(
        f"{size(paper)} for GPT-3 in 16 bits; on {EMBEDDED} {size(n_bytes)} in fp32 beside {size(whole)}, "
        f"{whole / n_bytes:,.0f} times smaller",
        "holds" if abs(paper / 35e6 - 1) <= _NEAR else "does not hold here",
        {"gpt3_bytes": paper, "adapter_bytes": n_bytes, "model_bytes": whole},
        "exact: of a file as it is saved, and of GPT-3's shape",
    )


def bits_of_nf4() -> ClaimResult:
    """Quantise every linear layer of the embedded model to NF4 and count the stored bits."""
    import torch
    from bitsandbytes.functional import quantize_4bit

    from harness.models.devices import load_base
    from harness.models.hardware import Machine

    base, _ = load_base(resolve(EMBEDDED), Machine("cpu", "CPU", "fp32", 1.0))
    n_bytes = {False: 0, True: 0}
    n_weights = 0
    for name, layer in base.named_modules():
        if not isinstance(layer, torch.nn.Linear) or name == "lm_head":
            continue
        n_weights += layer.weight.numel()
        for doubly in n_bytes:
            packed, state = quantize_4bit(layer.weight.data, quant_type="nf4", compress_statistics=doubly)
            n_bytes[doubly] += packed.nbytes + state.absmax.nbytes
            n_bytes[doubly] += state.state2.absmax.nbytes if doubly else 0
    once, twice = (8 * n_bytes[doubly] / n_weights for doubly in (False, True))
    return ClaimResult(
        f"{twice:.3f} bits a weight with double quantisation, {once:.3f} without",
        "holds" if abs((once - twice) / 0.373 - 1) <= _NEAR else "does not hold here",
        {"bits": twice, "bits_without": once, "weights": n_weights},
        f"exact: all {n_weights / 1e6:.0f} million weights of the linear layers, by bitsandbytes; embeddings stay in 16 bits",
    )


def memory_of_qlora() -> ClaimResult:
    """Compute the memory of weights, gradients and Adam of a model of 65 billion, in full and with QLoRA."""
    whole = _ADAM * LLAMA_65B.n_parameters
    of_adapter = _ADAM * lora_parameters(LLAMA_65B, 64)
    quantised = (4 + 0.127) / 8 * (LLAMA_65B.n_parameters - 2 * LLAMA_65B.vocabulary * LLAMA_65B.hidden)
    embeddings = 2 * 2 * LLAMA_65B.vocabulary * LLAMA_65B.hidden
    tuned = quantised + embeddings + of_adapter
    return ClaimResult(
        f"{whole / 1e9:,.0f} GB whole, {tuned / 1e9:.0f} GB by QLoRA",
        "holds" if whole >= 780e9 and tuned < 48e9 else "does not hold here",
        {"whole_bytes": whole, "qlora_bytes": tuned},
        "computed for LLaMA's shape at rank 64 on all linear layers, without activations, which need a GPU to be measured",
    )
