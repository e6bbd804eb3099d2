"""Processes that share one training, as `accelerate launch` starts them; a training of its own is one of one.

Invariant: the first process alone writes into the folder of a job, and none goes on before what it wrote is
there. A step has as many rows as one process would give it: each reads its part of them.
"""

import os
from typing import Any, TypeVar

from harness.regularizers import Regularize, has_hook

Params = TypeVar("Params", bound=Any)


def process_count() -> int:
    """Count the processes of this training."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Tell whether this process writes what all of them made."""
    return os.environ.get("RANK", "0") == "0"


def join(device: str) -> None:
    """Join the other processes, by gloo on CPUs, and take a GPU of this process's own."""
    if process_count() > 1:
        from accelerate import PartialState

        PartialState(cpu=device == "cpu").wait_for_everyone()


def wait_for_all() -> None:
    """Wait until all processes that were joined are here."""
    if process_count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def share_order() -> None:
    """Give all processes the first one's random numbers, by which each draws the same order of an epoch."""
    if process_count() > 1:
        from accelerate.utils import synchronize_rng_states

        synchronize_rng_states(["torch"])


def most(value: float, device: Any) -> float:
    """Return the largest of the processes' values."""
    if process_count() == 1:
        return value
    import torch
    from accelerate.utils import gather

    found: Any = gather(torch.tensor([value], dtype=torch.float64, device=device))
    return float(found.max())


def can_share(method: Any, regularize: Regularize) -> bool:
    """Tell whether several processes may share a training: no regulariser changes its model or steps."""
    return bool(method.data_parallel) and not has_hook(regularize, "prepare", "penalty", "step", "select")


def rows_of_each(params: Params, n_processes: int) -> Params:
    """Return the parameters of one of several processes, which reads its part of a step's rows.

    Its batches are as large as they may be.

    Raises:
        ValueError: the rows of a step cannot be parted evenly.
    """
    size = params.per_device_train_batch_size
    rows = size * params.gradient_accumulation_steps
    if rows % n_processes:
        raise ValueError(f"{rows} rows a step, which {n_processes} processes cannot share evenly")
    own = rows // n_processes
    batch = next(smaller for smaller in range(min(size, own), 0, -1) if own % smaller == 0)
    parts = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": own // batch}
    changed: Params = params.model_copy(update=parts)
    return changed
