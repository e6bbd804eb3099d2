"""Decoder layers of a model, whatever its architecture calls them.

Invariant: they are found by what they are, not by a name.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def decoder_layers(model: Any) -> "nn.ModuleList":
    """Return the longest list of modules of a model: its layers, whatever they are called."""
    from torch import nn

    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
