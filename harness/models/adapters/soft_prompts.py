"""Soft prompts of PEFT (prompt tuning, P-tuning, prefix tuning): keys and values that stand before a prompt.

Invariant: what follows is computed as by PEFT's own forward pass; the base model is not changed.
Source: Lester et al. 2021 (arXiv:2104.08691), Liu et al. 2021 (arXiv:2103.10385), Li and Liang 2021
(arXiv:2101.00190).
"""

from typing import TYPE_CHECKING, Any

from harness.errors import CandidateFailed
from harness.models.prefix_cache import empty_cache, windows

if TYPE_CHECKING:
    from transformers import Cache

_AS_KEYS = ("PREFIX_TUNING", "CARTRIDGE")


def soft_prompt(model: Any, engine: str) -> "Cache":
    """Return the keys and values of the soft prompt of a PEFT model, one row.

    Raises:
        CandidateFailed: the base does not keep all keys, or ignores the masks that packed rows need.
    """
    import torch

    base = model.get_base_model()
    if engine != "packed" or any(windows(base.config) or ()):
        reason = "a soft prompt needs a base whose layers all attend to everything that was read"
        raise CandidateFailed(reason, "another peft_type, as LORA")
    with torch.inference_mode():
        learned = model.get_prompt(batch_size=1)
        if model.active_peft_config.peft_type in _AS_KEYS:
            keys: Cache = learned
            return keys
        cache = empty_cache(base)
        embeddings = learned.to(base.get_input_embeddings().weight.dtype)
        base(inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache
