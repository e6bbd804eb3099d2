"""Names that a new low-rank adapter is put on, held against the base's modules and parameters.

Invariant: the base is built without its weights, and only where names are written: `all-linear` fits any.
"""

import re
from collections.abc import Iterator
from typing import Any

from harness.errors import Problem, did_you_mean
from harness.models.hub import ModelSource
from harness.spec import Spec
from harness.training.lora import LoraParams, lora_config

_EXPECTED = "names that are in the base"


def unknown_names(params: Spec, base: ModelSource, where: str) -> Iterator[Problem]:
    """Yield that modules or parameters which a new adapter names are not there, or cannot be adapted."""
    tensors = params.model_dump().get("target_parameters") or ()
    modules = isinstance(params, LoraParams) and (
        params.target_modules != "all-linear" or bool(params.exclude_modules)
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
