"""LoRA adapters that moved the weights of their base (PiSSA, OLoRA), saved as others of twice the rank.

Invariant: what is saved is a LoRA on the base as published; it differs from what was trained by how the moved
weights were rounded to their precision.
Source: Meng et al. 2024 (arXiv:2404.02948); the conversion is PEFT's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.models.adapters import WEIGHTS, describe_beside_low_rank


def find_lost(params: Mapping[str, Any]) -> str:
    """Name what PEFT's conversion leaves out of an adapter or refuses; empty for nothing."""
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if params.get(name)]
    if params.get("use_rslora") and patterns:
        return f"use_rslora and {patterns[0]}"
    return "use_dora" if params.get("use_dora") else describe_beside_low_rank(params)


def save_initial(model: Any, folder: Path) -> None:
    """Save an adapter as it began, under a configuration that does not begin so again when it is loaded."""
    config = model.peft_config["default"]
    start, config.init_lora_weights = config.init_lora_weights, True
    model.save_pretrained(folder)
    config.init_lora_weights = start


def save_converted(model: Any, folder: Path, initial: Path) -> None:
    """Save an adapter converted, by what it was in the folder `initial` before its first step."""
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(initial))
    _add_embeddings(model, folder / WEIGHTS)


def _add_embeddings(model: Any, converted: Path) -> None:
    """Add adapters of embeddings to a converted adapter, at its rank: PEFT's conversion leaves them out."""
    # They began at 0 and moved no weights of the base.
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file, save_file
    from torch.nn.functional import pad

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    found = {name: tensor.detach().cpu() for name, tensor in state.items() if "lora_embedding_" in name}
    if not found:
        return
    padded = {
        name: pad(tensor, (0, 0, 0, len(tensor)) if "lora_embedding_A" in name else (0, tensor.shape[1]))
        for name, tensor in found.items()
    }  # A (r, v) to (2r, v), and B (d, r) to (d, 2r)
    kept = {name: tensor.clone() for name, tensor in load_file(converted).items()}  # no map of the file
    save_file({**kept, **padded}, converted, {"format": "pt"})
