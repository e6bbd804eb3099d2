"""Dropout on the output of each attention and each MLP while the whole model is trained.

Invariant: evaluation drops nothing, and what is saved is the model without it. Adapters have `lora_dropout`.

Source: Srivastava et al. 2014; at the place of Vaswani et al. 2017 (arXiv:1706.03762), section 5.4.
"""

from typing import Any

from pydantic import Field

from harness.regularizers._layers import decoder_layers
from harness.spec import Spec


class Params(Spec):
    """`rate` is the share of each output's values that are dropped; the others are scaled up."""

    rate: float = Field(0.1, gt=0, lt=1)


def prepare(model: Any, params: Params) -> None:
    """Let the attention and the MLP of each layer drop values of their output in training."""
    from torch.nn.functional import dropout

    def drop(module: Any, inputs: Any, output: Any) -> Any:
        if not module.training:
            return output
        if isinstance(output, tuple):
            return (dropout(output[0], params.rate), *output[1:])
        return dropout(output, params.rate)

    for layer in decoder_layers(model):
        for part in layer.children():
            if any(parameter.ndim > 1 for parameter in part.parameters()):  # norms have vectors alone
                part.register_forward_hook(drop)
