"""Schema of execution: the workers of a comparison, and where they run.

Invariant: nothing here enters an identity. Rows are equal at equal thread counts, so a worker computes with
as many threads as is said here.
"""

from typing import Literal

from pydantic import Field

from harness.spec.values import Spec

Executor = Literal["in_process", "local", "ray", "slurm"]


class ExecutionPolicy(Spec):
    """Workers that train and answer for `harness compare`; what is stored does not depend on them.

    `executor` is `in_process`, `local` (processes on this machine, each with a GPU of its own where there are
    GPUs), `ray` or `slurm`. `workers` are at most so many at once: by default one for each GPU, or all that a
    Ray cluster has room for. Each computes with `threads` threads, by default those of the command, which
    local workers share. `address` is that of Ray, or one of submitit's clusters: `slurm`, which `auto` means,
    `local` or `debug`. `slurm` holds parameters of submitit's, as `slurm_partition` or `timeout_min`.
    """

    executor: Executor = "in_process"
    workers: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    address: str = Field("auto", min_length=1)
    slurm: dict[str, str | int | float | bool] = {}
