"""Greedy answers of a language model, with what all prompts of a batch begin with read once.

Invariant: batches are cut by the prompts' lengths alone, never by what is answered, so two
candidates that are asked the same are computed in the same shapes.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

Stopping = Callable[..., Any]

# A generated token reads all weights once; on a CPU that takes as long as reading so many tokens.
_STEP_TOKENS = 24
# A shorter beginning costs more to copy than to read.
_WORTH_SHARING = 8


class BatchSize(NamedTuple):
    """The most rows of a batch, and the most tokens with the padding that makes them one length."""

    rows: int
    tokens: int


def batches(lengths: Sequence[int], size: BatchSize, max_new_tokens: int) -> list[list[int]]:
    """Cut the indices of prompts, sorted by length, into the batches that cost least.

    A batch costs its rows at the longest one's length, and for each new token a reading of all
    weights; the cheapest cut is found by dynamic programming over the last batch's first row.
    """
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    cheapest: list[tuple[int, int]] = [
        (0, 0)
    ]  # for the first n prompts: cost, and where the last batch starts
    for n, i in enumerate(order, 1):
        starts = [
            s for s in range(max(0, n - size.rows), n) if s == n - 1 or (n - s) * lengths[i] <= size.tokens
        ]
        costs = [(cheapest[s][0] + (n - s) * lengths[i] + _STEP_TOKENS * max_new_tokens, s) for s in starts]
        cheapest.append(min(costs))
    out: list[list[int]] = []
    end = len(order)
    while end:
        start = cheapest[end][1]
        out.insert(0, order[start:end])
        end = start
    return out


def answers(
    model: "PreTrainedModel",
    prompts: Sequence[tuple[int, ...]],
    pad_id: int,
    max_new_tokens: int,
    stopping: Sequence[Stopping],
) -> list[list[int]]:
    """Return the new token ids of each prompt of one batch, filled up with `pad_id`.

    The shared beginning lies before the padding: [shared | padding | rest], of which positions
    are counted without the padding.
    """
    import torch

    shared = _shared_length(prompts)
    cache = _read(model, prompts[0][:shared], len(prompts)) if shared >= _WORTH_SHARING else None
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id)  # (b, t)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        for part, end in ((prompt[:shared], shared), (prompt[shared:], width)):
            ids[row, end - len(part) : end] = torch.tensor(part, dtype=ids.dtype)
            mask[row, end - len(part) : end] = 1
    generate: Any = model.generate
    with torch.inference_mode():
        made = generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            past_key_values=cache,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=pad_id,
            stopping_criteria=list(stopping),
        )
    new: list[list[int]] = made[:, width:].tolist()
    return new


def _shared_length(prompts: Sequence[tuple[int, ...]]) -> int:
    """Count the tokens that all prompts begin with; each keeps at least one of its own."""
    if len(prompts) < 2:
        return 0
    first, last, most = min(prompts), max(prompts), min(map(len, prompts)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def _read(model: "PreTrainedModel", beginning: Sequence[int], n_rows: int) -> "Cache | None":
    """Read a beginning once and copy it for every row; None where a layer does not keep all keys."""
    import torch
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache(config=model.config)
    if not cache.layers or any(type(layer) is not DynamicLayer for layer in cache.layers):
        return None
    with torch.inference_mode():
        model(
            input_ids=torch.tensor([list(beginning)], device=model.device),
            past_key_values=cache,
            use_cache=True,
        )
    cache.batch_repeat_interleave(n_rows)
    return cache
