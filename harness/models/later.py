"""Large libraries, each imported when a name of it is first read, as in `torch.cuda`."""

from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets as datasets
    import peft as peft
    import torch as torch
    import transformers as transformers
    import trl as trl

    Cache = transformers.Cache
    Config = transformers.PretrainedConfig
    Model = transformers.PreTrainedModel
    Tokenizer = transformers.PreTrainedTokenizerBase
else:

    class _Library:
        """A library in whose place its own names can be read."""

        def __init__(self, name: str) -> None:
            self._name = name

        @cached_property
        def _module(self) -> Any:
            return import_module(self._name)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._module, name)

    Cache = Config = Model = Tokenizer = Any  # types are read by type checkers alone
    datasets, peft, torch, transformers, trl = map(
        _Library, ("datasets", "peft", "torch", "transformers", "trl")
    )
