"""Prefix KV cache: keys and values of shared prompt prefixes, computed once and never modified.

Invariant: a prefix is reused only if all its tokens are equal, so results do not depend on earlier prompts.
"""

from collections import OrderedDict
from collections.abc import Sequence
from math import inf
from typing import Any

from harness.models.batching import Tokens
from harness.models.later import Cache, Config, Model, torch, transformers
from harness.models.out_of_memory import OUT_OF_MEMORY, ran_out_of_memory

# Bytes of keys and values that are kept for later calls: the shots of some fifty subjects of a small model.
_KEPT = 1 << 30


def windows(config: Config) -> tuple[int, ...] | None:
    """Return the sliding window in tokens of each layer, 0 for layers that attend to everything.

    None if no custom mask is correct: a layer keeps other state than keys, windows differ, or attention
    depends on the row (GPT-Neo, Doge) or on preceding images (GIT).
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    text = config.get_text_config(decoder=True)
    layers: Sequence[Any] = transformers.DynamicCache(config=config).layers
    chunked = getattr(text, "attention_chunk_size", None)
    by_row = hasattr(text, "keep_window_size") or "local" in (getattr(text, "attention_layers", None) or ())
    by_image = hasattr(text, "num_image_with_embedding")
    plain = set(map(type, layers)) <= {DynamicLayer, DynamicSlidingWindowLayer}
    if not layers or chunked or by_row or by_image or not plain:
        return None
    sizes = tuple(int(layer.sliding_window) if layer.is_sliding else 0 for layer in layers)
    return sizes if len({*sizes} - {0}) <= 1 else None


def longest_alike(config: Config) -> float:
    """Return from how many tokens on positions are rotated by the longest sequence of a pass; inf: never."""
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    by_layer_type = [section for section in rope.values() if isinstance(section, dict)]  # where layers differ
    longest = inf
    for section in (rope, *by_layer_type):
        if (kind := section.get("rope_type")) in ("longrope", "dynamic"):
            original = section.get("original_max_position_embeddings") if kind == "longrope" else None
            longest = min(longest, original or text.max_position_embeddings)
    return longest


def forget_length(model: Model) -> None:
    """Read one token, which resets a model that scales positions by the longest length seen."""
    if longest_alike(model.config) < inf:
        with torch.inference_mode():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), use_cache=False)


def additive_mask(model: Model, visible: "torch.Tensor") -> "torch.Tensor":
    """Return the additive mask (b, 1, n, t) for n queries and t keys, from the `visible` keys (b, n, t)."""
    return torch.where(visible, 0.0, torch.finfo(model.dtype).min).to(model.dtype)[:, None]


def cut_to_windows(
    mask: "torch.Tensor", positions: "torch.Tensor", places: "torch.Tensor", sizes: Sequence[int]
) -> "torch.Tensor | dict[str, torch.Tensor]":
    """Restrict a mask (b, 1, n, t) to the layers' windows, in the form that transformers takes.

    Queries are at `positions` (b, n) and keys at `places` (b, t) of their sequence. If only some layers have
    a window, there is a mask for each of transformers' layer types.
    """
    from transformers.masking_utils import sliding_window_overlay

    if not any(sizes):
        return mask
    is_near: Any = sliding_window_overlay(max(sizes))
    near = is_near(0, 0, positions[:, None, :, None], places[:, None, None])
    windowed = mask.masked_fill(~near, torch.finfo(mask.dtype).min)
    return windowed if all(sizes) else {"full_attention": mask, "sliding_attention": windowed}


class PrefixCache:
    """Keys and values of the newest prefixes of one model, which must keep all keys.

    Those of a `soft` prompt precede every prefix, whose first ids are then `virtual_ids`.
    """

    def __init__(self, model: Model, kept_bytes: int = _KEPT, soft: Cache | None = None) -> None:
        self._model, self._kept_bytes, self._soft = model, kept_bytes, soft
        self.windows, self.longest_alike = windows(model.config), longest_alike(model.config)
        # Whether prompts of unequal length must be answered separately; None until tested.
        self.is_apart: bool | None = None
        # Placeholder ids outside the vocabulary, which begin every prefix and are never read.
        self.virtual_ids = tuple(range(-int(soft.get_seq_length()), 0)) if soft else ()
        self._read: OrderedDict[Tokens, Cache] = OrderedDict()

    def read(self, ids: Sequence[int]) -> Cache:
        """Return the keys of a prefix, computed if not kept; out of memory, other prefixes are dropped."""
        key = tuple(ids)
        cache = self._read.pop(key, None)
        try:
            cache = cache or self._pass(key)
        except OUT_OF_MEMORY as error:
            if not ran_out_of_memory(error) or not self.forget():
                raise
        if cache is None:
            # Outside the except clause, where the error would still hold the computed tensors.
            torch.cuda.empty_cache()
            cache = self._pass(key)
        self._read[key] = cache
        while len(self._read) > 1 and sum(map(_n_bytes, self._read.values())) > self._kept_bytes:
            self._read.popitem(last=False)
        return cache

    def forget(self) -> bool:
        """Free the memory of all kept prefixes; tell whether there were any."""
        had_any = bool(self._read)
        self._read.clear()
        return had_any

    def _pass(self, ids: Tokens) -> Cache:
        cache = row_cache(self._model, self._soft, 1)
        new_ids = ids[len(self.virtual_ids) :]
        if not new_ids:
            return cache
        rows = torch.tensor([new_ids], device=self._model.device)
        with torch.inference_mode():
            self._model(input_ids=rows, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache


def empty_cache(model: Model, room: int = 0) -> Cache:
    """Return a cache that keeps all keys in each layer; with `room` for tokens it is filled in place."""
    from transformers.cache_utils import DynamicLayer, StaticLayer

    n_layers = len(windows(model.config) or ())
    return transformers.Cache(layers=[StaticLayer(room) if room else DynamicLayer() for _ in range(n_layers)])


def row_cache(model: Model, prefix: Cache | None, n_rows: int) -> Cache:
    """Return a cache of n rows that all start with the prefix; extending it leaves the prefix unchanged."""
    cache = empty_cache(model)
    layers: Sequence[Any] = cache.layers
    prefix_layers: Sequence[Any] = prefix.layers if prefix else ()
    for layer, prefix_layer in zip(layers, prefix_layers, strict=False):
        layer.lazy_initialization(prefix_layer.keys, prefix_layer.values)
        layer.keys = prefix_layer.keys.expand(n_rows, -1, -1, -1)
        layer.values = prefix_layer.values.expand(n_rows, -1, -1, -1)
    return cache


def _n_bytes(cache: Cache) -> int:
    layers: Sequence[Any] = cache.layers
    return sum(x.nbytes for layer in layers for x in (layer.keys, layer.values))
