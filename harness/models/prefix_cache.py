"""Prefix KV cache: keys and values of shared prompt prefixes, read once, never changed by what follows.

Invariant: a prefix is reused where all its tokens are equal, so what is computed after it does not
depend on earlier prompts.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.models import oom

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

# Bytes of keys and values that are kept for later calls: the shots of some fifty subjects of a small model.
_KEPT = 1 << 30


def keeps_all_keys(model: "PreTrainedModel") -> bool:
    """Say whether every layer attends to all that was read: neither recurrent nor by a sliding window."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


class PrefixCache:
    """Keys and values of prefixes under one model, the newest kept; the model has to keep all keys.

    Those of a `soft` prompt stand before every prefix, whose first ids are then `virtual_ids`.
    """

    def __init__(
        self, model: "PreTrainedModel", kept_bytes: int = _KEPT, soft: "Cache | None" = None
    ) -> None:
        self._model, self._kept_bytes, self._soft = model, kept_bytes, soft
        # No ids of the vocabulary, and never read: every prefix holds them.
        self.virtual_ids = tuple(range(-int(soft.get_seq_length()), 0)) if soft else ()
        self._read: OrderedDict[tuple[int, ...], Cache] = OrderedDict()

    def read(self, ids: Sequence[int]) -> "Cache":
        """Return the keys of a prefix, read now where they are not kept."""
        key = tuple(ids)
        cache = self._read.pop(key, None) or self._read_now(key)
        self._read[key] = cache
        while len(self._read) > 1 and sum(map(_n_bytes, self._read.values())) > self._kept_bytes:
            self._read.popitem(last=False)
        return cache

    def forget(self) -> bool:
        """Free the memory of all that is kept; say whether there was anything."""
        kept = bool(self._read)
        self._read.clear()
        return kept

    def _read_now(self, ids: tuple[int, ...]) -> "Cache":
        """Read a prefix; out of memory, once more when all others are forgotten."""
        import torch

        try:
            return self._pass(ids)
        except oom.ERRORS as error:
            if not oom.ran_out(error) or not self.forget():
                raise
        # Outside of the clause, in which the error still holds what was computed until then.
        torch.cuda.empty_cache()
        return self._pass(ids)

    def _pass(self, ids: tuple[int, ...]) -> "Cache":
        import torch

        cache = row_cache(self._model, self._soft, 1)
        own = ids[len(self.virtual_ids) :]
        if not own:
            return cache
        with torch.inference_mode():
            self._model(
                input_ids=torch.tensor([own], device=self._model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return cache


def row_cache(model: "PreTrainedModel", prefix: "Cache | None", n_rows: int) -> "Cache":
    """Return a cache of so many rows that have all read the prefix; growing it leaves that untouched."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    layers: Sequence[Any] = cache.layers
    known: Sequence[Any] = prefix.layers if prefix else ()
    for layer, read in zip(layers, known, strict=False):
        layer.lazy_initialization(read.keys, read.values)
        layer.keys = read.keys.expand(n_rows, -1, -1, -1)
        layer.values = read.values.expand(n_rows, -1, -1, -1)
    return cache


def _n_bytes(cache: "Cache") -> int:
    layers: Sequence[Any] = cache.layers
    return sum(x.nbytes for layer in layers for x in (layer.keys, layer.values))
