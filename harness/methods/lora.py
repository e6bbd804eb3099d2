"""Low-rank adapters on all linear layers, trained with TRL on the completions.

Invariant: only the adapter is trained; the base stays as it was loaded.

Source: Hu et al. 2021 (arXiv:2106.09685); defaults (all linear layers, a learning rate some
ten times that of full fine-tuning) after Biderman et al. 2024 (arXiv:2405.09673).
"""

from pydantic import Field

from harness.training import FitContext, SupervisedParams, Weights, adapter_digest, supervised

NEEDS = ("train",)


class Params(SupervisedParams):
    """PEFT's names beside TRL's; `lora_alpha` defaults to twice the rank."""

    r: int = Field(16, ge=1, le=1024)
    lora_alpha: int | None = Field(None, ge=1)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"
    use_dora: bool = False
    use_rslora: bool = False


def fit(context: FitContext, params: Params) -> Weights:
    """Train the adapter and save it under `adapter/`."""
    from peft import LoraConfig

    config = LoraConfig(
        r=params.r,
        lora_alpha=params.lora_alpha or 2 * params.r,
        lora_dropout=params.lora_dropout,
        target_modules=params.target_modules,
        use_dora=params.use_dora,
        use_rslora=params.use_rslora,
        task_type="CAUSAL_LM",
    )
    loop = params.model_dump(include=set(SupervisedParams.model_fields))
    folder = context.folder / "adapter"
    training = supervised(context, SupervisedParams(**loop), config, folder)
    return Weights("adapter", adapter_digest(folder, context.source.weights_digest), context.folder, training)
