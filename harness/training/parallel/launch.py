"""Launch of the processes that share a training: accelerate's own configuration, in the folder of the job.

Invariant: `accelerate launch` reads all of it from that file, so a folder can be launched by hand.
Source: accelerate's documentation of FSDP2 and of DeepSpeed, https://huggingface.co/docs/accelerate
"""

import json
from pathlib import Path
from typing import Any

from harness.spec import AcceleratePolicy
from harness.training.job import LAUNCH

# FSDP2 by the blocks that a model of transformers says not to split. The first process alone reads the base.
# Checkpoints hold a file for each process: of an adapter they are small, and none holds the base whole.
_FSDP = {
    "fsdp_version": 2,
    "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
    "fsdp_cpu_ram_efficient_loading": True,
    "fsdp_reshard_after_forward": True,
    "fsdp_offload_params": False,
    "fsdp_state_dict_type": "SHARDED_STATE_DICT",
}
# What a step of the job reads is left to the trainer's own arguments, which accelerate calls "auto".
_ZERO = {
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "offload_optimizer_device": "none",
    "offload_param_device": "none",
    "zero3_init_flag": False,  # it would have to be known before the base is loaded
}


def write_launch(folder: Path, policy: AcceleratePolicy, device: str) -> None:
    """Write accelerate's configuration of the processes that make the weights of a job into its folder."""
    config = {
        "compute_environment": "LOCAL_MACHINE",
        "use_cpu": device == "cpu",
        "mixed_precision": "no",  # what the job says is computed in
        "num_machines": 1,
        **policy.model_dump(exclude={"distributed_type", "zero_stage"}),
        **_distribution(policy),
    }
    (folder / LAUNCH).write_text(json.dumps(config, indent=2) + "\n")


def _distribution(policy: AcceleratePolicy) -> dict[str, Any]:
    """Return accelerate's type of distribution, with what it takes."""
    if policy.num_processes == 1:
        return {"distributed_type": "NO"}
    kind = {"distributed_type": policy.distributed_type}  # MULTI_GPU also on CPUs, which `use_cpu` makes them
    if policy.distributed_type == "FSDP":
        return kind | {"fsdp_config": _FSDP}
    if policy.distributed_type == "DEEPSPEED":
        stage = {"zero_stage": policy.zero_stage, "zero3_save_16bit_model": policy.zero_stage == 3}
        return kind | {"deepspeed_config": _ZERO | stage}
    return kind
