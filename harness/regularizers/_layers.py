"""Decoder layers of a model of any architecture.

Invariant: layers are found by their structure, not by name.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def decoder_layers(model: Any) -> "nn.ModuleList":
    """Return the longest list of modules of a model: its decoder layers."""
    from torch import nn

    return max((m for m in model.modules() if isinstance(m, nn.ModuleList)), key=len)
