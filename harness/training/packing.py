"""Several training rows in one, as TRL packs them: only where that trains what rows alone would.

Invariant: no row sees another, and enough optimiser steps are left; where either cannot be, rows are not
packed, and why is said.
"""

from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.training.sft import SupervisedParams

FEWEST_STEPS = 100  # a learning rate chosen for unpacked rows needs some to arrive anywhere


def why_not(params: "SupervisedParams", lengths: Sequence[int], model: "PreTrainedModel") -> str:
    """Say why rows of these lengths, in tokens, must not be packed; "" where they may be."""
    if (steps := steps_left(params, lengths)) < FEWEST_STEPS:
        return f"would leave {steps} optimiser steps, fewer than {FEWEST_STEPS}"
    if not keeps_rows_apart(model):
        return "would let a row see others: this model does not keep packed rows apart"
    return ""


def steps_left(params: "SupervisedParams", lengths: Sequence[int]) -> int:
    """Count the optimiser steps of a training whose packs are filled to the last token."""
    if params.max_steps > 0:
        return params.max_steps
    n_packs = ceil(sum(lengths) / params.max_length)
    batches = ceil(n_packs / params.per_device_train_batch_size)
    return ceil(ceil(batches / params.gradient_accumulation_steps) * params.num_train_epochs)


def keeps_rows_apart(model: "PreTrainedModel") -> bool:
    """Tell whether a row that follows another in one sequence is read alike, whatever the other says."""
    import torch

    first = torch.arange(1, 5), torch.arange(5, 9)
    second, positions = torch.tensor([3, 1, 2]), torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    with torch.no_grad():
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


def known(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what the model reads of a batch.

    transformers tells packed rows apart by their positions, and only where there is no mask; padding is
    then a row of one token each.
    """
    seen_by = "position_ids" if "position_ids" in inputs else "attention_mask"
    return {name: inputs[name] for name in ("input_ids", seen_by)}
