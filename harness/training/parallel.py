"""Processes that share one training, as started by `accelerate launch`; also works with a single process.

Invariant: only the first process writes into the job folder. A step has the same number of rows as with one
process; each process reads its part. Source: Rajbhandari et al. 2020 (arXiv:1910.02054) for ZeRO, Zhao et al.
2023 (arXiv:2304.11277) for FSDP, by accelerate (https://huggingface.co/docs/accelerate).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from harness.models.devices import Placement
from harness.models.later import datasets, torch
from harness.spec import AcceleratePolicy

LAUNCH = "accelerate.json"  # file in a job folder: how to start several processes
Params = TypeVar("Params", bound=Any)
Made = TypeVar("Made")


def process_count() -> int:
    """Return the number of processes of this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Tell whether this is the process that writes."""
    return os.environ.get("RANK", "0") == "0"


def wait_for_all(device: str = "") -> None:
    """Wait for all processes; the first call connects them, over gloo or on one GPU each."""
    if process_count() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu").wait_for_everyone()


def share_order() -> None:
    """Copy the first process's random state to all, so that they draw the same order of an epoch."""
    if process_count() > 1:
        from accelerate.utils import synchronize_rng_states

        synchronize_rng_states(["torch"])


def compute_once(compute: Callable[[], Made]) -> Made:
    """Let the first process compute a value and return it in all processes."""
    if process_count() == 1:
        return compute()
    from accelerate.utils import broadcast_object_list

    values: list[Any] = [compute() if is_first() else None]
    broadcast_object_list(values)
    return cast(Made, values[0])


def share_rows(rows: Any, folder: Path) -> Any:
    """Return a dataset that several processes read from files written by the first one."""
    if process_count() == 1:
        return rows
    if is_first():
        rows.save_to_disk(folder)
    wait_for_all()
    return datasets.load_from_disk(folder)


def place_base(device: str) -> Placement | None:
    """Return the placement of a process's base: its GPU, empty if sharded; None for one process or a CPU."""
    if process_count() == 1 or device == "cpu":
        return None
    return {} if name_sharding() else {"device_map": {"": f"cuda:{os.environ['LOCAL_RANK']}"}}


def most(value: float, device: Any) -> float:
    """Return the maximum over the processes."""
    if process_count() == 1:
        return value
    from accelerate.utils import gather

    values: Any = gather(torch.tensor([value], dtype=torch.float64, device=device))
    return float(values.max())


def rows_of_each(params: Params, n_processes: int) -> Params:
    """Return the parameters of one of several processes; ValueError if rows cannot be divided."""
    size = params.per_device_train_batch_size
    rows = size * params.gradient_accumulation_steps
    if rows % n_processes:
        raise ValueError(f"{rows} rows a step, which {n_processes} processes cannot share evenly")
    n_rows = rows // n_processes
    batch = next(smaller for smaller in range(min(size, n_rows), 0, -1) if n_rows % smaller == 0)
    parts = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": n_rows // batch}
    return cast(Params, params.model_copy(update=parts))


FSDP, DEEPSPEED = "FSDP", "DEEPSPEED"  # accelerate's names
_LAUNCHED = {FSDP: "ACCELERATE_USE_FSDP", DEEPSPEED: "ACCELERATE_USE_DEEPSPEED"}  # set by `accelerate launch`


def name_sharding() -> str:
    """Return the name of the sharding of this training; empty if each process has the whole model."""
    if process_count() == 1:
        return ""
    return next((name for name, variable in _LAUNCHED.items() if os.environ.get(variable) == "true"), "")


def zero_stage() -> int:
    """Return the stage of DeepSpeed's ZeRO, or 3 for FSDP, which shards as much."""
    return int(os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3"))


def save_trained(save: Callable[..., None], model: Any, folder: Path) -> None:
    """Write trained weights by `save(model, folder)` in the first process, gathering shards before."""
    sharding, tensors, tied_names = name_sharding(), dict[str, Any](), set[str]()
    if sharding == FSDP:  # gathered in the first process's main memory
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        tensors = get_model_state_dict(model, options=options)
        tied_names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        tied_names -= {name for name, _ in model.named_parameters()}
    elif sharding:  # one parameter at a time, because ZeRO 3 shards each one
        import deepspeed

        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                with deepspeed.zero.GatheredParameters([parameter]):  # whole parameters stay as they are
                    if is_first():
                        tensors[name] = parameter.detach().cpu().clone()
    state = {"state_dict": {n: t for n, t in tensors.items() if n not in tied_names}} if sharding else {}
    if is_first():
        save(model, folder, **state)


# FSDP2 wraps the blocks that a transformers model declares as not to be split. Only the first process reads
# the base. Checkpoints have one file per process; those of adapters are small, and none contains the whole
# base.
_FSDP = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_cpu_ram_efficient_loading": True,
    "fsdp_reshard_after_forward": True,
    "fsdp_offload_params": False,
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
}
# The rows of a step are set by the trainer's arguments, which accelerate calls "auto".
_ZERO = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "offload_optimizer_device": "none",
    "offload_param_device": "none",
    "zero3_init_flag": False,  # must be decided before the base is loaded
}


def write_launch(folder: Path, policy: AcceleratePolicy, device: str) -> None:
    """Write accelerate's configuration for a job's processes into the job folder."""
    kind = policy.distributed_type if policy.num_processes > 1 else "NO"
    stage = {"zero_stage": policy.zero_stage, "zero3_save_16bit_model": policy.zero_stage == 3}
    plugin_configs = {"FSDP": {"fsdp_config": _FSDP}, "DEEPSPEED": {"deepspeed_config": _ZERO | stage}}
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "use_cpu": device == "cpu",  # turns a MULTI_GPU launch into one on CPUs
        "mixed_precision": "no",  # the job sets the precision
        "num_machines": 1,
        "num_processes": policy.num_processes,
        "gpu_ids": "all",
        "main_process_port": 0,  # any free port
        "distributed_type": kind,
        **plugin_configs.get(kind, {}),
    }
    (folder / LAUNCH).write_text(json.dumps(config, indent=2) + "\n")
