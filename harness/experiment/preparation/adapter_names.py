"""Names that a new low-rank adapter is put on, held against the base's modules and parameters.

Invariant: the base is built without its weights, and only where names are written: `all-linear` fits any.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from harness.errors import Problem, did_you_mean
from harness.evaluation.candidates import ResolvedCandidate
from harness.models.hub import ModelSource, is_packed
from harness.training import LoraParams
from harness.training.lora import lora_config

_EXPECTED = "names that are in the base"


def name_problems(candidate: ResolvedCandidate) -> Iterator[Problem]:
    """Yield that modules or parameters which a new adapter names are not there, or cannot be adapted."""
    if candidate.recipe.weights_of or candidate.init or is_packed(candidate.base):
        return
    for trial in candidate.trials:
        params = trial.method.params(**trial.source.params)
        if not trial.method.trains or getattr(params, "encoder", None):
            continue  # of another model than the base
        if found := [*_problems(params, params.model_dump(), candidate.base, f"candidate {candidate.name}")]:
            yield from found
            return


def _problems(params: Any, written: Mapping[str, Any], base: ModelSource, where: str) -> Iterator[Problem]:
    tensors = written.get("target_parameters") or ()
    modules = isinstance(params, LoraParams) and (
        params.target_modules != "all-linear" or params.exclude_modules
    )
    model = _without_weights(base) if tensors or modules else None
    if model is None:
        return
    known = [name for name, _ in model.named_parameters()]
    for name in tensors:
        if not any(one == name or one.endswith(f".{name}") for one in known):
            ends = {re.sub(r"^.*\.\d+\.", "", one) for one in known}
            yield Problem(where, f"target_parameters: {name}", _EXPECTED, did_you_mean(name, ends))
            return
    if isinstance(params, LoraParams):
        from peft import get_peft_model

        try:
            get_peft_model(model, lora_config(params))
        except (TypeError, ValueError, AttributeError, re.error) as error:
            yield Problem(where, " ".join(str(error).split()), _EXPECTED, "mend params")


def _without_weights(base: ModelSource) -> Any:
    """Build the base on the meta device; None where transformers cannot, which loading it will say."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return kind.from_config(AutoConfig.from_pretrained(base.path, trust_remote_code=False))
    except (OSError, ValueError, KeyError, ImportError):
        return None
