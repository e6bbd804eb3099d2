"""Dropout on the output of each attention and each MLP while the whole model is trained.

Source: Srivastava et al. 2014; placed as in Vaswani et al. 2017 (arXiv:1706.03762), section 5.4.
"""

from typing import Any

from pydantic import Field

from harness.errors import CandidateFailed
from harness.regularizers._weights import decoder_layers
from harness.spec import Spec

DRAWS = True


class Params(Spec):
    """`rate` is the share of each output's values that are dropped; the others are scaled up."""

    rate: float = Field(0.1, gt=0, lt=1)


def prepare(model: Any, params: Params) -> None:
    """Add dropout to the output of each layer's attention and MLP in training."""
    from torch.nn.functional import dropout

    def drop(module: Any, inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (dropout(output[0], params.rate), *output[1:])
        return dropout(output, params.rate)

    for layer in decoder_layers(model):
        parts = {  # norms have only vectors
            name: part for name, part in layer.named_children() if any(p.ndim > 1 for p in part.parameters())
        }
        if len(parts) != 2:
            found = f"dropout for layers of {', '.join(parts)}, which are not attention and MLP"
            raise CandidateFailed(found, "no dropout in regularize")
        for part in parts.values():
            part.register_forward_hook(drop)
