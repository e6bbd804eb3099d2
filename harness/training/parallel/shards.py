"""Shards of a model that several processes train: how it is loaded, and its trained weights put together.

Invariant: all processes gather what one of them saves, in the same order, or each would wait for the others.
Source: Rajbhandari et al. 2020 (arXiv:1910.02054) for ZeRO, Zhao et al. 2023 (arXiv:2304.11277) for FSDP.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.models.devices import Placement
from harness.training.parallel.processes import is_first, process_count

FSDP, DEEPSPEED = "FSDP", "DEEPSPEED"  # by accelerate's names
_LAUNCHED = {FSDP: "ACCELERATE_USE_FSDP", DEEPSPEED: "ACCELERATE_USE_DEEPSPEED"}  # set by `accelerate launch`
_WHOLE = Placement(None)  # in main memory, from where accelerate takes each process's shard


def name_sharding() -> str:
    """Name what shards the model over the processes of this training; empty where each holds all of it."""
    if process_count() == 1:
        return ""
    return next((name for name, said in _LAUNCHED.items() if os.environ.get(said) == "true"), "")


def zero_stage() -> int:
    """Return the stage of DeepSpeed's ZeRO, 3 of FSDP, which shards as much."""
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3"))


def size_of(parameter: Any) -> int:
    """Count the numbers of a parameter, of which ZeRO 3 leaves none in its place."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def placement() -> Placement | None:
    """Return where a base is loaded that is to be sharded; None leaves it to the device."""
    return _WHOLE if name_sharding() else None


def save_trained(save: Callable[..., None], model: Any, folder: Path) -> None:
    """Write trained weights as `save(model, folder)` does, by the first process; of shards, put together."""
    if not name_sharding():
        if is_first():
            save(model, folder)
        return
    whole = _gather_shards(model) if name_sharding() == FSDP else _gather_partitions(model)
    if is_first():
        save(model, folder, state_dict=whole)


def _gather_shards(model: Any) -> dict[str, Any]:
    """Return what FSDP2's processes trained, whole in the first one's main memory; tied weights once."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    whole = get_model_state_dict(model, options=options)
    tied = dict(model.named_parameters(remove_duplicate=False)).keys() - dict(model.named_parameters()).keys()
    return {name: tensor for name, tensor in whole.items() if name not in tied}


def _gather_partitions(model: Any) -> dict[str, Any]:
    """Return what DeepSpeed's processes trained, a parameter at a time: ZeRO 3 has parted each of them."""
    import deepspeed

    whole: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            with deepspeed.zero.GatheredParameters([parameter]):  # leaves one that is whole as it is
                if is_first():
                    whole[name] = parameter.detach().cpu().clone()
    return whole
