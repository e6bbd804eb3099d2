"""Scores of a text's own tokens: their log-probabilities, plain and against all that could stand there.

Invariant: a text is read alone, behind what begins it; what it is batched with changes its scores by rounding
alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from harness.models import oom
from harness.models.batching import Pair, Size, plan
from harness.models.prefix_cache import forget_length, longest_alike

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_NO_ROOM = "out of memory while scoring an item"
_SCORED = Size(64, 1_024)  # texts whose tokens are scored together; each token has a logit of every other
_POSITIONS = 16  # of a text, whose distributions over the vocabulary are in memory at once


class TokenScores(NamedTuple):
    """log p in nats of a text's tokens, in order, and (log p − μ) / σ of each.

    μ and σ are mean and standard deviation of log p of a token that the model itself draws in that place;
    where it is sure of one, the second is 0.
    """

    logprobs: list[float]
    standardized: list[float]


def standardize(logprobs: "torch.Tensor", targets: "torch.Tensor") -> tuple[list[float], list[float]]:
    """Return log p of the targets (n,) under log-probabilities (n, v), plain and standardised.

    Source: Zhang et al. 2024, Min-K%++, https://arxiv.org/abs/2404.02936, equation 4.
    """
    p = logprobs.exp()  # a token that a model rules out has 0, and adds nothing
    mean = (p * logprobs).nan_to_num(0.0).sum(-1)
    variance = (p * (logprobs - mean[:, None]) ** 2).nan_to_num(0.0).sum(-1)
    own = logprobs.gather(-1, targets[:, None])[:, 0]
    return own.tolist(), ((own - mean) / variance.sqrt()).nan_to_num(0.0, 0.0, 0.0).tolist()


def score_tokens(model: "PreTrainedModel", pairs: Sequence[Pair], batch_cost: int) -> list[TokenScores]:
    """Score the tokens of each text behind what begins it, in batches of similar length.

    Beside its tokens a batch costs as many as `batch_cost`.

    Raises:
        CandidateFailed: there is no room for a text.
    """
    out: dict[int, TokenScores] = {}
    lengths = [len(context) + len(own) for context, own in pairs]
    alike = longest_alike(model.config)
    short = [i for i, length in enumerate(lengths) if length < alike]
    batches = [[short[i] for i in batch] for batch in plan([lengths[i] for i in short], _SCORED, batch_cost)]
    for batch in [*batches, *([i] for i, length in enumerate(lengths) if length >= alike)]:
        forget_length(model)
        with oom.explain_out_of_memory(_NO_ROOM, "shorter items"):
            out.update(zip(batch, _score_together(model, [pairs[i] for i in batch]), strict=True))
    return [out[i] for i in range(len(pairs))]


def _score_together(model: "PreTrainedModel", pairs: Sequence[Pair]) -> list[TokenScores]:
    """Score texts in one pass; padding stands behind them, where no text sees it."""
    import torch

    texts = [(*context, *own) for context, own in pairs]
    longest = max(map(len, texts))
    rows = [ids + ids[-1:] * (longest - len(ids)) for ids in texts]
    padded = torch.tensor(rows, device=model.device)  # (b, t)
    with torch.inference_mode():
        logits = model(input_ids=padded, use_cache=False).logits  # (b, t, v)
        places = [(len(context), len(context) + len(own)) for context, own in pairs]
        return [
            _scores(of[start - 1 : end - 1], ids[start:end])
            for of, ids, (start, end) in zip(logits, padded, places, strict=True)
        ]


def _scores(logits: "torch.Tensor", targets: "torch.Tensor") -> TokenScores:
    """Score the targets (n,) by the logits before each of them (n, v), some at a time."""
    slices = zip(logits.split(_POSITIONS), targets.split(_POSITIONS), strict=True)
    scored = [standardize(rows.float().log_softmax(-1), wanted) for rows, wanted in slices]
    return TokenScores(*([x for values in part for x in values] for part in zip(*scored, strict=True)))
