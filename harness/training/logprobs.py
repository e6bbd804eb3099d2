"""Log-probabilities of two answers to one prompt, for training on CPUs.

Invariant: logits are made only where an answer's token is predicted; both ways below give the values
that each row alone would give.

Padding, the prompt's own logits and a second reading of the prompt are what TRL's batches of
(chosen, rejected) rows spend most of their time on where answers are short.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

Inputs = dict[str, Any]


def row_by_row(model: Any, inputs: Inputs) -> "torch.Tensor":
    """Return log p in nats of each row's answer given its prompt (2 b,): the chosen, then the rejected."""
    import torch

    answers = inputs["completion_mask"][:, 1:].bool()  # (2 b, t - 1)
    wanted = answers.any(0).nonzero()[:, 0]
    known = {k: inputs[k] for k in ("input_ids", "attention_mask")}
    logits = model(**known, logits_to_keep=wanted, use_cache=False).logits.float()  # (2 b, w, v)
    targets = inputs["input_ids"][:, 1:][:, wanted].masked_fill(~answers[:, wanted], -100)
    losses = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return -losses.view(targets.shape).sum(1)


def sharing_prompts(model: Any, inputs: Inputs) -> "torch.Tensor":
    """Return the same (2 b,), each pair in one row: its prompt once, then both answers, apart by a mask.

    The model has to honour a mask of its caller (`Executor.engine` tells which do).
    """
    import torch

    pairs = _joined(inputs)
    wanted, where = torch.tensor(pairs.sources).unique(return_inverse=True)
    logits = model(
        input_ids=torch.tensor(pairs.ids),
        position_ids=torch.tensor(pairs.positions),
        attention_mask=_mask(pairs.parts, model.get_input_embeddings().weight.dtype),
        logits_to_keep=wanted,
        use_cache=False,
    ).logits  # (b, w, v)
    rows = torch.tensor(pairs.slots) % len(pairs.ids)
    losses = torch.nn.functional.cross_entropy(
        logits[rows, where].float(), torch.tensor(pairs.targets), reduction="none"
    )
    return -torch.zeros(2 * len(pairs.ids)).index_add(0, torch.tensor(pairs.slots), losses)


class _Pairs(NamedTuple):
    """Pairs as rows of t tokens, padded; `parts` are 0 prompt, 1 chosen, 2 rejected, 3 padding.

    `sources`, `targets` and `slots` say of each answer's token which position predicts it, its id,
    and to which of the 2 b answers it belongs.
    """

    ids: list[list[int]]
    positions: list[list[int]]
    parts: list[list[int]]
    sources: list[int]
    targets: list[int]
    slots: list[int]


def _joined(inputs: Inputs) -> _Pairs:
    """Join the rows of each pair at the end of their prompt."""
    lengths = inputs["attention_mask"].sum(1).tolist()
    rows = [ids[:n] for ids, n in zip(inputs["input_ids"].tolist(), lengths, strict=True)]
    b = len(rows) // 2
    starts = inputs["completion_mask"].argmax(1).tolist()
    out = _Pairs([], [], [], [], [], [])
    for i in range(b):
        start, chosen, rejected = starts[i], rows[i][starts[i] :], rows[b + i][starts[i] :]
        out.ids.append([*rows[i], *rejected])
        out.positions.append([*range(len(rows[i])), *range(start, start + len(rejected))])
        out.parts.append([0] * start + [1] * len(chosen) + [2] * len(rejected))
        for slot, answer, first in ((i, chosen, start), (b + i, rejected, len(rows[i]))):
            out.sources.extend([start - 1, *range(first, first + len(answer) - 1)])
            out.targets.extend(answer)
            out.slots.extend([slot] * len(answer))
    width = max(map(len, out.ids))
    for values, filling in ((out.ids, 0), (out.positions, 0), (out.parts, 3)):
        for row in values:
            row.extend([filling] * (width - len(row)))
    return out


def _mask(parts: list[list[int]], dtype: "torch.dtype") -> "torch.Tensor":
    """Return the additive mask (b, 1, t, t): causal; a token sees the prompt and its own answer."""
    import torch

    part = torch.tensor(parts)  # (b, t)
    order = torch.arange(part.shape[1])
    seen = (part[:, None, :] == 0) | (part[:, :, None] == part[:, None, :])
    seen &= order[:, None] >= order
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]
