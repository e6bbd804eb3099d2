"""Adapters that need the weights of a base unquantised, and so cannot lie on int8 or NF4 layers.

Invariant: what is refused is what PEFT cannot put on such layers, what it computes with their stored integers
in the place of weights, and variants of LoRA that it leaves out there without a word. On a CPU a base in NF4
is dequantised, and takes every adapter.
Source: PEFT's layers of each family; `tests/test_quantized_families.py` holds the list to them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import Problem
from harness.spec import Recipe

UNQUANTIZED = (
    "ADAMSS",
    "DEFT",
    "DELORA",
    "FROD",
    "GLORA",
    "HRA",
    "OSF",
    "PEANUT",
    "PSOFT",
    "SUPERTUNING",
    "TINYLORA",
)
NOT_ON_NF4 = ("LOHA", "LOKR")  # shaped as the matrices that are stored, and NF4's lie packed in a column
_VARIANTS = ("kasa_config", "monteclora_config")


def quantization_problems(
    recipe: Recipe, params: Mapping[str, Any], device: str, where: str
) -> Iterator[Problem]:
    """Yield what forbids an adapter of these parameters of PEFT on the quantised base of a recipe."""
    for key, quantization in (("quantization", recipe.quantization), ("serve_on", recipe.serve_on)):
        if why := _explain_not_on(quantization or "", params, device):
            expected = "a base in 16 or 32 bits, or an adapter for quantised layers, such as LoRA"
            yield Problem(where, f"{why}, and {key}: {quantization}", expected, f"remove {key}")
            return


def _explain_not_on(quantization: str, params: Mapping[str, Any], device: str) -> str:
    """Say what of an adapter needs unquantised weights; empty for nothing."""
    if quantization not in ("int8", "nf4") or (quantization == "nf4" and device != "cuda"):
        return ""
    family = params.get("peft_type", "LORA")
    if family in (UNQUANTIZED if quantization == "int8" else (*UNQUANTIZED, *NOT_ON_NF4)):
        return f"peft_type: {family}, which computes with unquantised weights"
    if str(params.get("init_lora_weights", "")).lower() == "mica":
        return "init_lora_weights: mica, which computes with unquantised weights"
    if own := next((name for name in _VARIANTS if params.get(name) is not None), ""):
        return f"{own}, which PEFT leaves out of quantised layers"
    if params.get("use_dora") and quantization == "int8" and device != "cuda":
        return "use_dora, whose norms bitsandbytes does not compute in 8 bits on a CPU"
    return ""
