"""Rows of a batch in one sequence, in which what several rows begin with is read once.

Invariant: each token sees the tokens before it in its own row, at the positions that they have there, so loss
and gradients are those of a row a line. A row shares tokens before its first label only.
"""

from collections.abc import Sequence
from math import inf, isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.cache import memo
from harness.models import common_length
from harness.models.hub import ModelSource, is_packed
from harness.models.prefix_cache import additive_mask, longest_alike, windows
from harness.models.two_layer_copy import ask_copy
from harness.provenance import package_versions, versions_of
from harness.records import digest
from harness.training.trainer import PLAIN_SCORES

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_FEWEST = 8  # tokens that rows share, or they stand on their own
Row = tuple[int, ...]  # token ids, or their labels
_NO_LABEL = -100  # as in transformers
_MOST = isqrt(PLAIN_SCORES)  # tokens of a sequence, of which no more scores are kept than of padded rows
_SAVES = 0.9  # of the padded batch's tokens, at most


class JoinedRows(NamedTuple):
    """Model inputs of joined rows: ids and positions (1, t), a mask (1, 1, t, t), and what is predicted.

    `kept` (n) are the places of the sequence that predict the `targets` (n).
    """

    input_ids: "torch.Tensor"
    position_ids: "torch.Tensor"
    attention_mask: "torch.Tensor"
    kept: "torch.Tensor"
    targets: "torch.Tensor"

    @property
    def inputs(self) -> "dict[str, torch.Tensor]":
        """What the model reads, by transformers' names."""
        return {name: getattr(self, name) for name in ("input_ids", "position_ids", "attention_mask")}


def join_rows(
    model: "PreTrainedModel",
    input_ids: "torch.Tensor",
    attention_mask: "torch.Tensor",
    labels: "torch.Tensor",
) -> JoinedRows | None:
    """Join the rows of a batch (b, t), padded on the right; labels are -100 where nothing is learned.

    None where that saves little, or where the sequence is so long that attention takes more than was saved.
    """
    import torch

    lengths = attention_mask.sum(1).tolist()
    rows, learned = (
        [tuple(row[:length]) for row, length in zip(tensor.tolist(), lengths, strict=True)]
        for tensor in (input_ids, labels)
    )
    ids, positions, kept, targets = list[int](), list[int](), list[int](), list[int]()
    # Of each token: where its part of the sequence starts, and where the part before that does.
    parts: list[tuple[int, int]] = []
    for n_shared, members in _group(rows, learned):
        beginning = len(ids)
        ids += rows[members[0]][:n_shared]
        positions += range(n_shared)
        parts += [(beginning, beginning)] * n_shared
        for member in members:
            row, start = rows[member], len(ids)
            ids += row[n_shared:]
            positions += range(n_shared, len(row))
            parts += [(start, beginning if n_shared else start)] * (len(row) - n_shared)
            at = [place for place, label in enumerate(learned[member]) if place and label != _NO_LABEL]
            kept += [start + place - 1 - n_shared for place in at]
            targets += [learned[member][place] for place in at]
    if len(ids) > min(_MOST, _SAVES * input_ids.numel()):
        return None
    own, before = torch.tensor(parts).T
    seen = ((own == own[:, None]) | (own == before[:, None])).tril()
    mask = additive_mask(model, seen[None])
    predicting, predicted = (torch.tensor(values, dtype=torch.long) for values in (kept, targets))
    return JoinedRows(torch.tensor([ids]), torch.tensor([positions]), mask, predicting, predicted)


def _group(rows: Sequence[Row], labels: Sequence[Row]) -> list[tuple[int, list[int]]]:
    """Return how many tokens groups of rows share (0 of a row alone), and the numbers of their rows."""
    groups: list[tuple[int, list[int]]] = []
    for number, row in enumerate(rows):
        # The token before the first label predicts it, so it is the row's own.
        first_label = next(
            (place for place, label in enumerate(labels[number]) if label != _NO_LABEL), len(row)
        )
        most = max(0, first_label - 1)
        best, gained, joined = -1, 0, 0
        for group, (n_shared, members) in enumerate(groups):
            length = min(n_shared, most, common_length((rows[members[0]], row)))
            gain = len(members) * length - (len(members) - 1) * n_shared
            if length >= _FEWEST and gain > gained:
                best, gained, joined = group, gain, length
        if best < 0:
            groups.append((most, [number]))
        else:
            groups[best] = (joined, [*groups[best][1], number])
    return [(n_shared if len(members) > 1 else 0, members) for n_shared, members in groups]


def can_join(model: Any, path: Path) -> bool:
    """Tell whether a model in training on a CPU reads joined rows as it reads each alone.

    Never where it draws random numbers, where a loss of a mixture of experts counts the tokens of each, or
    where an adapter puts tokens before a row or averages over those of a batch. A small copy of the base in
    the folder `path` tells what its family does.
    """
    import torch

    drops = any(isinstance(m, torch.nn.Dropout) and m.p for m in model.modules())
    counts = getattr(model.config.get_text_config(), "output_router_logits", False)
    adapters = getattr(model, "peft_config", {}).values()
    apart = all(one.peft_type == "LORA" and not getattr(one, "velora_config", None) for one in adapters)
    if model.device.type != "cpu" or drops or counts or not apart:
        return False
    return _joins_by_copy(path)


def joins_rows_of(source: ModelSource) -> bool:
    """Tell whether a base reads joined rows so, remembered, so that an estimate does not load torch."""
    key = digest([source.weights_digest, package_versions(), versions_of("sft")])
    return is_packed(source) or bool(memo("joined_rows", key, lambda: _joins_by_copy(source.path)))


def _joins_by_copy(path: Path) -> bool:
    import torch

    with torch.random.fork_rng():
        return ask_copy(path, _reads_alike) or False


def _reads_alike(copy: Any) -> bool:
    """Tell whether a copy of a base reads two joined rows as it reads each alone, without a draw."""
    import torch

    if any(windows(copy.config) or (1,)) or longest_alike(copy.config) < inf:
        return False
    beginning = list(range(20, 20 + _FEWEST))
    rows = torch.tensor([[*beginning, 1, 2, 3, 4], [*beginning, 5, 6, 7, 8]])
    labels = torch.where(rows < 20, rows, _NO_LABEL)
    labels[:, _FEWEST] = _NO_LABEL
    joined, before = join_rows(copy.train(), rows, torch.ones_like(rows), labels), torch.get_rng_state()
    assert joined is not None
    with torch.no_grad():
        alone = copy(input_ids=rows).logits[:, _FEWEST:-1].flatten(0, 1)
        found = copy(**joined.inputs, use_cache=False).logits[0, joined.kept]
    return torch.allclose(found, alone, atol=1e-3) and torch.equal(before, torch.get_rng_state())
