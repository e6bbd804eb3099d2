"""Large libraries that are imported when one of their names is first used, as in `torch.cuda`."""

from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.progress import quiet_environment

if TYPE_CHECKING:
    import datasets as datasets
    import peft as peft
    import safetensors.torch as _safetensors
    import torch as torch
    import transformers as transformers
    import trl as trl

    safetensors = _safetensors

    Cache = transformers.Cache
    Config = transformers.PretrainedConfig
    Model = transformers.PreTrainedModel
    Tokenizer = transformers.PreTrainedTokenizerBase
else:

    class _Library:
        """Stand-in for a library, which is imported when one of its names is read."""

        def __init__(self, name: str) -> None:
            self._name = name

        @cached_property
        def _module(self) -> Any:
            quiet_environment()
            return import_module(self._name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._module, name)

    Cache = Config = Model = Tokenizer = Any  # only type checkers need the types
    _NAMES = ("datasets", "peft", "safetensors.torch", "torch", "transformers", "trl")
    datasets, peft, safetensors, torch, transformers, trl = map(_Library, _NAMES)
