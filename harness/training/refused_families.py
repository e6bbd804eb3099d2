"""PEFT adapters that cannot be trained or reopened: on quantised layers, on the head, or by their values.

Adapters of the output head are refused, because TRL's losses multiply hidden states by the head's own matrix.
On a CPU an NF4 base is dequantised and takes every adapter. Source: PEFT's layers of each family;
`tests/test_quantized_families.py` compares the list with them.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from harness.errors import Problem
from harness.models import windows
from harness.models.weight_files import CONVERTED
from harness.spec import Recipe

if TYPE_CHECKING:
    from peft import PeftConfig

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
NOT_ON_NF4 = ("LOHA", "LOKR")  # shaped like the stored matrices, which NF4 packs into a column
_VARIANTS = ("kasa_config", "monteclora_config")


def quantization_problems(
    recipe: Recipe, params: Mapping[str, Any], device: str, where: str
) -> Iterator[Problem]:
    """Yield the problems of an adapter with these PEFT parameters on a recipe's quantised base."""
    for key, quantization in (("quantization", recipe.quantization), ("serve_on", recipe.serve_on)):
        if why := _explain_not_on(quantization or "", params, device):
            expected = "a base in 16 or 32 bits, or an adapter for quantised layers, such as LoRA"
            yield Problem(where, f"{why}, and {key}: {quantization}", expected, f"remove {key}")
            return


def _explain_not_on(quantization: str, params: Mapping[str, Any], device: str) -> str:
    """Return the part of an adapter that needs unquantised weights; empty if none."""
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


def refuse_values(config: "PeftConfig", params: Mapping[str, Any]) -> None:
    """Refuse values that PEFT accepts but that cannot be trained, or mean something else once saved."""
    of = vars(config)
    for name, pattern in params.items():
        may_overlap = is_pattern(name, pattern) and not all(map(str.isidentifier, pattern))
        if may_overlap and list(pattern) != sorted(pattern):
            found, expected = map(", ".join, (pattern, sorted(pattern)))
            raise ValueError(f"{name}: {found}; PEFT saves and matches patterns by name: {expected}")
    if config.is_prompt_learning and not (of.get("num_virtual_tokens") or 0) > 0:
        raise ValueError("num_virtual_tokens: none, where a soft prompt has one at least")
    if config.peft_type == "ADALORA":
        if of["init_r"] < of["target_r"]:
            raise ValueError(f"init_r {of['init_r']}, from which ranks fall, below target_r {of['target_r']}")
        for name in ("target_r", "deltaT"):
            if of[name] < 1:
                raise ValueError(f"{name}: {of[name]}, which is 1 at least")


def refuse_soft_prompt(config: "PeftConfig", of_base: Any) -> None:
    """Refuse a soft prompt that leaves no room for a row, or that layers do not attend to or keep."""
    if not config.is_prompt_learning:
        return
    most = getattr(of_base.get_text_config(), "max_position_embeddings", None)
    n = vars(config)["num_virtual_tokens"]
    if most and n >= most:
        raise ValueError(f"num_virtual_tokens: {n}, where the base reads {most} tokens at most")
    seen = windows(of_base)
    if seen is None or any(seen):
        raise ValueError("a soft prompt, and layers that do not attend to everything that was read")


def is_pattern(name: str, value: Any) -> bool:
    """Tell whether a parameter maps module patterns to values, such as ranks."""
    return name.endswith("_pattern") and isinstance(value, dict)


def refuse_start(config: "PeftConfig", made: Any, start: str) -> None:
    """Refuse starts from a decomposition with a rank above a layer's directions, or on embeddings."""
    # PEFT would compute undefined values for EVA, save them for PiSSA, and drop embeddings' adapters there.
    if not start.startswith(("eva", *CONVERTED)):
        return
    for name, module in made.named_modules():
        if start.startswith(CONVERTED) and getattr(module, "lora_embedding_A", None):
            raise ValueError(f"init_lora_weights: {start} of {name}, an embedding, which PEFT does not save")
        rank = getattr(module, "r", {}).get("default", 0) if hasattr(module, "lora_A") else 0
        sizes = [getattr(module, size, rank) for size in ("in_features", "out_features")]
        if start == "eva":
            rank, sizes = round(rank * config.eva_config.rho), sizes[:1]  # type: ignore[attr-defined]
        if rank > min(sizes):
            of = name.rpartition(".")[2]
            raise ValueError(f"{rank} directions by init_lora_weights: {start}, and {of} has {min(sizes)}")


ADAPTED_HEAD = "an adapter of lm_head, or of embeddings that it is tied to, which no training here trains"


def adapts_head(model: Any) -> bool:
    """Tell whether a PEFT model has an adapter on its output head."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(model.get_output_embeddings(), BaseTunerLayer)


# Linear layers that take no adapter: routers of experts return more than their products, and the kernels of
# Mamba-like layers read the weights of `out_proj` directly, so PEFT refuses its low-rank families there.
_ROUTERS = dict.fromkeys(("llama4", "llama4_text", "phimoe"), "router")
_FUSED = dict.fromkeys(("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"), "out_proj")
_LOW_RANK = ("LORA", "ADALORA", "RANDLORA")


def exclude_unadapted(config: "PeftConfig", model_type: str) -> None:
    """Exclude layers that take no adapter, besides those a configuration excludes, for `all-linear`."""
    fused = _FUSED if config.peft_type in _LOW_RANK else {}
    name, of = (_ROUTERS | fused).get(model_type), vars(config)
    if name is None or of.get("target_modules") != "all-linear" or "exclude_modules" not in of:
        return
    written: Any = of["exclude_modules"]
    if written and not isinstance(written, str):
        of["exclude_modules"] = {*written, name}
    else:
        of["exclude_modules"] = "|".join(filter(None, (rf".*\.{name}", written)))
