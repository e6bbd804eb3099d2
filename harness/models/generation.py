"""Generation, greedy or sampled: prompts are read in small batches and answered in large ones.

Invariant: batches depend on the prompts' lengths alone. Finished rows leave a batch in fp32 only: in half
precision another shape may round to another token. What is sampled for a prompt depends on its seed alone.
Source: Holtzman et al. 2020, arXiv:1904.09751, for `top_p`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

from harness.models import prefix_cache
from harness.models.batching import CPU_COSTS, PassCosts, Size, Tokens, count_shared_prefix, plan
from harness.models.cpu_kernels import chunk_attention
from harness.models.later import Cache, Model, torch
from harness.models.loglikelihood import AGREEMENT_NATS, UNSUPPORTED
from harness.models.out_of_memory import ran_out_of_memory
from harness.records import Limits

# Tells for each row of new tokens (b, n) whether it stops there (b,).
Stopped = Callable[["torch.Tensor"], "torch.Tensor"]
# Picks the next tokens (b,) of rows (b,) from their logits (b, v) at a step, counted from 0.
Pick = Callable[["torch.Tensor", "torch.Tensor", int], "torch.Tensor"]

# In fp32, finished rows leave a batch when at most this share is left, because all keys are copied then.
_WORTH_COPYING = 0.75


class PromptReader(NamedTuple):
    """Model with the limits of its batches, its prefix cache, scoring engine and pass costs."""

    model: Model
    size: Size
    prefixes: prefix_cache.PrefixCache
    engine: str = "packed"
    costs: PassCosts = CPU_COSTS


def pick_likeliest(logits: "torch.Tensor", rows: "torch.Tensor", step: int) -> "torch.Tensor":
    """Pick the likeliest token of each row."""
    return logits.max(-1).indices  # four times as fast as argmax in bf16


class Continuation(NamedTuple):
    """Limits of a continuation: most new tokens, end tokens (the first pads), and how tokens are picked."""

    max_new_tokens: int
    ends: Sequence[int]
    stopped: Stopped
    pick: Pick = pick_likeliest


def pick_at_random(limits: Limits, seeds: Sequence[int]) -> Pick:
    """Return a function that samples the tokens of each row, from one uniform number per possible token.

    The number selects by cumulative probability, over all tokens by id, or the likeliest that have `top_p`.
    """
    import numpy as np

    draws = np.array([np.random.default_rng(seed).random(limits.max_new_tokens) for seed in seeds])
    uniforms = torch.tensor(draws, dtype=torch.float32)  # (b, n)

    def pick(logits: "torch.Tensor", rows: "torch.Tensor", step: int) -> "torch.Tensor":
        chances = torch.softmax(logits.float() / limits.temperature, -1)
        uniform = uniforms.to(logits.device)[rows, step][:, None]
        if limits.top_p == 1:
            return _fall(chances, uniform)
        chances, ids = chances.sort(dim=-1, descending=True, stable=True)
        outside = chances.cumsum(-1) - chances >= limits.top_p
        return ids.gather(-1, _fall(chances.masked_fill(outside, 0.0), uniform)[:, None])[:, 0]

    return pick


def _fall(chances: "torch.Tensor", uniform: "torch.Tensor") -> "torch.Tensor":
    """Return where numbers in [0, 1) (b, 1) fall in the cumulative sum of chances (b, v), of any total."""
    total = chances.cumsum(-1)
    index = (total <= uniform * total[:, -1:]).sum(-1)
    # Rounding may put a number beyond the last token with a positive chance.
    return index.minimum(total.shape[-1] - 1 - (chances.flip(-1) > 0).int().argmax(-1))


def answers(reader: PromptReader, prompts: Sequence[Tokens], how: Continuation) -> list[list[int]]:
    """Return the new token ids of each prompt of one batch.

    A model that does not keep all keys, or has windows and takes no custom masks, answers each prompt by
    transformers' `generate`. A model whose answers change in a batch with longer prompts, or that scales
    positions by the length of a batch, answers each prompt alone.
    """
    prefixes = reader.prefixes
    with torch.inference_mode():
        longest = max(map(len, prompts)) + how.max_new_tokens
        if longest >= prefixes.longest_alike and not prefixes.virtual_ids:
            return _answer_each_by_generate(reader.model, prompts, how)
        if prefixes.is_apart is None:
            prefixes.is_apart = reader.engine != "packed" and _answers_apart(reader, how.ends)
        if prefixes.is_apart:
            return _answer_each_by_generate(reader.model, prompts, how)
        return _together(reader, prompts, how)


def _together(reader: PromptReader, prompts: Sequence[Tokens], how: Continuation) -> list[list[int]]:
    windows = reader.prefixes.windows
    if windows is None or (any(windows) and reader.engine != "packed"):
        return _answer_by_generate(reader.model, prompts, how)
    with chunk_attention(reader.model):
        # The keys lie as [shared prefix | padding | the prompt's own | room for new tokens]; the places that
        # are `seen` (b, t) hold a token of the row.
        model, size, prefixes, _, costs = reader
        shared = count_shared_prefix(prompts, len(prefixes.virtual_ids))
        prefix = prefixes.read(prompts[0][:shared]) if shared else None
        suffixes = [prompt[shared:] for prompt in prompts]
        end = shared + max(map(len, suffixes))
        seen = torch.zeros((len(prompts), end + how.max_new_tokens), dtype=torch.bool, device=model.device)
        seen[:, :shared] = True
        first = torch.zeros(len(prompts), dtype=torch.long, device=model.device)
        cache = prefix_cache.empty_cache(model, end + how.max_new_tokens)
        layers: Sequence[Any] = cache.layers
        for group in plan([len(p) for p in suffixes], size, costs.reading, costs.keys, shared):
            width = max(len(suffixes[i]) for i in group)
            ids = torch.zeros((len(group), width), dtype=torch.long)
            for row, i in enumerate(group):
                ids[row, width - len(suffixes[i]) :] = torch.tensor(suffixes[i])
                seen[i, end - len(suffixes[i]) : end] = True
            rows = torch.tensor(group, device=model.device)
            mask = torch.cat([seen[rows, :shared], seen[rows, end - width : end]], 1).long()
            places = (mask.cumsum(1) - 1).clamp(min=0)  # no position may be −1
            seeing: Any = mask
            if any(windows):  # transformers' masks would count the padding in between
                order = torch.arange(mask.shape[1], device=mask.device)
                visible = mask.bool()[:, None] & (order <= order[shared:, None])
                seeing = prefix_cache.cut_to_windows(
                    prefix_cache.additive_mask(model, visible), places[:, shared:], places, windows
                )
            group_cache = prefix_cache.row_cache(model, prefix, len(group))
            logits = _read_next_logits(model, ids.to(model.device), seeing, places[:, shared:], group_cache)
            first[rows] = how.pick(logits, rows, 0)
            group_layers: Sequence[Any] = group_cache.layers
            for layer, full in zip(group_layers, layers, strict=True):
                if not full.is_initialized:
                    whole = (x[:1].expand(len(prompts), -1, -1, -1) for x in (layer.keys, layer.values))
                    full.lazy_initialization(*whole)
                    full.cumulative_length.fill_(end)
                start, row_ids = end - (layer.keys.shape[2] - shared), rows.to(layer.keys.device)
                for target, source in ((full.keys, layer.keys), (full.values, layer.values)):
                    target[row_ids, :, :shared] = source[:, :, :shared]
                    target[row_ids, :, start:end] = source[:, :, shared:]
        # One token per row at a time, until all rows have ended or the limit is reached.
        max_new_tokens, ends, stopped, pick = how
        ending = torch.tensor(ends, device=first.device)
        positions = seen.sum(1)
        order = torch.arange(seen.shape[1], device=first.device)
        places = torch.where(order < end, seen.cumsum(1) - 1, order - end + positions[:, None])
        mask = prefix_cache.additive_mask(model, seen[:, None])  # (b, 1, 1, t)
        rows = torch.arange(len(first), device=first.device)
        new = first[:, None]  # (b, n)
        new_ids = torch.full((len(first), max_new_tokens), ends[0], device=first.device)
        new_ids[:, 0] = first
        is_done = torch.isin(first, ending) | stopped(new)
        worth = _WORTH_COPYING if model.dtype == torch.float32 else 0.0
        while new.shape[1] < max_new_tokens and not is_done.all():
            if (is_active := ~is_done).sum() <= worth * len(rows):
                for layer in layers:
                    layer.keys, layer.values = layer.keys[is_active], layer.values[is_active]
                rows, new, is_done = rows[is_active], new[is_active], is_done[is_active]
                mask, positions, places = mask[is_active], positions[is_active], places[is_active]
            mask[..., end + new.shape[1] - 1] = 0
            newest = (positions + new.shape[1] - 1)[:, None]
            seeing = prefix_cache.cut_to_windows(mask, newest, places, windows)
            logits = _read_next_logits(model, new[:, -1:], seeing, newest, cache)
            token = torch.where(is_done, ending[0], pick(logits, rows, new.shape[1]))
            new_ids[rows, new.shape[1]] = token
            new = torch.cat([new, token[:, None]], 1)
            is_done = is_done | torch.isin(token, ending) | stopped(new)
        return cast(list[list[int]], new_ids[:, : new.shape[1]].tolist())


def _answers_apart(reader: PromptReader, ends: Sequence[int]) -> bool:
    """Tell whether prompts of unequal length fail in one batch, or get other answers than alone."""
    # Bloom takes no custom cache; MPT counts the padding between a shared prefix and the prompt.
    model = reader.model
    n_ids = model.config.get_text_config().vocab_size
    ids = tuple((5 + 7 * i) % n_ids for i in range(128))
    # The prompts share a prefix; in half precision only much padding shows a difference.
    prompts, runs = (ids[:100], ids[:8] + ids[100:104]), list[dict[tuple[int, int], torch.Tensor]]()

    def record(logits: torch.Tensor, rows: torch.Tensor, step: int) -> torch.Tensor:
        logprobs = torch.log_softmax(logits.float(), -1)
        runs[-1] |= {(row, step): logprobs[i] for i, row in enumerate(rows.tolist())}
        return torch.full_like(rows, ids[-1])

    def goes_on(new: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(new), dtype=torch.bool, device=new.device)

    how = Continuation(2, ends, goes_on, record)
    try:
        runs.append({})
        _together(reader._replace(costs=CPU_COSTS), prompts, how)
        runs.append({})
        _answer_each_by_generate(model, prompts, how)
    except UNSUPPORTED as error:
        if ran_out_of_memory(error):
            raise
        return True
    (together, alone), tolerance = runs, AGREEMENT_NATS[model.dtype.itemsize]
    return any((together[key] - alone[key]).abs().mean() > tolerance for key in alone)


def _read_next_logits(
    model: Model,
    ids: "torch.Tensor",
    mask: "torch.Tensor | dict[str, torch.Tensor]",
    positions: "torch.Tensor",
    cache: Cache,
) -> "torch.Tensor":
    """Read more tokens of each row (b, t); return the logits of the next token (b, v)."""
    call: Any = model
    logits: torch.Tensor = call(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits
    return logits[:, -1]


def _answer_by_generate(model: Model, prompts: Sequence[Tokens], how: Continuation) -> list[list[int]]:
    max_new_tokens, ends, stopped, pick = how
    width = max(map(len, prompts))
    ids = torch.tensor([[ends[0]] * (width - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    rows = torch.arange(len(prompts), device=model.device)

    def only_picked(all_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        token = pick(logits, rows, all_ids.shape[1] - width)
        return torch.full_like(logits, -torch.inf).scatter(-1, token[:, None], 0.0)

    generate: Any = model.generate
    output_ids = generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        logits_processor=[only_picked],
        pad_token_id=ends[0],
        eos_token_id=list(ends),
        stopping_criteria=[lambda all_ids, _, **__: stopped(all_ids[:, width:])],
    )
    return cast(list[list[int]], output_ids[:, width:].tolist())


def _answer_each_by_generate(model: Model, prompts: Sequence[Tokens], how: Continuation) -> list[list[int]]:
    """Answer each prompt alone by transformers' `generate`, without padding."""

    def alone(index: int) -> list[int]:
        def pick_rows(logits: "torch.Tensor", rows: "torch.Tensor", step: int) -> "torch.Tensor":
            return how.pick(logits, rows + index, step)

        prefix_cache.forget_length(model)
        (new,) = _answer_by_generate(model, prompts[index : index + 1], how._replace(pick=pick_rows))
        return new

    new_ids = [alone(index) for index in range(len(prompts))]
    longest = max(map(len, new_ids))
    return [new + [how.ends[0]] * (longest - len(new)) for new in new_ids]
