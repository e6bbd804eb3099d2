"""All parameters of the model, in fp32 while they are trained.

Invariant: what is saved is a whole model folder in safetensors, in the precision it is served in.

Source: the default learning rate is a tenth of LoRA's, after Biderman et al. 2024 (arXiv:2405.09673).
"""

from pydantic import Field

from harness.plugins import Method
from harness.training import FitContext, SupervisedParams, Weights, fine_tune, model_digest


class Params(SupervisedParams):
    """TRL's names."""

    learning_rate: float = Field(1e-4, gt=0, le=1)


def fit(context: FitContext, params: Params) -> Weights:
    """Train the model and save it under `model/`."""
    folder = context.folder / "model"
    training = fine_tune(context, params, None, folder)
    return Weights("model", model_digest(folder, context.source.weights_digest), context.folder, training)


METHOD = Method(
    params=Params,
    fit=fit,
    makes="model",
    trains=True,
    draws_from="train",
    seeded=True,
    hooks=("mix", "prepare", "penalty", "step", "select", "arguments"),
    data_parallel=True,
    loops=("training", "tokens", "sft"),
    # A tenth of the rates of low-rank adapters, but that a very small model needs as much as they do.
    proposal=lambda situation: {
        "sweep": {"learning_rate": [1e-4, 5e-4] if situation.small_base else [1e-5, 2e-5]},
        "replay": 1.0,
    },
)
