"""Starts of LoRA from the base's weights or activations: PiSSA and OLoRA, saved as others, and EVA.

Invariant: an adapter that moved the weights of its base is saved as a LoRA of twice the rank on the base as
published; it differs from what was trained by how the moved weights were rounded to their precision. Where no
batch has the tokens that EVA's decomposition needs, the training fails before it begins.
Source: Meng et al. 2024 (arXiv:2404.02948); Paischer et al. 2024 (arXiv:2410.07170); both are PEFT's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import CandidateFailed
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


def begin_eva(trainer: Any) -> None:
    """Set the adapter of a trainer to begin so.

    Raises:
        CandidateFailed: no batch has enough learnt tokens.
    """
    from peft import initialize_lora_eva_weights

    _refuse_few_tokens(trainer)
    initialize_lora_eva_weights(trainer.model, trainer.get_train_dataloader())


def _refuse_few_tokens(trainer: Any) -> None:
    """Refuse batches without the tokens that the decomposition needs: PEFT would wait for one for ever."""
    import torch
    from peft.tuners.lora.eva import prepare_model_inputs_fn_language_modeling as learnt_tokens

    config = trainer.model.peft_config["default"]
    rank = max(config.r, *config.rank_pattern.values()) if config.rank_pattern else config.r
    n = round(rank * config.eva_config.rho)
    with torch.random.fork_rng(devices=[]):  # PEFT reads the same batches
        batches = (dict(batch) for batch in trainer.get_train_dataloader())
        most = max((len(learnt_tokens(batch, config)) for batch in batches), default=0)
    if most < n:
        found = f"EVA of rank {rank} needs {n} learnt tokens in a batch, and the most that one has is {most}"
        raise CandidateFailed(found, "a larger params.per_device_train_batch_size, or a smaller r")
