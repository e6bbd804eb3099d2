"""The shared training loops, driven by TRL; they name no method.

Invariant: training loads its own fresh base and leaves only finished weights behind; what is
evaluated later is what was saved.
"""

from harness.training.adapters import LoraParams, adapter_digest, lora_config, model_digest
from harness.training.context import FitContext, Weights
from harness.training.preferences import PreferenceParams, preference
from harness.training.supervision import SupervisedParams, supervised

__all__ = [
    "FitContext",
    "LoraParams",
    "PreferenceParams",
    "SupervisedParams",
    "Weights",
    "adapter_digest",
    "lora_config",
    "model_digest",
    "preference",
    "supervised",
]
