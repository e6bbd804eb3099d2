"""Batch rows joined into one sequence, in which prefixes that rows share are read once.

Invariant: each token attends to the earlier tokens of its own row, at their positions in that row, so loss
and gradients equal those of separate rows. Rows share only tokens before their first label.
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

_FEWEST = 8  # tokens of a prefix that is worth sharing
Row = tuple[int, ...]  # token ids, or their labels
_NO_LABEL = -100  # as in transformers
_MOST = isqrt(
    PLAIN_SCORES
)  # tokens of a sequence whose attention scores are no more than those of padded rows
_SAVES = 0.9  # largest share of the padded batch's tokens that the joined sequence may have


class JoinedRows(NamedTuple):
    """Model inputs of joined rows: ids and positions (1, t), a mask (1, 1, t, t), and the targets.

    `kept` (n) are the positions in the sequence that predict the `targets` (n).
    """

    input_ids: "torch.Tensor"
    position_ids: "torch.Tensor"
    attention_mask: "torch.Tensor"
    kept: "torch.Tensor"
    targets: "torch.Tensor"

    @property
    def inputs(self) -> "dict[str, torch.Tensor]":
        """Inputs of the model under transformers' names."""
        return {name: getattr(self, name) for name in ("input_ids", "position_ids", "attention_mask")}


def join_rows(
    model: "PreTrainedModel",
    input_ids: "torch.Tensor",
    attention_mask: "torch.Tensor",
    labels: "torch.Tensor",
) -> JoinedRows | None:
    """Join the rows of a batch (b, t) that is padded on the right; labels are -100 where nothing is learned.

    Returns None if that saves little, or if attention over the long sequence would cost more than it saves.
    """
    import torch

    lengths = attention_mask.sum(1).tolist()
    rows, learned = (
        [tuple(row[:length]) for row, length in zip(tensor.tolist(), lengths, strict=True)]
        for tensor in (input_ids, labels)
    )
    ids, positions, kept, targets = list[int](), list[int](), list[int](), list[int]()
    # For each token, the start of its part of the sequence and the start of the prefix before that part.
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
    """Group rows by shared prefix; return each prefix's length (0 for a single row) and row numbers."""
    groups: list[tuple[int, list[int]]] = []
    for number, row in enumerate(rows):
        # The token before the first label predicts that label, so it is never shared.
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
    """Tell whether a model in training on a CPU gives joined rows the results of separate rows.

    Dropout, losses on experts and adapters that prepend tokens do not; else a small copy of it shows it.
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
    """Tell whether a base can train on joined rows; the answer is remembered, so estimates need no torch."""
    key = digest([source.weights_digest, package_versions(), versions_of("sft")])
    return is_packed(source) or bool(memo("joined_rows", key, lambda: _joins_by_copy(source.path)))


def _joins_by_copy(path: Path) -> bool:
    import torch

    with torch.random.fork_rng():
        return ask_copy(path, _reads_alike) or False


def _reads_alike(copy: Any) -> bool:
    """Tell whether a copy of a base gives two joined rows the logits of separate rows and draws nothing."""
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
