"""Packing of training rows into sequences: whether a row sees another there, and how many steps are left.

Invariant: rows are packed only where no row sees another and enough steps are left; else why is said.
"""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from harness.training.parallel import name_sharding
from harness.training.trainer import LoopParams

if TYPE_CHECKING:
    from transformers import PreTrainedModel


FEWEST_STEPS = 100  # a learning rate chosen for unpacked rows needs some to arrive anywhere


def check_packing(params: LoopParams, lengths: Sequence[int], model: "PreTrainedModel") -> str:
    """Say why rows of these lengths, in tokens, must not be packed; "" where they may be."""
    if (steps := count_steps(params, lengths)) < FEWEST_STEPS:
        return f"would leave {steps} optimiser steps, fewer than {FEWEST_STEPS}"
    if name_sharding():
        return "may let a row see others: that cannot be told of a sharded model"
    if not keeps_rows_apart(model, flash=joins_packs(model)):
        return "would let a row see others: this model does not keep packed rows apart"
    return ""


def count_steps(params: LoopParams, lengths: Sequence[int]) -> int:
    """Count the optimiser steps of a training whose packs are filled to the last token."""
    return count_row_steps(params, ceil(sum(lengths) / params.max_length))


def count_row_steps(params: LoopParams, n_rows: int) -> int:
    """Count the optimiser steps of a training on so many rows or packs, in one process."""
    if params.max_steps > 0:
        return params.max_steps
    return ceil(count_epoch_steps(params, n_rows) * params.num_train_epochs)


def count_epoch_steps(params: LoopParams, n_rows: int) -> int:
    """Count the optimiser steps of an epoch of so many rows or packs, in one process."""
    batches = ceil(n_rows / params.per_device_train_batch_size)
    return ceil(batches / params.gradient_accumulation_steps)


def joins_packs(model: "PreTrainedModel") -> bool:
    """Tell whether a model attends by FlashAttention, which reads a batch of packs as one row and no fp32."""
    return "flash" in str(model.config._attn_implementation)  # noqa: SLF001  (it has no getter)


def keeps_rows_apart(model: "PreTrainedModel", *, flash: bool = False) -> bool:
    """Tell whether a row that follows another in one sequence is read alike, whatever the other says.

    With `flash` it is read in bf16, which FlashAttention needs.
    """
    import torch

    first = torch.arange(1, 5), torch.arange(5, 9)
    second, positions = torch.tensor([3, 1, 2]), torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    with torch.no_grad(), torch.autocast(str(model.device.type), torch.bfloat16, enabled=flash):
        one, other = (
            model(
                input_ids=torch.cat([row, second])[None].to(model.device),
                position_ids=positions.to(model.device),
                use_cache=False,
            ).logits[0, -3:]
            for row in first
        )
    return torch.allclose(one, other, rtol=0.01, atol=0.01)


def batch_packs(collator: Any) -> None:
    """Keep the packs of a batch in rows of their own, where attention would else be of all with all.

    FlashAttention wants them in one row, which is how TRL joins them.
    """
    collator.padding_free, collator.return_position_ids = False, True
