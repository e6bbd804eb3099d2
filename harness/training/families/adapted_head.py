"""Adapters of the output head (`lm_head`), which no training here trains.

Source: TRL's trainers refuse them, as their losses multiply hidden states by the head's own matrix; a model
that classifies or rewards has another head.
"""

from typing import Any

ADAPTED_HEAD = "an adapter of lm_head, or of embeddings that it is tied to, which no training here trains"


def adapts_head(model: Any) -> bool:
    """Tell whether an adapter lies on the output head of a model of PEFT's."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return isinstance(model.get_output_embeddings(), BaseTunerLayer)
