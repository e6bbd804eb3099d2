"""Training of all parameters of the model, in fp32 by default; saved in the precision in which it is served.

Source: the default learning rate is a tenth of LoRA's, after Biderman et al. 2024 (arXiv:2405.09673).
"""

from typing import Literal

from pydantic import Field

from harness.methods._shared import propose_all_parameters
from harness.plugins import Method
from harness.training import FitContext, SupervisedParams, Weights, fine_tune, made_weights


class Params(SupervisedParams):
    """TRL's names.

    `dtype` is the type of the weights during training. In `bfloat16`, weights, gradients and the state of
    torch's optimisers take half the memory, and changes below some 0.4 % of a weight are lost.
    """

    learning_rate: float = Field(1e-4, gt=0, le=1)
    dtype: Literal["float32", "bfloat16"] = "float32"

    @property
    def trained_in(self) -> str:
        """Precision of the model during training."""
        return "bf16" if self.dtype == "bfloat16" else "fp32"


def fit(context: FitContext, params: Params) -> Weights:
    """Train the model and save it under `model/`."""
    return made_weights(context, "model", fine_tune(context, params, None, context.folder / "model"))


METHOD = Method(
    params=Params,
    fit=fit,
    makes="model",
    trains=True,
    draws_from="train",
    seeded=True,
    hooks=("mix", "prepare", "penalty", "step", "select", "arguments", "smoothing"),
    data_parallel=True,
    published_as="all parameters",
    loops=("training", "tokens", "sft"),
    proposal=propose_all_parameters,
)
