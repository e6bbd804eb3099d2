"""Worker of a training job on CPUs that accelerate takes for GPUs, because it shards a model only on GPUs.

Arguments are those of `harness.training.job_worker`; the processes communicate by gloo.
"""

import os

import bitsandbytes.nn.modules
import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from harness.training import job_worker

if __name__ == "__main__":
    os.environ |= {"ACCELERATE_TORCH_DEVICE": "cpu", "DS_ACCELERATOR": "cpu"}
    torch.distributed.init_process_group("gloo")
    # On a GPU no weights are packed for AVX512, which rounds their scales.
    bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
    PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        import deepspeed

        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
    job_worker.main()
