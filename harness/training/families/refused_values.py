"""Values that PEFT's configurations take, and with which no adapter can be trained or opened again.

Invariant: each function raises a ValueError that names the value and its bound, and reads no weights.
"""

from typing import TYPE_CHECKING, Any

from harness.models.adapters import CONVERTED
from harness.models.prefix_cache import windows

if TYPE_CHECKING:
    from peft import PeftConfig


def refuse_values(config: "PeftConfig") -> None:
    """Refuse values that PEFT takes and no training can be made with."""
    of = vars(config)
    if config.is_prompt_learning and not (of.get("num_virtual_tokens") or 0) > 0:
        raise ValueError("num_virtual_tokens: none, where a soft prompt has one at least")
    if config.peft_type == "ADALORA":
        if of["init_r"] < of["target_r"]:
            raise ValueError(f"init_r {of['init_r']}, from which ranks fall, below target_r {of['target_r']}")
        for name in ("target_r", "deltaT"):
            if of[name] < 1:
                raise ValueError(f"{name}: {of[name]}, which is 1 at least")


def refuse_soft_prompt(config: "PeftConfig", of_base: Any) -> None:
    """Refuse a soft prompt that leaves no place for a row, or that layers do not see or keep."""
    if not config.is_prompt_learning:
        return
    most = getattr(of_base.get_text_config(), "max_position_embeddings", None)
    n = vars(config)["num_virtual_tokens"]
    if most and n >= most:
        raise ValueError(f"num_virtual_tokens: {n}, where the base reads {most} tokens at most")
    seen = windows(of_base)
    if seen is None or any(seen):
        raise ValueError("a soft prompt, and layers that do not attend to everything that was read")


def refuse_rank(config: "PeftConfig", made: Any, start: str) -> None:
    """Refuse to begin with more directions of a layer than it has."""
    # Half of what PEFT computes for EVA, or what it would save of PiSSA, has no value then.
    if not start.startswith(("eva", *CONVERTED)):
        return
    for name, module in made.named_modules():
        rank = getattr(module, "r", {}).get("default", 0) if hasattr(module, "lora_A") else 0
        sizes = [getattr(module, size, rank) for size in ("in_features", "out_features")]
        if start == "eva":
            rank, sizes = round(rank * config.eva_config.rho), sizes[:1]  # type: ignore[attr-defined]
        if rank > min(sizes):
            of = name.rpartition(".")[2]
            raise ValueError(f"{rank} directions by init_lora_weights: {start}, and {of} has {min(sizes)}")
