"""Start of LoRA at the directions in which the activations of the training rows vary (EVA).

Invariant: where no batch has the tokens that the decomposition needs, the training fails before it begins.
Source: Paischer et al. 2024 (arXiv:2410.07170); the decomposition is PEFT's.
"""

from typing import Any

from harness.errors import CandidateFailed


def begin_eva(trainer: Any) -> None:
    """Set the adapter of a trainer to begin so.

    Raises:
        CandidateFailed: no batch has enough learnt tokens.
    """
    from peft import initialize_lora_eva_weights

    _refuse_few_tokens(trainer)
    initialize_lora_eva_weights(trainer.model, trainer.get_train_dataloader())


def _refuse_few_tokens(trainer: Any) -> None:
    """Refuse batches without the tokens that the decomposition needs: PEFT would wait for one for ever."""
    import torch
    from peft.tuners.lora.eva import prepare_model_inputs_fn_language_modeling as learnt_tokens

    config = trainer.model.peft_config["default"]
    rank = max(config.r, *config.rank_pattern.values()) if config.rank_pattern else config.r
    n = round(rank * config.eva_config.rho)
    with torch.random.fork_rng(devices=[]):  # PEFT reads the same batches
        batches = (dict(batch) for batch in trainer.get_train_dataloader())
        most = max((len(learnt_tokens(batch, config)) for batch in batches), default=0)
    if most < n:
        found = f"EVA of rank {rank} needs {n} learnt tokens in a batch, and the most that one has is {most}"
        raise CandidateFailed(found, "a larger params.per_device_train_batch_size, or a smaller r")
